"""Traffic splitting by weight, for canary releases and A/B tests."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import log
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import KeyNames, key_of, text_of
from wsgigate.http.fields import is_token
from wsgigate.http.responses import record_shaping
from wsgigate.http.wsgi import environ_key
from wsgigate.rules.arguments import FieldName, checked
from wsgigate.telemetry.decisions import SHAPING

__all__ = ["Split", "Splitter"]


_SCALE = float(1 << 53)


class Split:
    """Chooses a name by weight.

    The same key gets the same name on every worker and every machine, by weighted rendezvous
    hashing (Schindelhauer and Schomaker 2005). When the weights change, only as many keys move as
    necessary: a client on the canary at 5 % stays on it at 50 %.

    :param weights: The names and their relative weights; a name with weight 0 is never chosen.
    :param salt: Makes this split independent of other splits with the same keys.
    :raises ValueError: A name is duplicated, a weight is negative, or all weights are 0.
    """

    def __init__(self, weights: Sequence[tuple[str, float]], salt: str = "") -> None:
        self.names = tuple(name for name, _ in weights)
        if len(set(self.names)) < len(self.names):
            raise ValueError("names must be unique")
        if any(not 0 <= weight < float("inf") for _, weight in weights):
            raise ValueError("a weight must be 0 or more")
        self._weights = tuple((name, float(weight)) for name, weight in weights if weight)
        if not self._weights:
            raise ValueError("at least one weight must be above 0")
        self._total = sum(weight for _, weight in self._weights)
        self._seeds = tuple(
            (name, weight, f"{salt}\0{name}\0".encode()) for name, weight in self._weights
        )

    def choose(self, key: str | None, chance: Callable[[], float]) -> str:
        """Return the name for a request.

        :param key: Requests with the same key get the same name; ``None`` for a random choice.
        :param chance: Returns a random number in [0, 1).
        """
        if key is None:
            return self._by_chance(chance())
        data = key.encode("utf-8", "surrogatepass")
        return max(self._seeds, key=lambda one: _score(one[2] + data, one[1]))[0]

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
    """Distribute requests between several apps by weight.

    Requests with the same *key* go to the same app while the weights stay the same. Without a key,
    or for a request that has none, the choice is random. The access log records it as
    ``split=NAME``.

    :param apps: The app and its weight by name.
    :param key: Keeps the requests of one caller on one app: a key function, or a name such as
        ``cookie:session|address``; see :func:`wsgigate.http.caller.key_of`.
    :param override: A request field that selects an app by its name, also one with weight 0. An
        unknown name is ignored. Any client can send the field.
    :param salt: Makes this split independent of others: a client may be on the canary of one only.
    :param random: Returns random numbers in [0, 1).
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        apps: Mapping[str, tuple[WSGIApplication, float]],
        *,
        key: KeyNames | None = None,
        override: FieldName | None = None,
        salt: str = "",
        random: Callable[[], float] = _random.random,
    ) -> None:
        try:
            self._split = Split([(name, weight) for name, (_, weight) in apps.items()], salt)
        except ValueError as error:
            raise ValueError(f"apps: {error}") from None
        for name in apps:
            if not is_token(name):
                raise ValueError(f'apps: {name!r} is not a word such as "stable"')
        if override is not None and not is_token(override):
            raise ValueError(f"override: {override!r} is not a valid header field name")
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
        record_shaping(environ, f"split={name}")
        SHAPING.labels("split", name).add()
        return self._apps[name](environ, start_response)
