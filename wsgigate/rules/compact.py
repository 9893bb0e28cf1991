"""The compact form of a signed token (RFC 7515 section 7.1), read more strictly than it must be.

Whatever two readers could understand in two ways is refused: a member named twice, padding, a
number that is none. What is refused here never reaches a cryptographic library.
"""

from __future__ import annotations

import json
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

__all__ = ["MAX_LENGTH", "Compact", "TokenRejected", "read_compact", "read_object", "shown"]

MAX_LENGTH = 8192
"""The longest token that is looked at, in characters."""

_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class TokenRejected(Exception):
    """The token is not to be believed; says why, for the operator only."""


class Compact(NamedTuple):
    """A token in its parts, not verified yet."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def read_compact(token: str) -> Compact:
    """Return the parts of *token*; of its content only the header is read.

    :raises TokenRejected: It has another form.
    """
    if len(token) > MAX_LENGTH:
        raise TokenRejected(f"a token of {len(token)} characters")
    parts = _PARTS.fullmatch(token)
    if parts is None:
        raise TokenRejected("not three parts of base64url")
    header, payload, signature = map(_decoded, parts.groups())
    signed = token[: parts.end(2)].encode("ascii")
    return Compact(read_object(header, "header"), payload, signed, signature)


def _decoded(part: str) -> bytes:
    try:
        data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise TokenRejected("a part that is no base64url") from None
    # Bits left over at the end would let one token be written in several ways.
    if urlsafe_b64encode(data).rstrip(b"=") != part.encode("ascii"):
        raise TokenRejected("a part with bits left over")
    return data


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
