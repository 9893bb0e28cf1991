"""A server of any kind on one processor, for as long as it is measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["running"]


@contextmanager
def running(
    command: Sequence[str], port: int, core: int, folder: Path, env: Mapping[str, str]
) -> Iterator[int]:
    """Run *command* in *folder* on the processor *core*; yield its process once it listens.

    :raises RuntimeError: It ends, does not listen in time, or somebody else has the port; tells
        what it wrote.
    """
    if _listens(port):
        raise RuntimeError(f"port {port} is taken")
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
            cwd=folder,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 20
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text(errors="replace")[-4000:])
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
