"""A Redis of one's own, started and stopped."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.bout import free_port

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
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )

    def emptied() -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            if connection.recv(5) != b"+OK\r\n":
                raise RuntimeError("Redis cannot be emptied")
        return f"redis://127.0.0.1:{port}/0"

    try:
        for _ in range(200):
            with suppress(OSError):
                emptied()
                break
            time.sleep(0.05)
        yield emptied
    finally:
        process.terminate()
        process.wait(10)
