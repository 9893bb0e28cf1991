"""Starts servers in processes of their own, and stops them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.support.ports import free_port
from tests.support.waiting import until

__all__ = ["Served", "Servers", "home"]


class Served:
    """A server in a session of its own; ``log`` is what it wrote.

    :ivar file: The configuration of a gateway.
    """

    file: Path

    def __init__(self, command: list[str], port: int, log: Path, env: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log_file = log
        self._stops = False
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **env},
                cwd=log.parent,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_up(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                return False
            return True

        until(up)

    def refuses(self) -> bool:
        """Return whether no process listens on its port."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    def workers(self, least: int = 1) -> list[int]:
        """Return the process ids of the workers, oldest first, once there are *least*.

        A master listens before it forks them.
        """

        def found() -> list[int]:
            children = self._children()
            return children if len(children) >= least else []

        workers: list[int] = until(found)
        return workers

    def _children(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in children.split()]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def begin_to_stop(self) -> None:
        """Send it SIGTERM, once, unless it has ended."""
        if not self._stops and self.process.poll() is None:
            self.process.terminate()
        self._stops = True

    def stop(self, within: float = 25.0) -> None:
        """Stop it as an operator would; one that does not stop shows where its threads are."""
        try:
            self.begin_to_stop()
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            for process in (*self._children(), self.process.pid):
                os.kill(process, signal.SIGABRT)
            time.sleep(1)
            what = shlex.join(map(str, self.process.args))
            raise AssertionError(f"{what} does not stop:\n{self.log[-10_000:]}") from None
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(30)


class Servers:
    """The servers of a test: each of them is stopped, whatever becomes of the others.

    :param within: Seconds that each has to stop.
    """

    def __init__(self, within: float = 25.0) -> None:
        self._within = within
        self._failures: list[BaseException] = []
        self._stack = ExitStack()
        self._started: list[Served] = []

    @property
    def number(self) -> int:
        """How many servers were started."""
        return len(self._started)

    def start(
        self,
        command: list[str] | Callable[[int], list[str]],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        port: int = 0,
    ) -> Served:
        """Return the server that *command* starts, as soon as it takes connections.

        :param command: It, or what returns it for a port.
        :param log: Where its output goes, and in whose folder it runs.
        :param port: The port, one that is free unless said.
        """
        port = port or free_port()
        served = Served(command(port) if callable(command) else command, port, log, dict(env or {}))
        self._started.append(served)
        self._stack.callback(self._stop, served)
        served.wait_until_up()
        return served

    def _stop(self, served: Served) -> None:
        try:
            served.stop(self._within)
        except BaseException as error:
            self._failures.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them all, the last first, and wait for each.

        :raises BaseExceptionGroup: Some did not; each tells its command and its log.
        """
        for served in reversed(self._started):
            served.begin_to_stop()
        self._stack.close()
        if self._failures:
            text = f"{len(self._failures)} of {self.number} servers did not stop as they should"
            raise BaseExceptionGroup(text, self._failures)


def home(folder: Path) -> dict[str, str]:
    """Return the environment in which a gateway keeps its state in *folder*."""
    return {"HOME": str(folder), "XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": ""}
