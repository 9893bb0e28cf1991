"""Gateways with HTTP/2, under gunicorn and under granian, that serve the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.http2.gate import GATEWAY, Gate
from tests.support.certificates import make_certificate
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def gates(serve_for_all: Serve, certificate: Path) -> Iterator[Callable[[str], Gate]]:
    """Return what gives the gateway under gunicorn, or under granian: one of each for all."""
    made: dict[str, Gate] = {}
    with ExitStack() as stack:

        def gate(name: str) -> Gate:
            if name not in made:
                backend = stack.enter_context(Backend())
                text = GATEWAY.format(url=backend.url, certificate=certificate)
                if name == "granian":  # which is refused, as one connection can hold its threads
                    text = text.replace("[gateway]", '[gateway]\nself_check = "warn"', 1)
                made[name] = Gate(serve_for_all(text, workers=1, server=name), certificate, backend)
            made[name].backend.answers = [reply(b"ok")]
            made[name].backend.requests.clear()
            return made[name]

        yield gate


@pytest.fixture(params=["gunicorn", "granian"])
def gate(request: pytest.FixtureRequest, gates: Callable[[str], Gate]) -> Iterator[Gate]:
    made = gates(request.param)
    yield made
    if request.param == "gunicorn":  # granian tells of each response that was cut
        assert "Traceback" not in made.log


@pytest.fixture
def under_gunicorn(gates: Callable[[str], Gate]) -> Iterator[Gate]:
    made = gates("gunicorn")
    yield made
    assert "Traceback" not in made.log


@pytest.fixture
def under_granian(gates: Callable[[str], Gate]) -> Gate:
    return gates("granian")
