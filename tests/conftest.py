"""What tests of all floors share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from wsgigate.testing.backend import Backend

# how long an example takes is the machine's doing
settings.register_profile("wsgigate", deadline=None)
settings.load_profile("wsgigate")


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Yield a backend that answers ``200 ok`` until told otherwise."""
    with Backend() as server:
        yield server
