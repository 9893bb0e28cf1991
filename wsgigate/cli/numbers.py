"""Argument types of the command line: numbers and durations within bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from wsgigate.server_check import MOST_THREADS, MOST_WORKERS
from wsgigate.units import parse_duration

__all__ = ["drain", "port", "threads", "weight", "workers"]


MOST_SECONDS_TO_DRAIN = 300


def _whole(least: int, most: int, reason: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers from *least* to *most*.

    :param reason: The reason for the upper bound, for the error.
    """
    expected = f"expected a whole number from {least} to {most}{reason and f' ({reason})'}"

    def read(text: str) -> int:
        # int() also accepts "1_000" and digits of other scripts
        digits = text.removeprefix("-")
        number = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{expected}, got {text[:40]!r}")
        return number

    return read


def drain(text: str) -> str:
    """Return *text* if it is a duration of 0 to 300 seconds."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds > MOST_SECONDS_TO_DRAIN:
        raise argparse.ArgumentTypeError(f"expected at most 5 minutes, got {text!r}")
    return text


workers = _whole(1, MOST_WORKERS, "each is a process of tens of MiB")
threads = _whole(1, MOST_THREADS, "per process")
port = _whole(1, 65535)
weight = _whole(0, 65535)
