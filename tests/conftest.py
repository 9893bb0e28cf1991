"""What tests of all floors share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wsgigate.testing.backend import Backend


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Yield a backend that answers ``200 ok`` until told otherwise."""
    with Backend() as server:
        yield server
