"""Strict JSON: no duplicate names, no numbers outside the JSON grammar."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["InvalidJson", "read_object", "shown"]


class InvalidJson(ValueError):
    """The data is not a strict JSON object; the message names the cause."""


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*, without duplicate members and infinite numbers.

    :param what: Its name in the error message.
    :raises InvalidJson: *data* is anything else.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refused,
        )
        if b"\\u" in data:  # an unpaired surrogate cannot be encoded as UTF-8
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InvalidJson(f"a {what} that is nested too deeply") from None
    except ValueError as error:
        raise InvalidJson(f"a {what} that is not strict JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise InvalidJson(f"a {what} that is not an object")
    return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a duplicate member")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def shown(value: object) -> str:
    """Return *value* for a log line: ASCII, escaped, at most 80 characters."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
