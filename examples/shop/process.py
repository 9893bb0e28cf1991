"""A process of the demo: started, watched, and stopped together with its child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Thread
from typing import IO

__all__ = ["Failed", "Process", "say"]

SHOP = Path(__file__).resolve().parent


class Failed(Exception):
    """The demo cannot start or continue; the message has the reason."""


class Process:
    """A process of the demo in its own process group; its output is prefixed with its name."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str]) -> None:
        self.name = name
        self.last: deque[str] = deque(maxlen=20)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=SHOP,  # the services' folder, without a gunicorn.conf.py that gunicorn would read
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # Ctrl-C reaches the demo alone, which then stops the others
        )
        self._reader = Thread(target=self._show, args=[self._popen.stdout], daemon=True)
        self._reader.start()

    def _show(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.last.append(line.rstrip())
                say(f"{self.name:>15} | {line.rstrip()}")

    def check(self) -> None:
        """Raise :class:`Failed` if the process has exited: no exit is expected."""
        if self._popen.poll() is not None:
            self._reader.join(1.0)
            end = f"{self.name} ended with exit code {self._popen.returncode}"
            raise Failed("\n  ".join([f"{end}, with the output:", *(self.last or ["(nothing)"])]))

    def terminate(self) -> None:
        self._popen.terminate()

    def end(self, deadline: float) -> None:
        """Wait for the process to exit until *deadline*, then kill the rest of its group."""
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{self.name} does not stop and is killed")
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # expected: no process of the group is left
        self._popen.wait()
        self._reader.join(1.0)


def say(text: str, to: int = 1) -> None:
    """Write *text* in one call, so that lines stay whole; ignore errors of a closed terminal."""
    try:
        os.write(to, f"{text}\n".encode())
    except OSError:
        pass
