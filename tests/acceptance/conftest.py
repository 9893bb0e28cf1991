"""Real servers: gateways under gunicorn as ``wsgigate run`` starts them, and apps behind them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from tests.support.ports import free_port

Serve = Callable[..., "Served"]


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> Any:
    """Return what *condition* returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return found


class Served:
    """A server in a session of its own; ``log`` is what it wrote."""

    def __init__(self, command: list[str], port: int, log: Path, env: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log_file = log
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

    def workers(self) -> list[int]:
        """Return the process ids of the workers, oldest first."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in children.split()]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, within: float = 15.0) -> None:
        """Stop it as an operator would; one that does not stop shows where its threads are."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(within)
        except subprocess.TimeoutExpired:
            for process in (*self.workers(), self.process.pid):
                os.kill(process, signal.SIGABRT)
            time.sleep(1)
            what = shlex.join(map(str, self.process.args))  # type: ignore[arg-type]
            raise AssertionError(f"{what} does not stop:\n{self.log[-10_000:]}") from None
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(5)


class Servers:
    """The servers of a test: each of them is stopped, whatever becomes of the others.

    :param within: Seconds that each has to stop.
    """

    def __init__(self, within: float = 15.0) -> None:
        self._within = within
        self._failures: list[BaseException] = []
        self._stack = ExitStack()
        self.number = 0

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
        self.number += 1
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
        """Stop them all, the last first.

        :raises BaseExceptionGroup: Some did not; each tells its command and its log.
        """
        self._stack.close()
        if self._failures:
            text = f"{len(self._failures)} of {self.number} servers did not stop as they should"
            raise BaseExceptionGroup(text, self._failures)


def home(folder: Path) -> dict[str, str]:
    """Return the environment in which a gateway keeps its state in *folder*."""
    return {"HOME": str(folder), "XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": ""}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of gateways: ``serve(toml, workers=2, env={...}, server="granian")``."""
    with Servers() as servers:
        yield _gateways(servers, tmp_path)


@pytest.fixture(scope="module")
def serve_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return one whose gateways serve all the tests of a module."""
    with Servers() as servers:
        yield _gateways(servers, tmp_path_factory.mktemp("gateways"))


def _gateways(servers: Servers, folder: Path) -> Serve:
    def start(
        text: str, *, workers: int = 2, env: dict[str, str] | None = None, server: str = "gunicorn"
    ) -> Served:
        number = servers.number
        file = folder / f"gateway{number}.toml"
        file.write_text(text)

        def command(port: int) -> list[str]:
            run = [sys.executable, "-m", "wsgigate", "run", str(file), "--server", server]
            return [*run, "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]

        served = servers.start(command, folder / f"log{number}", home(folder) | (env or {}))
        served.file = file  # type: ignore[attr-defined]
        return served

    return start


@pytest.fixture(scope="module")
def run_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return a starter of any server, for a module: ``run_for_all(source, *command)``.

    The command runs beside ``served.py``, which holds *source*; ``{port}`` in it is a free one.
    """
    with Servers() as servers:

        def start(source: str, *command: str) -> Served:
            folder = tmp_path_factory.mktemp("server")
            (folder / "served.py").write_text(source)
            return servers.start(
                lambda port: [sys.executable, *(part.format(port=port) for part in command)],
                folder / "log",
                {"PYTHONPATH": str(folder)},
            )

        yield start


@pytest.fixture
def serve_app(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of apps under gunicorn: ``serve_app(source of a module with an app)``."""
    with Servers() as servers:

        def start(source: str, *arguments: str) -> Served:
            name = f"served{servers.number}"
            (tmp_path / f"{name}.py").write_text(source)
            options = arguments or ("--workers", "1", "--threads", "16")
            gunicorn = [sys.executable, "-m", "gunicorn", f"{name}:app"]
            return servers.start(
                lambda port: [*gunicorn, "-b", f"127.0.0.1:{port}", *options],
                tmp_path / f"{name}.log",
                {"PYTHONPATH": str(tmp_path)},
            )

        yield start


@pytest.fixture
def serve_command(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of servers of any kind: ``serve_command(lambda port: [...])``."""
    with Servers() as servers:

        def start(command: Callable[[int], list[str]], **env: str) -> Served:
            log = tmp_path / f"command{servers.number}.log"
            return servers.start(command, log, {"HOME": str(tmp_path), **env})

        yield start


@pytest.fixture
def http() -> Iterator[requests.Session]:
    """Return a client that keeps its connections."""
    with requests.Session() as session:
        session.trust_env = False
        yield session
