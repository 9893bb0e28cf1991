"""Starts a server for a measurement, and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import randrange

__all__ = ["free_port", "running", "started"]


def free_port() -> int:
    """Return a free port outside the range from which the system gives ports to clients.

    The server that it is for listens later: until then any client, or another server that asks for
    a free port, could get one of that range. No test gets it either: ``tests/support/ports.py``
    reserves ports by the same names, which the system frees with the process.
    """
    while True:
        port = randrange(15_000, 30_000)
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0wsgigate-tests-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            name.close()
            continue
        name.detach()  # it stays open for as long as the process lives
        return port


def running(
    command: Sequence[str],
    port: int,
    core: int | None,
    folder: Path,
    env: Mapping[str, str],
    *,
    log: str = "server.log",
) -> AbstractContextManager[int]:
    """Run *command*, as :func:`started` does, until it listens.

    :raises RuntimeError: It does not listen, or the port is taken.
    """
    if not _amiss(port):
        raise RuntimeError(f"port {port} is taken")
    return started(command, lambda: _amiss(port), core, folder, env, log=log)


@contextmanager
def started(
    command: Sequence[str],
    ask: Callable[[], str],
    core: int | None,
    folder: Path,
    env: Mapping[str, str],
    *,
    log: str = "server.log",
    quiet: bool = False,
) -> Iterator[int]:
    """Run *command* in *folder*; yield its process id once it is ready.

    :param ask: Returns why it is not ready yet; empty when it is.
    :param core: The processor that it runs on; ``None`` for any.
    :param env: Additional environment variables.
    :param log: The file in *folder* for its output.
    :param quiet: Log standard error only.
    :raises RuntimeError: It ends, or is not ready within a minute; the message has its output.
    """
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(
            [*([] if core is None else ["taskset", "-c", str(core)]), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else output,
            stderr=output,
            env={**os.environ, **env},
            cwd=folder,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 60
        while amiss := ask():
            if process.poll() is not None or time.monotonic() > until:
                output_end = (folder / log).read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{amiss}\n{output_end}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _amiss(port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError as error:
        return f"port {port}: {error.strerror or error}"
    return ""
