"""The servers that the pages start, run as they are printed, but for ports that are free here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jwt
import pytest
import requests

from tests.acceptance.registries import RegistryServer
from tests.docs.pages import NAMED, commands, write_all
from tests.docs.test_docs import SETTINGS
from tests.support.servers import Served, Servers, home
from wsgigate.testing.backend import Backend

SECRET = "change me: at least 32 bytes long"


@pytest.fixture
def run(tmp_path: Path, backend: Backend) -> Iterator[Callable[..., Served]]:
    """Return a starter of what a console block starts: ``run("limited")``."""

    def command(name: str, port: int) -> list[str]:
        write_all(tmp_path)
        lines = commands(NAMED[f"{name}.sh"])
        lines[-1] = f"exec {lines[-1]}"
        if "--bind" not in lines[-1] and lines[-1].startswith("exec gunicorn --"):
            lines[-1] += " --bind 127.0.0.1:8000"
        (tmp_path / f"{name}.sh").write_text("\n".join(lines))
        ports = {"8000": port, "3000": port, "3003": backend.port, "3013": backend.port}
        for file in (f for end in ("py", "toml", "sh") for f in tmp_path.rglob(f"*.{end}")):
            text = file.read_text().replace(', "http://127.0.0.1:3013"', "")
            for printed, free in ports.items():
                text = re.sub(rf"(?<=[:= ]){printed}\b", str(free), text)
            file.write_text(text)
        return ["sh", "-e", str(tmp_path / f"{name}.sh")]

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, **home(tmp_path)}
    with Servers() as servers:
        yield lambda name, more=None: servers.start(
            partial(command, name), tmp_path / "log", {**env, **(more or {})}
        )


def bearer() -> dict[str, str]:
    token = jwt.encode({"sub": "7", "exp": 2**33}, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


def test_workers_count_together(run: Callable[[str], Served]) -> None:
    served = run("limited")
    counts = [
        int(requests.get(served.url, timeout=20).headers["X-RateLimit-Remaining"]) for _ in range(5)
    ]
    assert counts == [99, 98, 97, 96, 95]


@pytest.mark.parametrize("name", ["monolith", "gate_worker"])
def test_a_gateway_around_an_app_gives_both_the_caller(
    name: str, run: Callable[[str], Served], backend: Backend
) -> None:
    served = run(name)
    assert requests.get(served.url, timeout=20).text == "Still served here.\n"
    assert requests.get(f"{served.url}/me", timeout=20).status_code == 401
    assert requests.get(f"{served.url}/me", headers=bearer(), timeout=20).text == "You are 7.\n"
    forged = {**bearer(), "X-User-Id": "1"}
    assert requests.get(f"{served.url}/orders/7", headers=forged, timeout=20).text == "ok"
    assert backend.requests[-1].value("X-User-Id") == "7"


def test_a_gateway_of_its_own(run: Callable[[str], Served], backend: Backend) -> None:
    served = run("shop")
    orders = f"{served.url}/api/orders/7"
    assert requests.get(orders, timeout=20).status_code == 401
    assert requests.get(orders, headers=bearer(), timeout=20).text == "ok"
    targets = {request.target for request in backend.requests}
    assert "/7" in targets <= {"/7", "/health"}
    assert requests.get(f"{served.url}/_gateway/services", timeout=20).json()["count"] == 1


@pytest.mark.parametrize("name", ["run", "gunicorn", "gevent"])
def test_a_gateway_runs_by_either_command(name: str, run: Callable[[str], Served]) -> None:
    served = run(name)
    assert requests.get(f"{served.url}/orders", timeout=20).text == "ok"
    assert requests.get(f"{served.url}/_gateway/health", timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("registered", "users"),
        ("registered_django", "users"),
        ("registered_gunicorn", "users"),
        ("register", "files"),
    ],
)
def test_a_service_is_registered_for_as_long_as_it_serves(
    name: str, service: str, run: Callable[..., Served], tmp_path: Path
) -> None:
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "settings.py").write_text(SETTINGS)
    with RegistryServer() as registry:
        served = run(name, registry.env())
        instance = registry.wait_until("UP", service)
        assert (instance.host, instance.port) == ("127.0.0.1", served.port)
        served.stop()
        registry.wait_until_gone(service)
