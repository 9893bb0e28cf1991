"""Workers that the tests of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.gate import Gate, Make, hello


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Gate] = []

    def gate(app: Any = hello, **settings: Any) -> Gate:
        made.append(Gate(app, **settings))
        return made[-1]

    yield gate
    for each in made:
        each.close()


@pytest.fixture
def gate(make: Make) -> Gate:
    return make()
