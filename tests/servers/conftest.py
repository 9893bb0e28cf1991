"""Workers and connections that the tests of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.gate import Gate, Make, hello
from tests.servers.peer import MakePeer, Peer


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


@pytest.fixture
def make_peer() -> Iterator[MakePeer]:
    made: list[Peer] = []

    def one(**options: Any) -> Peer:
        made.append(Peer(**options))
        return made[-1]

    yield one
    for each in made:
        each.client.close()
        each.ours.close()


@pytest.fixture
def peer(make_peer: MakePeer) -> Peer:
    return make_peer()
