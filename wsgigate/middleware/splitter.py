"""Divide requests between apps, as for a new version that few are to see at first."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Mapping
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.fields import is_token
from wsgigate.instead import shaped
from wsgigate.limit_keys import KeyNames, key_of, text_of
from wsgigate.rules.arguments import checked
from wsgigate.rules.split import Split
from wsgigate.wsgi import environ_key

__all__ = ["Splitter"]


@checked
class Splitter:
    """Pass each request to one of several apps, by their weights.

    Requests of the same *key* go to the same app, as long as the weights stay; without a key, or
    where the request has none, chance decides. Which one it was is in the log as ``split=NAME``.

    :param apps: By name, the app and its weight.
    :param key: What tells requests that belong together: a key function, or the name of one, such
        as ``cookie:session|address``; see :func:`wsgigate.limit_keys.key_of`.
    :param override: A request field by which whoever sends it chooses the app by its name, weight 0
        included; what is no name chooses nothing. Anybody can send it.
    :param salt: Tells this split from others: who is among the few here need not be there.
    :param random: Gives numbers in [0, 1).
    :raises ValueError: One of the settings is wrong; says which.
    """

    def __init__(
        self,
        apps: Mapping[str, tuple[WSGIApplication, float]],
        *,
        key: KeyNames | None = None,
        override: str | None = None,
        salt: str = "",
        random: Callable[[], float] = _random.random,
    ) -> None:
        try:
            self._split = Split([(name, weight) for name, (_, weight) in apps.items()], salt)
        except ValueError as error:
            raise ValueError(f"apps: {error}") from None
        for name in apps:
            if not is_token(name):
                raise ValueError(f"apps: {name!r} is no word")
        if override is not None and not is_token(override):
            raise ValueError(f"override: {override!r} cannot be the name of a field")
        try:
            self._key = None if key is None else key_of(key)
        except ValueError as error:
            raise ValueError(f"key: {error}") from None
        self._apps = {name: app for name, (app, _) in apps.items()}
        self._override = None if override is None else environ_key(override)
        self._random = random

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        name = None if self._override is None else environ.get(self._override)
        if name not in self._apps:
            key = None if self._key is None else self._key(environ)
            if key.__class__ is not str and key is not None:
                key = text_of(key)
            name = self._split.choose(key, self._random)
        shaped(environ, f"split={name}")
        return self._apps[name](environ, start_response)
