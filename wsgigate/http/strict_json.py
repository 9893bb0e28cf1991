"""JSON of tokens and keys, read strictly: no repeated names, no numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["TokenRejected", "read_object", "shown"]


class TokenRejected(Exception):
    """The token is not to be believed; says why, for the operator only."""


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*: no member twice, no number that is not finite.

    :param what: Names it in the reason.
    :raises TokenRejected: It is anything else.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refused,
        )
        if b"\\u" in data:  # half a surrogate pair would break whoever writes it down
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise TokenRejected(f"a {what} nested too deep") from None
    except ValueError as error:
        raise TokenRejected(f"a {what} that is no strict JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise TokenRejected(f"a {what} that is no object")
    return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member named twice")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number without end")
    return number


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def shown(value: object) -> str:
    """Return *value* as a log line can hold it: ASCII, escaped, not long."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
