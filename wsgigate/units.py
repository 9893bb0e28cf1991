"""Sizes and durations with units, such as ``"64KiB"`` and ``"1h30m"``, and ISO 8601 times."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

__all__ = ["iso_time", "parse_duration", "parse_size"]


def iso_time(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC with milliseconds: ``2025-01-31T12:00:00.000Z``."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{thousandths:03d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}

_DURATION = re.compile(
    r"(?:(?P<d>[0-9.]+) ?d)? ?(?:(?P<h>[0-9.]+) ?h)? ?(?:(?P<m>[0-9.]+) ?m(?!s))? ?"
    r"(?:(?P<s>[0-9.]+) ?s)? ?(?:(?P<ms>[0-9.]+) ?ms)?"
)

_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_size(value: int | str) -> int:
    """Return *value* as a number of bytes.

    ``KB``, ``MB``, ``GB`` and ``TB`` count in thousands, ``KiB``, ``MiB``, ``GiB`` and ``TiB`` in
    1024s; the case of the letters does not matter. A bare number is bytes.

    :raises ValueError: *value* is not a size, is negative, or is not a whole number of bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"a size must be 0 or more bytes, got {value}")
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = _BYTES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f'expected a size such as "64KiB" or "10MB", got {value!r}')
    size = Decimal(match[1]) * unit
    if size != int(size):
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def parse_duration(value: float | str) -> float:
    """Return *value* as seconds.

    The units are days, hours, minutes, seconds and milliseconds (``d h m s ms``), longer units
    before shorter ones, each at most once: ``"1h30m"``, ``"1.5s"``, ``"250ms"``. A bare number is
    seconds.

    :raises ValueError: *value* is not a duration, is negative or is infinite.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"a duration must be 0 or more seconds, got {value}")
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    parts = {unit: part for unit, part in match.groupdict().items() if part} if match else {}
    if not parts or not all(map(_NUMBER.fullmatch, parts.values())):
        raise ValueError(f'expected a duration such as "30s", "5m" or "250ms", got {value!r}')
    return math.fsum(float(part) * _SECONDS[unit] for unit, part in parts.items())
