"""The benchmark of identities runs, and measures each of its cases."""

from __future__ import annotations

from benchmarks.identity import costs


def test_each_case_is_measured() -> None:
    found = costs(calls=1, rounds=1)
    assert {"rules", "policy", "token, shared", "token, signed"} <= found.keys()
    assert all(cost < float("inf") for cost in found.values())
