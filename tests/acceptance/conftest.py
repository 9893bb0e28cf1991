"""Real servers: gateways under gunicorn as ``wsgigate run`` starts them, and apps behind them."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.servers import Served, Servers, home
from wsgigate.config.model import GatewayTable
from wsgigate.runtime.folders import folder_name

Serve = Callable[..., "Served"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a starter of gateways: ``serve(toml, workers=2, env={...}, server="granian")``."""
    with Servers() as servers:
        yield _gateways(servers, tmp_path)
    _remove_metrics(tmp_path)


@pytest.fixture(scope="module")
def serve_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return one whose gateways serve all the tests of a module."""
    folder = tmp_path_factory.mktemp("gateways")
    with Servers() as servers:
        yield _gateways(servers, folder)
    _remove_metrics(folder)


def _remove_metrics(folder: Path) -> None:
    """Remove the metrics of the gateways of *folder*: memory that is kept for a day."""
    for file in folder.glob("gateway*.toml"):
        try:
            name = tomllib.loads(file.read_text()).get("gateway", {}).get("name")
        except ValueError:  # a test has broken the file
            name = None
        owner = f"{name or GatewayTable().name} {file}"
        place = f"/dev/shm/wsgigate-{os.geteuid()}/{folder_name(owner)}.metrics"
        shutil.rmtree(place, ignore_errors=True)


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
        served.file = file
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
            return servers.start(command, log, {**home(tmp_path), **env})

        yield start


@pytest.fixture
def http() -> Iterator[requests.Session]:
    """Return a client that keeps its connections."""
    with requests.Session() as session:
        session.trust_env = False
        yield session
