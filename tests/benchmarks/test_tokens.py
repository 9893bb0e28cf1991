"""The benchmark of tokens runs, and measures each of its cases."""

from __future__ import annotations

from benchmarks.tokens import costs


def test_each_case_is_measured() -> None:
    found = costs(calls=1, rounds=1)
    assert {"cached", "cached, deny list", "RS256 miss", "PyJWT decodes"} <= found.keys()
