"""The benchmark of the Flask extension runs, and measures each of its cases."""

from __future__ import annotations

from benchmarks.flask_views import costs


def test_each_case_is_measured() -> None:
    found = costs(calls=1, rounds=1)
    assert {"bare", "extension", "mounted gateway", "requires()", "limit()"} <= found.keys()
    assert all(cost < float("inf") for cost in found.values())
