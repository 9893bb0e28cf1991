"""Records of recent errors: what they hold, and that they are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from wsgigate.telemetry.recent_errors import encoded_error, matching_errors, recent_errors

TEXTS = {
    "request_id": "r-1",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "method": "GET",
    "route": "orders",
    "service": "shop",
    "instance": "127.0.0.1:9001",
    "reason": "connection refused",
    "error": "",
}


def test_a_record_returns_as_it_was_kept() -> None:
    def events(limit: int) -> Iterable[tuple[float, bytes]]:
        return [(1764547200.0, encoded_error(502, TEXTS))]

    assert recent_errors(events) == [{"time": "2025-12-01T00:00:00.000Z", "status": 502, **TEXTS}]


@pytest.mark.parametrize("character", ["a", '"', "\0", "é", "\U0001f600", "\ud800"])
def test_long_texts_are_cut(character: str) -> None:
    data = encoded_error(500, dict.fromkeys(TEXTS, character * 5000))
    assert len(data) <= 1000
    read = json.loads(data)
    assert read["status"] == 500
    assert set(read["reason"]) == {character}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"status":"x"}', b"\xff"])
def test_records_that_cannot_be_read_are_left_out(data: bytes) -> None:
    kept = encoded_error(500, TEXTS)
    assert len(recent_errors(lambda limit: [(2.0, data), (1.0, kept)])) == 1


def test_the_records_of_one_request() -> None:
    found = recent_errors(
        lambda limit: [
            (2.0, encoded_error(500, {**TEXTS, "request_id": "r-2"})),
            (1.0, encoded_error(500, TEXTS)),
        ]
    )
    assert [each["time"] for each in matching_errors(found, "r-1")] == ["1970-01-01T00:00:01.000Z"]
    assert matching_errors(found, "") == found
    assert matching_errors(found, "r") == []
