"""What of a gateway is out of service on purpose: as text that workers share, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["GATEWAY", "Notice", "check_scope", "noticed", "read", "switched"]

GATEWAY = "gateway"
"""The scope of all routes together."""

LONGEST = 10 * 365 * 86_400.0
"""For how many seconds it may last at most; for so long the store keeps it."""

MOST = 60_000
"""How many bytes of text all that is out of service may take; a store takes no more than 64 KiB."""

_SCOPE = re.compile(r"gateway|(?:service|route):[^\x00-\x1f\x7f]{1,200}")
_MESSAGE = re.compile(r"[^\x00-\x1f\x7f]{0,300}")


class Notice(NamedTuple):
    """What is told of a scope that is out of service.

    :ivar since: The store's time at which it was switched, in seconds.
    :ivar until: The time at which it ends by itself; ``None`` for never.
    :ivar message: One sentence for clients; empty for the usual one.
    """

    since: float
    until: float | None = None
    message: str = ""


def check_scope(scope: str) -> str:
    """Return *scope*: ``gateway``, ``service:NAME`` or ``route:NAME``.

    :raises ValueError: It is none of these.
    """
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise ValueError(f"scope: gateway, service:NAME or route:NAME, not {scope!r}")
    return scope


def read(value: bytes | None) -> dict[str, Notice]:
    """Return what *value* says, by scope; nothing when it says nothing that makes sense."""
    try:
        told = json.loads(value or b"{}")
        return {
            check_scope(scope): Notice(
                float(since), None if until is None else float(until), str(message)
            )
            for scope, (since, until, message) in told.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def switched(
    value: bytes | None,
    scope: str,
    now: float,
    *,
    on: bool,
    lasts: float | None = None,
    message: str = "",
) -> bytes | None:
    """Return what *value* becomes when *scope* is switched; ``None`` when nothing is left.

    What is over is left out. Switched on again, it goes on since when it was switched first.

    :param lasts: Seconds after which it ends by itself; ``None`` for never.
    :raises ValueError: One of the arguments can not be; says which.
    """
    check_scope(scope)
    if lasts is not None and not 0 < lasts <= LONGEST:
        raise ValueError(f"for: more than 0 seconds and at most ten years, not {lasts!r}")
    if not isinstance(message, str) or not _MESSAGE.fullmatch(message):
        raise ValueError("message: a text of one line, at most 300 characters")
    notices = {key: one for key, one in read(value).items() if _lasting(one, now)}
    if on:
        before = notices.get(scope)
        since = now if before is None else before.since
        notices[scope] = Notice(since, None if lasts is None else now + lasts, message)
    else:
        notices.pop(scope, None)
    if not notices:
        return None
    made = json.dumps(notices, separators=(",", ":")).encode()
    if on and len(made) > MOST:
        raise ValueError("scope: too much is out of service already")
    return made


def noticed(notices: Mapping[str, Notice], scopes: Iterable[str], now: float) -> Notice | None:
    """Return the notice of the first of *scopes* that is out of service."""
    for scope in scopes:
        notice = notices.get(scope)
        if notice is not None and _lasting(notice, now):
            return notice
    return None


def _lasting(notice: Notice, now: float) -> bool:
    return notice.until is None or now < notice.until
