"""Loggers that tests silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["silence"]


def silence(name: str) -> Any:
    """Return a fixture that disables a logger in all tests of the module that assigns it."""

    @pytest.fixture(autouse=True)
    def silent() -> Iterator[None]:
        log = logging.getLogger(name)
        log.disabled = True
        yield
        log.disabled = False

    return silent
