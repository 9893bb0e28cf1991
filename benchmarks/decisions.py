"""What one rate-limit decision costs, by store and number of processes, next to other libraries.

``python -m benchmarks.decisions``. All processes decide about one caller, whose quota is half of
what they request together; exactly that number must be allowed, or the table shows the actual one.
The second table is what a limiter adds to a request, around the same hello world of Flask and
Django.

Redis is started for it where ``redis-server`` is installed. A missing one is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.around import ADDED, Added, added
from benchmarks.redis_server import redis_server
from benchmarks.table import aligned
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.rules.quota import Quota
from wsgigate.store import update
from wsgigate.store.open import open_store

__all__ = ["PROCESSES", "Race", "document", "measure", "race", "tables"]

PROCESSES = (1, 2, 4, 8)
TARGET = 6.0
"""Microseconds that a decision in LMDB may take one process alone."""
TIMES = 1.8
"""The target: how many times cheaper one in Redis is than one with the same result elsewhere."""

YEAR = 365 * 86400  # so long that a bucket does not fill up meanwhile
KEY = "limit/bench/192.0.2.7"

Decide = Callable[[], bool]
_told = struct.Struct("=qddd")


class Race(NamedTuple):
    """How a number of processes did together."""

    decisions: int
    allowed: int
    quota: int
    seconds: float
    """From the first one's start to the last one's end."""
    cpu: float
    """Seconds of processor time, of all of them; a server's is not counted."""

    @property
    def rate(self) -> float:
        """Decisions per second, of all processes together."""
        return self.decisions / self.seconds


class Contender(NamedTuple):
    """A way to decide.

    :param make: Makes, in each process, what decides, given the store's URL and the quota.
    """

    title: str
    store: str
    make: Callable[[str, int], Decide]
    needs: tuple[str, ...] = ()
    algorithm: str = ""


def _ours(algorithm: str) -> Callable[[str, int], Decide]:
    def make(url: str, limit: int) -> Decide:
        store = open_store(url)
        rule = ALGORITHMS[algorithm](Quota(limit, YEAR))
        take, own = rule.take, getattr(store, "take", None)
        if own is not None:
            return lambda: bool(own(KEY, (rule,), 1)[0][0].allowed)

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            new, ttl, verdict = take(old, now)
            return new, ttl, verdict.allowed

        return lambda: update(store, KEY, change)

    return make


def _limits(strategy: str, told: bool) -> Callable[[str, int], Decide]:
    def make(url: str, limit: int) -> Decide:
        from limits import RateLimitItemPerYear, storage, strategies

        limiter = getattr(strategies, strategy)(storage.storage_from_string(url))
        hit, statistics = limiter.hit, limiter.get_window_stats
        item = RateLimitItemPerYear(limit)
        if not told:
            return lambda: bool(hit(item, KEY))

        def decide() -> bool:
            passes = hit(item, KEY)
            reset, remaining = statistics(item, KEY)
            return bool(passes and reset and remaining >= 0)

        return decide

    return make


_STORES = ("memory", "lmdb", "redis")
_STATISTICS = ", hit and statistics"
CONTENDERS = (
    *(
        Contender(f"wsgigate {name}, {store}", store, _ours(name), algorithm=name)
        for store in _STORES
        for name in ("token-bucket", "fixed-window", "sliding-window")
    ),
    *(
        Contender(
            f"limits {name}{words}, {store}", store, _limits(strategy, told), ("limits", *needs)
        )
        for store, needs in (("memory", ()), ("redis", ("redis",)))
        for name, strategy in (
            ("fixed window", "FixedWindowRateLimiter"),
            ("moving window", "MovingWindowRateLimiter"),
        )
        # ours also returns what remains and when it begins anew; limits needs a second call
        for words, told in (("", False), (_STATISTICS, True))
    ),
)


def race(make: Callable[[int], Decide], processes: int, decisions: int) -> Race:
    """Have *processes* make *decisions* each, all at once; return how they did.

    :raises RuntimeError: One of them failed.
    """
    quota = processes * decisions // 2
    ready, say_ready = os.pipe()
    start, say_start = os.pipe()
    told, tell = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            try:
                decide = make(quota)
                os.write(say_ready, b".")
                os.close(say_start)
                os.read(start, 1)
                os.write(tell, _told.pack(*_decided(decide, decisions)))
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        children.append(child)
    for end in (say_ready, tell):
        os.close(end)
    with open(ready, "rb") as everybody, open(told, "rb") as results, open(say_start, "wb") as go:
        everybody.read(processes)
        go.write(b"." * processes)
        go.flush()
        read = results.read()
    os.close(start)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise RuntimeError(f"{len(failed)} of {processes} processes failed")
    allowed, began, ended, cpu = zip(*_told.iter_unpack(read), strict=True)
    return Race(processes * decisions, sum(allowed), quota, max(ended) - min(began), sum(cpu))


def _decided(decide: Decide, decisions: int) -> tuple[int, float, float, float]:
    allowed, cpu = 0, time.process_time()
    began = time.perf_counter()
    for _ in range(decisions):
        allowed += decide()
    return allowed, began, time.perf_counter(), time.process_time() - cpu


@contextmanager
def _urls() -> Iterator[Callable[[str], str]]:
    """Yield what returns the URL of a fresh store of a kind, empty when there is none."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsgigate-bench-")))
        redis = stack.enter_context(redis_server(folder))
        made = 0

        def url(kind: str) -> str:
            nonlocal made
            made += 1
            if kind == "memory":
                return "memory:"
            if kind == "lmdb":
                return f"lmdb:{folder}/{made}"
            return redis()  # an empty one

        yield url


def measure(
    *,
    decisions: int = 20_000,
    rounds: int = 3,
    requests: int = 2_000,
    processes: Sequence[int] = PROCESSES,
    told: Callable[[str], object] = print,
) -> tuple[dict[str, dict[int, Race]], dict[str, Added]]:
    """Return by title and number of processes how the decisions went, and what limiters add.

    :param decisions: How many each process makes; a quarter of it in Redis.
    :param rounds: How often; the fastest counts, as whatever else the machine does only slows.
    :param requests: How many are served for each figure of the second table.
    :param told: Called with a line about each contender that is skipped.
    """
    found: dict[str, dict[int, Race]] = {}
    with _urls() as url:
        for contender in CONTENDERS:
            missing = _missing(contender, url)
            if missing:
                told(f"skipped: {contender.title}: {missing}")
                continue
            asked = decisions if contender.store != "redis" else max(2, decisions // 4)
            for number in processes if contender.store != "memory" else processes[:1]:
                try:
                    races = [_race(contender, url, number, asked) for _ in range(rounds)]
                except RuntimeError as error:
                    told(f"failed: {contender.title}: {error}")
                    continue
                # a count that was not exact is shown, even if another round was faster
                races.sort(key=lambda each: (each.allowed == each.quota, each.seconds))
                found.setdefault(contender.title, {})[number] = races[0]
        limiters = added(url, requests=requests // 5 or 1, rounds=5 * rounds, told=told)
    return found, limiters


def _race(contender: Contender, url: Callable[[str], str], number: int, asked: int) -> Race:
    place = url(contender.store)
    if contender.needs and contender.store == "memory":
        place = "memory://"  # as that library writes it
    elif contender.algorithm and contender.store == "redis":
        place += "?timeout=10&socket_timeout=10"  # that number of processes wait for each other
    return race(lambda quota: contender.make(place, quota), number, asked)


def _missing(contender: Contender, url: Callable[[str], str]) -> str:
    if contender.algorithm and contender.algorithm not in ALGORITHMS:
        return "there is no such algorithm"
    for package in contender.needs:
        if find_spec(package) is None:
            return f"pip install {package}"
    place = url(contender.store)
    if not place:
        return "apt-get install redis-server"
    if contender.algorithm:
        try:
            open_store(place)
        except ValueError as error:
            return str(error)
    return ""


def tables(found: Mapping[str, Mapping[int, Race]], limiters: Mapping[str, Added]) -> str:
    """Return both tables as text."""
    rows = [
        ("one caller, n processes: decisions/s", *map(str, PROCESSES), "µs (1)", "CPU", "exact")
    ]
    for title, races in found.items():
        rates = [f"{races[n].rate:,.0f}" if n in races else "" for n in PROCESSES]
        one = races.get(1)
        alone = f"{1e6 / one.rate:.1f}" if one else ""
        cpu = f"{one.cpu / one.decisions * 1e6:.1f}" if one else ""
        wrong = [
            f"{each.allowed} of {each.quota}"
            for each in races.values()
            if each.allowed != each.quota
        ]
        rows.append((title, *rates, alone, cpu, wrong[0] if wrong else "yes"))
    notes = [f"(to be reached: {TARGET:.0f} µs for one decision in LMDB)", *_times(found)]
    told = ["\n".join([aligned(rows), *notes])]
    if limiters:
        around = [("a limiter around hello world", "µs/request", "CPU", "times our least CPU")]
        least = {
            app: min(
                (each.cost for each in limiters.values() if each[:2] == (app, True)), default=1.0
            )
            for app in ("Flask", "Django")
        }
        for title, each in limiters.items():
            times = "" if each.ours else f"{each.cost / least[each.app]:.1f}"
            around.append((title, f"{each.wall:.1f}", f"{each.cost:.1f}", times))
        told.append(aligned(around) + f"\n({ADDED})")
    return "\n\n".join(told)


def _times(found: Mapping[str, Mapping[int, Race]]) -> Iterator[str]:
    """Yield how many times cheaper a decision in Redis is than one with the same result."""
    for ours, theirs in (("fixed-window", "fixed window"), ("sliding-window", "moving window")):
        mine = found.get(f"wsgigate {ours}, redis", {}).get(1)
        other = found.get(f"limits {theirs}{_STATISTICS}, redis", {}).get(1)
        if mine and other:
            cpu = other.cpu / other.decisions / (mine.cpu / mine.decisions)
            yield (
                f"(in Redis, a {ours} is {cpu:.1f} times as cheap as limits with statistics by CPU,"
                f" {mine.rate / other.rate:.1f} times by the clock; wanted: {TIMES})"
            )


def document(
    found: Mapping[str, Mapping[int, Race]], limiters: Mapping[str, Added]
) -> dict[str, Any]:
    """Return both for a JSON file."""
    return {
        "decisions": {
            title: {
                str(number): {**each._asdict(), "rate": each.rate} for number, each in all_.items()
            }
            for title, all_ in found.items()
        },
        "limiters": {title: each._asdict() for title, each in limiters.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements that the command line *argv* selects; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000, help="that each process makes")
    parser.add_argument("--rounds", type=int, default=3, help="how often; the fastest counts")
    parser.add_argument("--requests", type=int, default=2_000, help="through each limiter")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    given = parser.parse_args(argv)
    found, limiters = measure(
        decisions=given.decisions, rounds=given.rounds, requests=given.requests
    )
    print("\n" + tables(found, limiters))
    if given.json:
        given.json.write_text(json.dumps(document(found, limiters), indent=2) + "\n")
    exact = all(each.allowed == each.quota for races in found.values() for each in races.values())
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
