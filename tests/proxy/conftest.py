"""A forwarder in front of a backend, called the way a server calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from werkzeug.test import Client

from wsgigate.client.adapter import Adapter, Sessions, gateway_session
from wsgigate.discovery import Instance
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.urllib3_adapter import UrllibAdapter

Forward = Callable[..., Client]

URLLIB_CAN_NOT = (
    "connect to Unix sockets",
    "open WebSockets",
    "resend a request after a reused connection turned out to be closed",
    "limit the total time of a response head that arrives byte by byte",
    "limit the number and the age of connections to an instance",
    "stop an upload when the response arrives before its end",
    "reject everything that it ignores, such as control characters in chunk extensions",
)
"""What ``requests``' own adapter does not do, as the documentation lists it too. Tests of it use
``own``, all others both."""


def urllib_session() -> requests.Session:
    session = gateway_session()
    for prefix in ("http://", "https://"):
        session.mount(prefix, UrllibAdapter())
    return session


@pytest.fixture(params=["own", "urllib3"])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    """Yield sessions over our own adapter, and once more over that of ``requests``."""
    opened = Sessions(gateway_session if request.param == "own" else urllib_session)
    yield opened
    opened.close()


@pytest.fixture
def forward(sessions: Sessions) -> Forward:
    """Return a maker of clients of a forwarder to a URL."""
    return lambda url, **options: client_of(url, sessions, **options)


@pytest.fixture
def own() -> Iterator[Forward]:
    """Yield such a maker over our own adapter, with its settings in ``adapter``."""
    opened: list[Sessions] = []

    def make(url: str, *, adapter: Adapter | None = None, **options: Any) -> Client:
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


def client_of(url: str, sessions: Sessions, **options: Any) -> Client:
    pool = Pool("svc", [Instance(url)])
    client = Client(Forwarder(pool, sessions=sessions, **options), use_cookies=False)
    client.pool = pool  # type: ignore[attr-defined]
    return client
