"""A forwarder in front of a backend, called the way a server calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.discovery import Instance
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.transport import Sessions


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    opened = Sessions()
    yield opened
    opened.close()


@pytest.fixture
def forward(sessions: Sessions) -> Callable[..., Client]:
    """Return a maker of clients of a forwarder to a URL."""

    def make(url: str, **options: Any) -> Client:
        pool = Pool("svc", [Instance(url)])
        forwarder = Forwarder(pool, sessions=sessions, **options)
        client = Client(forwarder, use_cookies=False)
        client.pool = pool  # type: ignore[attr-defined]
        return client

    return make
