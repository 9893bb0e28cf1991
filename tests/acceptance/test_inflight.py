"""Requests in flight to a slow service, by the benchmark that measures what each costs."""

from __future__ import annotations

import pytest

from benchmarks.inflight import KINDS, hold


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_holds_requests_to_a_slow_service_at_once(kind: str) -> None:
    """One after another they would take longer than a client waits."""
    assert hold(kind, 60, spread=0.1).failed == 0
