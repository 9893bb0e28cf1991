"""Divide requests between apps, as for a new version that few are to see at first."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import log
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import KeyNames, key_of, text_of
from wsgigate.http.fields import is_token
from wsgigate.http.responses import shaped
from wsgigate.http.wsgi import environ_key
from wsgigate.rules.arguments import checked

__all__ = ["Split", "Splitter"]


# Who of several takes a request, each by its share; the same for the same key.

_SCALE = float(1 << 53)


class Split:
    """Divides requests by weight.

    Requests with a key go where the key falls to, on every worker and every machine alike, by
    weighted rendezvous hashing (Schindelhauer and Schomaker 2005). When the weights change only as
    many keys move as have to: whoever is with the new version at 5 % is so at 50 %, too.

    :param weights: The names and their shares relative to each other; one of weight 0 gets none.
    :param salt: Tells this split from others, in which other keys are to be among the few.
    :raises ValueError: Two have the same name, a weight is negative, or all are 0.
    """

    def __init__(self, weights: Sequence[tuple[str, float]], salt: str = "") -> None:
        self.names = tuple(name for name, _ in weights)
        if len(set(self.names)) < len(self.names):
            raise ValueError("two of them have the same name")
        if any(not 0 <= weight < float("inf") for _, weight in weights):
            raise ValueError("a weight is 0 or more")
        self._weights = tuple((name, float(weight)) for name, weight in weights if weight)
        if not self._weights:
            raise ValueError("one of them has a weight above 0")
        self._total = sum(weight for _, weight in self._weights)
        self._seeds = tuple(
            (name, weight, f"{salt}\0{name}\0".encode()) for name, weight in self._weights
        )

    def choose(self, key: str | None, chance: Callable[[], float]) -> str:
        """Return the name of who takes the request.

        :param key: What tells requests that belong together; ``None`` lets chance decide.
        :param chance: Gives a number in [0, 1).
        """
        if key is None:
            return self._by_chance(chance())
        told = key.encode("utf-8", "surrogatepass")
        return max(self._seeds, key=lambda one: _score(one[2] + told, one[1]))[0]

    def _by_chance(self, number: float) -> str:
        left = number * self._total
        for name, weight in self._weights:
            left -= weight
            if left < 0:
                return name
        return self._weights[-1][0]


def _score(data: bytes, weight: float) -> float:
    drawn = int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 11
    return -weight / log((drawn + 0.5) / _SCALE)


@checked
class Splitter:
    """Pass each request to one of several apps, by their weights.

    Requests of the same *key* go to the same app, as long as the weights stay; without a key, or
    where the request has none, chance decides. Which one it was is in the log as ``split=NAME``.

    :param apps: By name, the app and its weight.
    :param key: What tells requests that belong together: a key function, or the name of one, such
        as ``cookie:session|address``; see :func:`wsgigate.http.caller.key_of`.
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
