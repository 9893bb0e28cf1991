"""Requests that end at the gateway: methods never passed on, and Max-Forwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from werkzeug.test import Client

from wsgigate.testing.backend import Backend

Forward = Callable[..., Client]


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_a_forwarder_alone_never_passes_these_on(
    method: str, backend: Backend, forward: Forward
) -> None:
    """F13, F14"""
    assert forward(backend.url).open("/", method=method).status_code == 405
    assert backend.requests == []


@pytest.mark.parametrize("hops", ["0", " 0 ", "000"])
def test_options_that_may_go_no_further_are_answered_here(
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
def test_each_hop_takes_one_off_for_options(
    method: str, before: str, after: str, backend: Backend, forward: Forward
) -> None:
    forward(backend.url).open("/", method=method, headers={"Max-Forwards": before})
    assert backend.requests[0].value("Max-Forwards") == after


@pytest.mark.parametrize("hops", ["-1", "x", "1,2", "", "9" * 19, "\xb2"])
def test_hops_that_are_no_number_are_refused(hops: str, backend: Backend, forward: Forward) -> None:
    answer = forward(backend.url).options("/", headers={"Max-Forwards": hops})
    assert answer.status_code == 400
    assert backend.requests == []
