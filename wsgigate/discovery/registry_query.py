"""What a query asks the registry for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from wsgigate.rules.registry import Invalid, Status
from wsgigate.rules.registry.document import parse_status
from wsgigate.units import parse_duration

__all__ = ["Query", "parse_query"]

_MOST_FIELDS = 32


@dataclass(frozen=True)
class Query:
    """What is asked for.

    :ivar filters: The keywords of ``Registry.discover``.
    :ivar wait: For how many seconds to wait for a change.
    :ivar index: The version that whoever asks has seen, None when it has seen none.
    :ivar strategy: How one of the instances is chosen.
    """

    filters: Mapping[str, Any]
    wait: float = 0.0
    index: int | None = None
    strategy: str = "round-robin"


def parse_query(text: str, only_healthy: bool = True) -> Query:
    """Return what the query *text* asks for.

    :param only_healthy: Whether unhealthy instances are left out unless it is said.
    :raises Invalid: It has a field that there is not, twice what can be once, or a wrong value.
    """
    filters: dict[str, Any] = {"only_healthy": only_healthy}
    rest: dict[str, Any] = {}
    tags: list[str] = []
    metadata: dict[str, str] = {}
    seen: set[str] = set()
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Invalid("query", f"at most {_MOST_FIELDS} fields") from None
    for name, value in fields:
        if name == "tag":
            tags.append(value)
            continue
        if name in seen:
            raise Invalid(name[:64], "is given twice")
        seen.add(name)
        if name.startswith("meta.") and len(name) > 5:
            metadata[name[5:]] = value
        elif name in _FILTERS:
            key, read = _FILTERS[name]
            filters[key] = read(value)
        elif name in _REST:
            rest[name] = _REST[name](value)
        else:
            raise Invalid(name[:64], "there is no such filter")
    if tags:
        filters["tags"] = tuple(tags)
    if metadata:
        filters["metadata"] = metadata
    return Query(filters, **rest)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid("onlyHealthy", "true or false")
    return text == "true"


def _status(text: str) -> Status:
    return parse_status(text.upper())


def _wait(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        raise Invalid("wait", "seconds, such as 25") from None


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Invalid("index", "what X-Registry-Index has said") from None
    return int(text)


STRATEGIES = ("round-robin", "random", "first")


def _strategy(text: str) -> str:
    if text not in STRATEGIES:
        raise Invalid("strategy", f"one of {', '.join(STRATEGIES)}")
    return text


_FILTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "onlyHealthy": ("only_healthy", _flag),
    "status": ("status", _status),
    "zone": ("zone", str),
    "version": ("version", str),
}
_REST: dict[str, Callable[[str], Any]] = {"wait": _wait, "index": _index, "strategy": _strategy}
