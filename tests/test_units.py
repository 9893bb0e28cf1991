"""Sizes and durations are read as people write them, or refused in their words."""

from __future__ import annotations

import pytest

from wsgigate.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (512, 512),
        ("0", 0),
        ("1024", 1024),
        ("10MiB", 10 * 1024**2),
        ("64 KiB", 65536),
        ("64kib", 65536),
        ("1GB", 10**9),
        ("5 mb", 5_000_000),
        ("1TiB", 1024**4),
        ("12B", 12),
        ("1.5KiB", 1536),
        (" 1KB ", 1000),
    ],
)
def test_a_size_is_read_in_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "10M", "10 MiBs", "-1", "+1", "1e3", "0x10", "1_000", "1,5KB", "٣KB", "1.2.3KB",
     "1.5", "0.3B", "10  MiB", -1, True, None, 1.5, "9" * 20],
)  # fmt: skip
def test_a_malformed_size_raises(text):
    with pytest.raises(ValueError, match=r"size|bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("1.5", 1.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("2d", 172800.0),
        ("1d2h3m4s5ms", 93784.005),
        ("1m500ms", 60.5),
        ("0s", 0.0),
        (" 10s ", 10.0),
    ],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "30 parsecs", "5m5m", "30m1h", "1ms1s", "-3s", "1..5s", ".5s", "1e3s", "1 2", "٣s",
     "5min", "inf", "nan", -1, float("inf"), float("nan"), True, None, [], "9" * 20 + "s"],
)  # fmt: skip
def test_a_malformed_duration_raises(text):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
