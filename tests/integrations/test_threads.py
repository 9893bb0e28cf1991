"""The shares that services have of a worker's threads are those of the threads it really has."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgigate.config import services
from wsgigate.config.build import build
from wsgigate.config.load import load
from wsgigate.integrations import granian, gunicorn
from wsgigate.proxy.bulkhead import Bulkhead

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


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what becomes the list of how much each service may hold."""
    made: list[int] = []

    class Counted(Bulkhead):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            made.append(most)

    monkeypatch.setattr(services, "Bulkhead", Counted)
    return made


@pytest.mark.parametrize(("threads", "most"), [(None, 3), (32, 16), (1, 1)])
def test_under_gunicorn(
    threads: int | None,
    most: int,
    file: str,
    shares: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gunicorn, "_good", None)
    assert gunicorn.settings(file, threads=threads)["threads"] == (threads or 6)
    gunicorn.application().close()
    assert shares == [most, most]


@pytest.mark.parametrize(("threads", "most"), [(None, 3), (32, 16), (1, 1)])
def test_under_granian(threads: int | None, most: int, file: str, shares: list[int]) -> None:
    build(granian._told(load(file), None, threads), path=file).close()
    assert shares == [most, most]
