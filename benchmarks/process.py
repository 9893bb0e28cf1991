"""A server of any kind, for as long as it is measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

__all__ = ["free_port", "running", "started"]


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
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

    :raises RuntimeError: It does not, or somebody else has the port.
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
    """Run *command* in *folder*; yield its process once nothing is amiss.

    :param ask: Returns what is amiss as yet.
    :param core: The processor that it is to run on; ``None`` for any.
    :param env: What it finds in its environment besides the usual.
    :param log: Where in *folder* it writes.
    :param quiet: Keep of that only what it writes to standard error.
    :raises RuntimeError: It ends, or something is amiss for too long; tells what it wrote.
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
                told = (folder / log).read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{amiss}\n{told}")
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
