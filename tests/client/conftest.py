"""The client is tested through forwarders, as those of the proxy are, and on pairs of sockets."""

from collections.abc import Iterator

import pytest

from tests.client.pairs import Pairs
from tests.proxy.conftest import forward, own, sessions

__all__ = ["forward", "own", "sessions"]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()
