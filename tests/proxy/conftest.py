"""A forwarder in front of a backend, called the way a server calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.proxy.clients import Reader, ServiceClient
from wsgigate.client.adapter import Adapter, Sessions, gateway_session
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.retry import RetryRules
from wsgigate.testing import FakeClock

Forward = Callable[..., ServiceClient]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    """Yield sessions over the gateway's adapter."""
    opened = Sessions()
    yield opened
    opened.close()


@pytest.fixture
def forward(sessions: Sessions) -> Forward:
    """Return a maker of clients of a forwarder to a URL."""
    return lambda url, **options: client_of(url, sessions, **options)


@pytest.fixture
def own() -> Iterator[Forward]:
    """Yield such a maker whose clients have sessions of their own, with the ``adapter`` given."""
    opened: list[Sessions] = []

    def make(url: str, *, adapter: Adapter | None = None, **options: Any) -> ServiceClient:
        def session() -> requests.Session:
            made = gateway_session()
            for prefix in list(made.adapters) if adapter is not None else ():
                made.mount(prefix, adapter)  # type: ignore[arg-type]
            return made

        opened.append(Sessions(session))
        return client_of(url, opened[-1], **options)

    yield make
    for each in opened:
        each.close()


def client_of(url: str, sessions: Sessions, **options: Any) -> ServiceClient:
    pool = Pool("svc", [Instance(url)])
    client = ServiceClient(Forwarder(pool, sessions=sessions, **options), use_cookies=False)
    client.pool = pool
    return client


@pytest.fixture
def retrying(sessions: Sessions, clock: FakeClock) -> Forward:
    """Return a maker of clients of a forwarder that sends to the *urls* in turn, with retries."""

    def make(
        *urls: str,
        rules: RetryRules | None = None,
        given: dict[str, Any] | None = None,
        **more: Any,
    ) -> ServiceClient:
        waited: list[float] = []
        resilience = Resilience(
            retry=rules or RetryRules(),
            clock=clock,
            sleep=waited.append,
            random=lambda: 0.5,
            **(given or {}),
        )
        instances = [Instance(url) for url in urls]
        pool = Pool("svc", instances, balance="round-robin", random=lambda: 0.0)
        client = Reader(
            Forwarder(pool, sessions=sessions, resilience=resilience, **more), use_cookies=False
        )
        client.waited, client.pool = waited, pool
        return client

    return make
