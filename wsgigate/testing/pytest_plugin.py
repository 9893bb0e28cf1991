"""Fixtures for pytest, which loads this module where wsgigate is installed.

Nothing else of the package is loaded before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

__all__ = ["wsgigate_off", "wsgigate_reset"]


@pytest.fixture
def wsgigate_reset() -> Iterator[None]:
    """Have limits, requests at a time and circuits begin anew, before the test and after it."""
    from wsgigate.testing.limits import reset

    reset()
    yield
    reset()


@pytest.fixture
def wsgigate_off() -> Iterator[None]:
    """Switch off limiters, breakers and shedders for the time of the test."""
    from wsgigate.testing.limits import limits_off

    with limits_off():
        yield
