"""The benchmark of authenticators runs, and measures each of its cases."""

from __future__ import annotations

from benchmarks.credentials import costs


def test_each_case_is_measured() -> None:
    found = costs(calls=1, rounds=1)
    assert {
        "token",
        "token, first of any",
        "client certificate",
        "webhook of 1 KiB",
    } <= found.keys()
    assert all(cost < float("inf") for cost in found.values())
