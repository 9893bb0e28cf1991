"""The shares that services have of a worker's threads are those of the threads it really has."""

from __future__ import annotations

from pathlib import Path

import pytest
from werkzeug.test import Client

from wsgigate.config.build import build
from wsgigate.config.load import load
from wsgigate.gateway import Gateway
from wsgigate.integrations import granian, gunicorn

TEXT = """
[gateway]
threads = 6
[store]
url = "memory:"
[admin]
prefix = ""
[services.a]
instances = ["http://127.0.0.1:9"]
[services.b]
instances = ["http://127.0.0.1:9"]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(TEXT)
    return str(path)


def share(gateway: Gateway) -> int:
    services = Client(gateway).get("/services").get_json()["services"]
    gateway.close()
    [most] = {service["bulkhead"]["maxInFlight"] for service in services}
    return int(most)


@pytest.mark.parametrize(("threads", "most"), [(None, 3), (32, 16), (1, 1)])
def test_under_gunicorn(
    threads: int | None, most: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn, "_good", None)
    assert gunicorn.settings(file, threads=threads)["threads"] == (threads or 6)
    assert share(gunicorn.application()) == most


@pytest.mark.parametrize(("threads", "most"), [(None, 3), (32, 16), (1, 1)])
def test_under_granian(threads: int | None, most: int, file: str) -> None:
    assert share(build(granian._told(load(file), None, threads), path=file)) == most
