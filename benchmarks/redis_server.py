"""A Redis of one's own, started and stopped."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import free_port, running

__all__ = ["redis_server"]


@contextmanager
def redis_server(folder: Path) -> Iterator[Callable[[], str]]:
    """Run a Redis that keeps nothing; yield what empties it and returns its URL.

    Where ``redis-server`` is not installed the URL is empty.
    """
    program = shutil.which("redis-server")
    if program is None:
        yield lambda: ""
        return
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no"]

    def emptied() -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            if connection.recv(5) != b"+OK\r\n":
                raise RuntimeError("Redis cannot be emptied")
        return f"redis://127.0.0.1:{port}/0"

    with running(command, port, None, folder, {}, log="redis.log"):
        yield emptied
