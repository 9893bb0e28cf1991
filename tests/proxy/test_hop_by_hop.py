"""Methods that are never forwarded, and ``Max-Forwards``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.proxy.clients import ServiceClient
from wsgigate.testing.backend import Backend

Forward = Callable[..., ServiceClient]


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_methods_that_must_not_be_forwarded_are_rejected(
    method: str, backend: Backend, forward: Forward
) -> None:
    """F13, F14"""
    assert forward(backend.url).open("/", method=method).status_code == 405
    assert backend.requests == []


@pytest.mark.parametrize("hops", ["0", " 0 ", "000"])
def test_options_with_max_forwards_0_is_answered_by_the_gateway(
    hops: str, backend: Backend, forward: Forward
) -> None:
    """F14"""
    client = forward(backend.url)
    answer = client.options("/", headers={"Max-Forwards": hops})
    assert (answer.status_code, answer.data) == (204, b"")
    assert backend.requests == []


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [("OPTIONS", "1", "0"), ("OPTIONS", "10", "9"), ("GET", "0", "0"), ("GET", "x", "x")],
)
def test_max_forwards_of_options_is_decremented(
    method: str, before: str, after: str, backend: Backend, forward: Forward
) -> None:
    forward(backend.url).open("/", method=method, headers={"Max-Forwards": before})
    assert backend.requests[0].value("Max-Forwards") == after


@pytest.mark.parametrize("hops", ["-1", "x", "1,2", "", "9" * 19, "\xb2"])
def test_an_invalid_max_forwards_is_rejected(hops: str, backend: Backend, forward: Forward) -> None:
    answer = forward(backend.url).options("/", headers={"Max-Forwards": hops})
    assert answer.status_code == 400
    assert backend.requests == []
