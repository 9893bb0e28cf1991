"""The shares that services have of a worker's threads are those of the threads it really has."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgigate.config import build_services
from wsgigate.config.build import build
from wsgigate.config.load import load
from wsgigate.proxy.bulkhead import ThreadShareRules, ThreadShares
from wsgigate.servers import granian, gunicorn

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
    """Return what becomes the list of how many threads are shared."""
    made: list[int] = []

    class Counted(ThreadShares):
        def __init__(self, rules: ThreadShareRules) -> None:
            super().__init__(rules)
            made.append(rules.threads)

    monkeypatch.setattr(build_services, "ThreadShares", Counted)
    return made


@pytest.mark.parametrize(("threads", "shared"), [(None, 6), (32, 32), (1, 1)])
def test_under_gunicorn(
    threads: int | None,
    shared: int,
    file: str,
    shares: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gunicorn, "last_valid", None)
    assert gunicorn.settings(file, threads=threads)["threads"] == (threads or 6)
    gunicorn.application().close()
    assert shares == [shared]


@pytest.mark.parametrize(("threads", "shared"), [(None, 6), (32, 32), (1, 1)])
def test_under_granian(threads: int | None, shared: int, file: str, shares: list[int]) -> None:
    build(granian.overridden(load(file), None, threads), path=file).close()
    assert shares == [shared]
