"""The shapes of a Redis server's answers, one predicate for each command.

An answer can be well-formed and still be useless: from a proxy that answers in place of the server,
a script replaced by another program, or a connection out of step. Each answer is checked before it
is used, so that one of another shape is a failure of the store, like an outage, and never an
exception in the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgigate.store import VALUE_BYTES

__all__ = [
    "NAMES_BYTES",
    "SLOTS_BYTES",
    "is_address",
    "is_flag",
    "is_page",
    "is_role",
    "is_slots",
    "is_value",
    "is_value_and_time",
    "verdicts",
]

NAMES_BYTES = 4 * 1024 * 1024
"""Maximum bytes of a page of names: a thousand of the longest take an eighth of it."""

SLOTS_BYTES = 16 * 1024 * 1024
"""Maximum bytes of a cluster's map of slots: 16,384 ranges of a kilobyte each."""

SLOTS = 16_384

_INTEGERS = {int}
_LATEST = 2**53  # what a Lua number holds exactly, in microseconds: in the year 2255
_LONGEST_NUMBER = 20  # digits
_LONGEST_HOST = 255


def is_value(answer: Any) -> bool:
    """Return whether *answer* is one to ``GET``."""
    return answer is None or (answer.__class__ is bytes and len(answer) <= VALUE_BYTES)


def is_value_and_time(answer: Any) -> bool:
    """Return whether *answer* is one to the script that reads: a value and ``TIME``."""
    if answer.__class__ is not list or len(answer) != 2:
        return False
    value, time = answer
    return (
        is_value(value)
        and time.__class__ is list
        and len(time) == 2
        and all(map(_is_number, time))
        and int(time[0]) < _LATEST // 1_000_000
        and int(time[1]) < 1_000_000
    )


def is_flag(answer: Any) -> bool:
    """Return whether *answer* is one to the script that swaps."""
    return answer.__class__ is int and answer in (0, 1)


def verdicts(limits: tuple[int, ...]) -> Callable[[Any], bool]:
    """Return the predicate for answers of the script that decides about *limits*.

    An answer is a time and, for each limit, whether it allows the request, what remains, and two
    durations, in microseconds.
    """
    if len(limits) == 1:
        (limit,) = limits

        def is_verdict(answer: Any) -> bool:  # nearly every limited request needs this one
            # a wrong length fails the unpacking
            try:
                moment, allowed, remaining, reset, retry = answer
                good: bool = (
                    answer.__class__ is list
                    and set(map(type, answer)) == _INTEGERS
                    and 0 <= allowed <= 1
                    and 0 <= remaining <= limit
                    and 0 <= moment < _LATEST
                    and 0 <= reset < _LATEST
                    and 0 <= retry < _LATEST
                )
            except (TypeError, ValueError):
                return False
            return good

        return is_verdict

    count = 4 * len(limits) + 1

    def are_verdicts(answer: Any) -> bool:
        if answer.__class__ is not list or len(answer) != count:
            return False
        for number in answer:
            if number.__class__ is not int or not 0 <= number < _LATEST:
                return False
        for place, limit in enumerate(limits):
            if answer[4 * place + 1] > 1 or answer[4 * place + 2] > limit:
                return False
        return True

    return are_verdicts


def is_page(begins: bytes) -> Callable[[Any], bool]:
    """Return the predicate for answers to ``SCAN`` for names with the prefix *begins*."""

    def page(answer: Any) -> bool:
        return (
            answer.__class__ is list
            and len(answer) == 2
            and _is_number(answer[0])
            and answer[1].__class__ is list
            and all(name.__class__ is bytes and name.startswith(begins) for name in answer[1])
        )

    return page


def is_role(answer: Any) -> bool:
    """Return whether *answer* is one to ``ROLE``; only its first item is used."""
    return answer.__class__ is list and bool(answer) and answer[0].__class__ is bytes


def is_address(answer: Any) -> bool:
    """Return whether *answer* is a sentinel's: the primary's address, or null if unknown."""
    if answer is None:
        return True
    if answer.__class__ is not list or len(answer) != 2:
        return False
    host, port = answer
    return _is_host(host) and _is_number(port) and _is_port(int(port))


def is_slots(answer: Any) -> bool:
    """Return whether *answer* is one to ``CLUSTER SLOTS``; it may be empty."""
    return answer.__class__ is list and all(map(_is_range, answer))


def _is_range(item: Any) -> bool:
    if item.__class__ is not list or len(item) < 3:
        return False
    start, end, node = item[:3]
    return (
        start.__class__ is int
        and end.__class__ is int
        and 0 <= start <= end < SLOTS
        and node.__class__ is list
        and len(node) >= 2
        and (node[0] in (None, b"", b"?") or _is_host(node[0]))
        and node[1].__class__ is int
        and _is_port(node[1])
    )


def _is_number(text: Any) -> bool:
    return text.__class__ is bytes and text.isdigit() and len(text) <= _LONGEST_NUMBER


def _is_host(text: Any) -> bool:
    """Return whether *text* can be a host name or an address."""
    return (
        text.__class__ is bytes
        and 0 < len(text) <= _LONGEST_HOST
        and text.isascii()
        and text.decode("ascii").isprintable()
        and b" " not in text
    )


def _is_port(number: int) -> bool:
    return 0 < number < 65_536
