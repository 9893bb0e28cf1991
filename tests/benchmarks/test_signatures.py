"""The benchmark of signed requests and proofs runs, and measures each of its cases."""

from __future__ import annotations

from benchmarks.signatures import costs


def test_each_case_is_measured() -> None:
    found = costs(calls=1, rounds=1)
    assert {"signature", "the library alone", "proof", "bearer", "bearer, dpop on"} <= found.keys()
    assert all(cost < float("inf") for cost in found.values())
