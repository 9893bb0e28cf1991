"""Dates in HTTP fields."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["unix_time"]


def unix_time(text: str) -> float | None:
    """Return the Unix time of an HTTP date (RFC 9110 section 5.6.7).

    The obsolete formats have no time zone, and mean UTC as well; so does ``-0000``.

    :returns: ``None`` when it is malformed.
    """
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
