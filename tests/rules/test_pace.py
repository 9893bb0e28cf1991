"""The least rate of a response body."""

from __future__ import annotations

import pytest

from wsgigate.rules.pace import Pace, PaceRules, is_stream

DRIP = [(1.0, 1)] * 1000
"""A byte a second."""


@pytest.mark.parametrize(
    ("rules", "read_timeout", "parts", "ends_after"),
    [
        # The parts are (seconds that were waited for it, its bytes).
        (PaceRules(), 30, DRIP, 31),
        (PaceRules(), 5, DRIP, 31),  # the grace is no less than half a minute
        (PaceRules(), 300, DRIP, 304),  # an instance may be silent for that long
        (PaceRules(), 30, [(1.0, 99)] * 5000, 3000),  # too slow by a hundredth
        (PaceRules(), 30, [(1.0, 100)] * 5000, None),
        (PaceRules(), 30, [(0.0, 1)] * 100_000, None),  # the client takes it that slowly
        (PaceRules(), 30, [(29.0, 1), (0.0, 1 << 20), (29.0, 1), (29.0, 1)] * 100, None),
        (PaceRules(), 30, [(20.0, 1), (20.0, 1), (20.0, 1)], 2),
        (PaceRules(least=0), 30, DRIP, None),
        (PaceRules(least=0, total=10), 30, DRIP, 10),
        (PaceRules(total=10), 30, [(1.0, 1 << 20)] * 100, 10),  # however fast it is
        (PaceRules(total=3600), 30, DRIP, 31),
        (PaceRules(least=500, grace=1), 1, [(0.5, 100)] * 100, 4),
    ],
)
def test_a_body_ends_when_it_was_waited_for_too_long(
    rules: PaceRules, read_timeout: float, parts: list[tuple[float, int]], ends_after: int | None
) -> None:
    pace = Pace(rules, read_timeout)
    ended = None
    for number, (seconds, size) in enumerate(parts):
        if pace.left() <= 0:
            ended = number
            break
        pace.waited += seconds
        pace.received += size
    assert ended == ends_after


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": -1}, "min_response_rate is 0 bytes a second or more"),
        ({"least": float("nan")}, "min_response_rate is 0"),
        ({"least": True}, "min_response_rate is 0"),
        ({"grace": 0}, "grace is more than 0"),
        ({"total": 0}, "response_timeout is more than 0"),
        ({"total": float("inf")}, "response_timeout is more than 0"),
    ],
)
def test_invalid_rules_raise(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaceRules(**settings)


@pytest.mark.parametrize(
    ("fields", "stream"),
    [
        ([], False),
        ([("Content-Type", "text/html; charset=utf-8")], False),
        ([("content-type", "text/event-stream")], True),
        ([("Content-Type", "Text/Event-Stream; charset=utf-8")], True),
        ([("Content-Type", "application/x-ndjson")], True),
        ([("Content-Type", "multipart/x-mixed-replace; boundary=frame")], True),
        ([("Content-Type", "application/grpc+proto")], True),
        ([("Content-Type", "text/plain"), ("X-Accel-Buffering", "no")], True),
        ([("X-Accel-Buffering", "yes")], False),
        ([("X-Kind", "text/event-stream")], False),
    ],
)
def test_streams_of_events_are_slow_by_design(fields: list[tuple[str, str]], stream: bool) -> None:
    assert is_stream(fields) is stream


def test_rules_without_any_limit_limit_nothing() -> None:
    assert PaceRules().limits
    assert PaceRules(least=0, total=1).limits
    assert not PaceRules(least=0).limits
