"""What one decision in Redis costs over the store's exchange, and over that of redis-py.

``python -m benchmarks.redis_exchange``, with ``redis-server``, redis-py and hiredis installed. All
run the same script with the same arguments against the same server, pass the same breaker and the
same check of the answer's shape, and take turns, so that other work on the machine slows all.

The store's exchange also limits the size of an answer and the time of all its parts. redis-py
limits neither, and no variant here adds that: each would cost more with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool, Connection
from redis.retry import Retry

from benchmarks.redis_server import redis_server
from benchmarks.table import aligned
from tests.support.objects import part
from wsgigate.rules.algorithms import ALGORITHMS, Algorithm
from wsgigate.rules.quota import Quota
from wsgigate.store.redis import RedisStore
from wsgigate.store.redis_connections import ErrorReply, RedisConnectionPool, Wire

__all__ = ["costs"]

Exchange = Callable[..., list[Any]]

_TIMEOUTS = "timeout=5&socket_timeout=5&socket_connect_timeout=5"
_SETTINGS: dict[str, Any] = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "protocol": 2,
}


def _pool(port: int) -> BlockingConnectionPool:
    return BlockingConnectionPool(
        host="127.0.0.1",
        port=port,
        max_connections=32,
        timeout=5,
        retry=Retry(NoBackoff(), 0),
        **_SETTINGS,
    )


def _client(port: int) -> Exchange:
    """``Redis.execute_command`` over ``BlockingConnectionPool``."""
    execute = redis.Redis(connection_pool=_pool(port)).execute_command
    parsed: dict[bytes, list[bytes]] = {}

    def exchange(packed: bytes, *_: Any) -> list[Any]:
        command = parsed.get(packed)  # not a cost of redis-py: the store packs commands itself
        if command is None:
            reader = hiredis.Reader()
            reader.feed(packed)
            command = parsed[packed] = reader.gets()
        return [execute(*command)]

    return exchange


def _pooled(port: int) -> Exchange:
    """Packed commands over the connections of ``BlockingConnectionPool``."""
    pool = _pool(port)

    def exchange(packed: bytes, *_: Any) -> list[Any]:
        connection = pool.get_connection()
        try:
            connection.send_packed_command([packed], check_health=False)
            return [connection.read_response(disable_decoding=True)]
        finally:
            pool.release(connection)

    return exchange


def _pooled_exchange(port: int) -> Exchange:
    """The store's exchange over the connections of ``BlockingConnectionPool``."""
    pool = _pool(port)
    pool.connection_kwargs["parser_class"] = lambda **_: Wire(5.0)

    def exchange(packed: bytes, *_: Any) -> list[Any]:
        connection = pool.get_connection()
        try:
            return part(Wire, connection).ask(packed, 1)
        finally:
            pool.release(connection)

    return exchange


def _direct(port: int) -> Exchange:
    """Packed commands over redis-py's ``Connection`` in a list of free ones."""
    free = [Connection("127.0.0.1", port, retry=Retry(NoBackoff(), 0), **_SETTINGS)]

    def exchange(packed: bytes, *_: Any) -> list[Any]:
        connection = free.pop()
        if connection.can_read():
            connection.disconnect()
        connection.send_packed_command([packed], check_health=False)
        got = [connection.read_response(disable_decoding=True)]
        free.append(connection)
        return got

    return exchange


_VARIANTS: dict[str, Callable[[int], Exchange] | None] = {
    "the store's pool and exchange, hiredis": None,
    "redis-py: Connection, packed commands": _direct,
    "redis-py: BlockingConnectionPool, packed commands": _pooled,
    "redis-py: BlockingConnectionPool, the store's exchange": _pooled_exchange,
    "redis-py: Redis.execute_command": _client,
}


def _store(url: str, port: int, make: Callable[[int], Exchange] | None) -> RedisStore:
    store = RedisStore(f"{url}?{_TIMEOUTS}")
    store.check()
    if make is not None:
        exchange = make(port)

        def checked(packed: bytes, answers: int = 1, fits: Any = None, most: int = 0) -> list[Any]:
            try:
                got = exchange(packed)
            except redis.ResponseError as error:
                return [ErrorReply(str(error))]
            if not fits(got[0]):
                raise ValueError("an answer of another shape")
            return got

        pool: Any = part(RedisConnectionPool, store)
        pool.exchange = checked
    return store


def costs(
    algorithm: str, *, decisions: int = 2_000, rounds: int = 21
) -> dict[str, tuple[float, float]]:
    """Return by variant the microseconds of processor time and of wall time of one decision.

    :param algorithm: The name of a rate-limiting algorithm.
    :param decisions: Number of decisions for each figure of each round.
    :param rounds: Number of rounds; the figures are the medians.
    """
    rules: tuple[Algorithm, ...] = (ALGORITHMS[algorithm](Quota(900_000_000, 3600)),)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as fresh:
        url = fresh()
        port = int(url.rpartition(":")[2].partition("/")[0])
        stores = {title: _store(url, port, make) for title, make in _VARIANTS.items()}
        taken: dict[str, list[tuple[float, float]]] = {title: [] for title in stores}
        for turn in range(rounds + 1):
            for title, store in stores.items():
                take = store.take
                cpu, wall = time.process_time(), time.perf_counter()
                for _ in range(decisions):
                    take("limit/192.0.2.7", rules)
                spent = time.process_time() - cpu, time.perf_counter() - wall
                if turn:  # the first one warms up
                    taken[title].append(spent)
    scale = 1e6 / decisions
    return {
        title: (median(cpu for cpu, _ in each) * scale, median(wall for _, wall in each) * scale)
        for title, each in taken.items()
    }


def main() -> None:
    """Measure, and print a table for each algorithm."""
    print(f"redis-py {redis.__version__}, hiredis {hiredis.__version__}")
    for algorithm in ("token-bucket", "fixed-window"):
        found = costs(algorithm)
        own = next(iter(found.values()))
        rows = [(algorithm, "CPU us", "times", "wall us", "times")]
        for title, (cpu, wall) in found.items():
            times = f"{cpu / own[0]:.2f}", f"{wall / own[1]:.2f}"
            rows.append((title, f"{cpu:.1f}", times[0], f"{wall:.1f}", times[1]))
        print("\n" + aligned(rows))


if __name__ == "__main__":
    main()
