"""Quotas as the script of a Redis takes them, and its answer as verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from wsgigate.rules.algorithms import (
    ALGORITHMS,
    Algorithm,
    SlidingWindow,
    TokenBucket,
)
from wsgigate.rules.quota import Quota, Verdict
from wsgigate.rules.together import tag_of
from wsgigate.store.redis_scripts import Script, take_script
from wsgigate.store.redis_shapes import verdicts
from wsgigate.store.redis_wire import packed

__all__ = ["Prepared", "prepared", "verdicts_of"]


class Prepared(NamedTuple):
    """Algorithms as arguments of the script, and all of the command but what differs each time."""

    script: Script
    arguments: tuple[bytes, ...]
    limits: tuple[int, ...]
    quotas: tuple[Quota, ...]
    begins: bytes
    """The command, where the script is known, until it says how long the key is."""
    ends: bytes
    """What comes after the cost."""
    one: bytes
    """What comes after the key for a request that counts as one, at the server's time."""
    fits: Callable[[Any], bool]
    """Whether an answer is one to it."""

    def known(self, key: bytes, cost: int, moment: bytes) -> bytes:
        """Return the command that decides where the script is known.

        :param moment: A number of microseconds; empty: the server's time.
        """
        if cost == 1 and not moment:
            return b"%b%d\r\n%b\r\n%b" % (self.begins, len(key), key, self.one)
        differs = packed(key, moment, b"%d" % cost)
        return b"%b%b%b" % (self.begins, differs[1:], self.ends)


@lru_cache(maxsize=1024)
def prepared(algorithms: tuple[Algorithm, ...]) -> Prepared | None:
    """Return what the script needs of *algorithms*; None if one of them is not in the script.

    :raises ValueError: There is none, or two are the same.
    """
    if not algorithms:
        raise ValueError("there has to be at least one quota")
    arguments: list[bytes] = []
    tags = set()
    for one in algorithms:
        if ALGORITHMS.get(one.name) is not type(one):
            return None  # somebody's own, even if it has the name of one of ours
        told, quota = _numbers(one), one.quota
        tag = tag_of(one)  # what the rules write and what the script does, either can read
        tags.add(tag)
        arguments += (
            one.name.encode(),
            tag,
            b"%d" % quota.limit,
            b"%d" % told[0],
            b"%d" % told[1],
            (quota.calendar or "").encode(),
        )
    if len(tags) < len(algorithms):
        raise ValueError("two of the quotas are the same")
    quotas = tuple(one.quota for one in algorithms)
    script = take_script(frozenset(one.name for one in algorithms), len(algorithms) > 1)
    begins, ends = script.known(b"", b"", b"", *arguments).split(packed(b"", b"", b""))
    limits = tuple(quota.limit for quota in quotas)
    return Prepared(
        script,
        tuple(arguments),
        limits,
        quotas,
        begins + b"$",
        ends,
        packed(b"", b"1") + ends,
        verdicts(limits),
    )


def verdicts_of(limits: Sequence[int], answer: list[int]) -> tuple[tuple[Verdict, ...], float]:
    """Return each quota's verdict, and the store's time, out of the script's *answer*."""
    if len(limits) == 1:
        moment, allowed, remaining, reset, retry = answer
        one = Verdict(allowed == 1, limits[0], remaining, reset / 1_000_000, retry / 1_000_000)
        return (one,), moment / 1_000_000
    verdicts = []
    for place, limit in enumerate(limits):
        allowed, remaining, reset, retry = answer[4 * place + 1 : 4 * place + 5]
        verdicts.append(
            Verdict(allowed == 1, limit, remaining, reset / 1_000_000, retry / 1_000_000)
        )
    return tuple(verdicts), answer[0] / 1_000_000


def _numbers(algorithm: Algorithm) -> tuple[int, int]:
    micros = algorithm.quota.micros
    if isinstance(algorithm, TokenBucket):
        return -(-micros // algorithm.tick), algorithm.tick
    if isinstance(algorithm, SlidingWindow):
        return algorithm.slot, algorithm.SLOTS
    return micros, 0
