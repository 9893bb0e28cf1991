"""Real servers: gateways under gunicorn as ``wsgigate run`` starts them, and apps behind them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

Serve = Callable[..., "Served"]


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> Any:
    """Return what *condition* returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


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

    def stop(self) -> None:
        """Stop it as an operator would; one that does not stop shows where its threads are."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(15)
        except subprocess.TimeoutExpired:
            for worker in self.workers():
                os.kill(worker, signal.SIGABRT)
            time.sleep(1)
            raise AssertionError(f"the server does not stop:\n{self.log[-10_000:]}") from None
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(5)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of gateways: ``serve(toml, workers=2, env={...}, server="granian")``."""
    yield from _starter(tmp_path)


@pytest.fixture(scope="module")
def serve_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return one whose gateways serve all the tests of a module."""
    yield from _starter(tmp_path_factory.mktemp("gateways"))


def _starter(folder: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(
        text: str, *, workers: int = 2, env: dict[str, str] | None = None, server: str = "gunicorn"
    ) -> Served:
        number = len(started)
        file = folder / f"gateway{number}.toml"
        file.write_text(text)
        port = free_port()
        command = [sys.executable, "-m", "wsgigate", "run", str(file)]
        command += ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
        command += ["--server", server]
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": ""}
        served = Served(command, port, folder / f"log{number}", home | (env or {}))
        started.append(served)
        served.file = file  # type: ignore[attr-defined]
        served.wait_until_up()
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture(scope="module")
def run_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return a starter of any server, for a module: ``run_for_all(source, *command)``.

    The command runs beside ``served.py``, which holds *source*; ``{port}`` in it is a free one.
    """
    started: list[Served] = []

    def start(source: str, *command: str) -> Served:
        folder = tmp_path_factory.mktemp("server")
        (folder / "served.py").write_text(source)
        port = free_port()
        filled = [sys.executable, *(part.format(port=port) for part in command)]
        served = Served(filled, port, folder / "log", {"PYTHONPATH": str(folder)})
        started.append(served)
        served.wait_until_up()
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def serve_app(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of apps under gunicorn: ``serve_app(source of a module with an app)``."""
    started: list[Served] = []

    def start(source: str, *arguments: str) -> Served:
        name = f"served{len(started)}"
        (tmp_path / f"{name}.py").write_text(source)
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", f"{name}:app", "-b", f"127.0.0.1:{port}"]
        command += arguments or ["--workers", "1", "--threads", "16"]
        served = Served(command, port, tmp_path / f"{name}.log", {"PYTHONPATH": str(tmp_path)})
        started.append(served)
        served.wait_until_up()
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def serve_command(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of servers of any kind: ``serve_command(lambda port: [...])``."""
    started: list[Served] = []

    def start(command: Callable[[int], list[str]], **env: str) -> Served:
        port = free_port()
        log = tmp_path / f"command{len(started)}.log"
        served = Served(command(port), port, log, {"HOME": str(tmp_path), **env})
        started.append(served)
        served.wait_until_up()
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def http() -> Iterator[requests.Session]:
    """Return a client that keeps its connections."""
    with requests.Session() as session:
        session.trust_env = False
        yield session
