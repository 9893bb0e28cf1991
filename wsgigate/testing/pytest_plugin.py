"""Fixtures for pytest, which loads this module where wsgigate is installed.

The rest of the package is not imported before a test uses a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

__all__ = ["wsgigate_off", "wsgigate_reset"]


@pytest.fixture
def wsgigate_reset() -> Iterator[None]:
    """Reset quotas, concurrent requests and circuits, before the test and after it."""
    from wsgigate.testing.limits import reset

    reset()
    yield
    reset()


@pytest.fixture
def wsgigate_off() -> Iterator[None]:
    """Disable limiters, breakers and shedders during the test."""
    from wsgigate.testing.limits import limits_off

    with limits_off():
        yield
