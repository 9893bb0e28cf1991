"""Requests that belong together: what a route is, and what a look-up finds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from wsgigate.rules.arguments import checked
from wsgigate.rules.hosts import host_pattern

__all__ = ["Match", "MethodNotAllowed", "Route", "RouteConflict", "listing"]

E = TypeVar("E")

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_METHOD = re.compile(r"[A-Z][A-Z-]*")

_LITERAL_SEGMENT, _VARIABLE_SEGMENT, _BELOW = 0, 1, 2


class RouteConflict(ValueError):
    """Two routes of a table match the same requests and neither is more specific.

    :ivar first: Index of the one that was there.
    :ivar second: Index of the one that clashes with it.
    """

    def __init__(self, first: int, second: int, text: str) -> None:
        super().__init__(text)
        self.first = first
        self.second = second


@checked
@dataclass(frozen=True)
class Route(Generic[E]):
    """Requests that belong together, and the *endpoint* that serves them.

    :param path: ``/orders`` is that path and everything below it, by whole segments; ``{name}``
        stands for one segment and keeps it, ``*`` for any one segment.
    :param host: ``api.example.com``, ``*.example.com`` for every name below it, or any when empty.
    :param methods: The methods it takes, all when empty; ``GET`` takes ``HEAD`` too.
    :param exact: Match *path* alone, nothing below it.
    :param priority: A higher one is asked first, however unspecific.
    :param name: How logs call it; its path unless said.
    :param listed: How it stands in the 404's ``availableRoutes``; worked out when ``None``.
    :param summary: One line for people.
    :param encoded_slash: Whether a path may hold ``%2F``, a slash to those who decode it.
    :param encoded_backslash: Whether it may hold ``%5C``, a slash to some servers.
    :param double_slash: Whether ``//`` is merged to one slash or kept.
    :param dot_segments: Whether a path may hold ``.`` and ``..``; they must stay beneath *path*.
    :raises ValueError: A part is not of its form; says which.
    """

    path: str
    endpoint: E
    host: str = ""
    methods: Sequence[str] = ()
    exact: bool = False
    priority: int = 0
    name: str = ""
    listed: Sequence[str] | None = None
    summary: str = ""
    encoded_slash: Literal["reject", "keep"] = "reject"
    encoded_backslash: Literal["reject", "keep"] = "reject"
    double_slash: Literal["merge", "keep"] = "merge"
    dot_segments: Literal["reject", "keep"] = "reject"

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"a route's path starts with /, got {self.path!r}")
        for segment in self.segments:
            if ("{" in segment or "}" in segment) and not _PARAMETER.fullmatch(segment):
                raise ValueError(
                    f"{segment!r} in the path {self.path!r}: a parameter is a whole segment, "
                    "such as {id}"
                )
        if "" in self.segments[:-1]:
            raise ValueError(f"the path {self.path!r} has an empty segment")
        names = _PARAMETER.findall(self.path)
        if len(set(names)) != len(names):
            raise ValueError(f"the path {self.path!r} names a parameter twice")
        object.__setattr__(self, "host", host_pattern(self.host) if self.host else "")
        methods = tuple(dict.fromkeys(method.upper() for method in self.methods))
        for method in methods:
            if not _METHOD.fullmatch(method):
                raise ValueError(f"{method!r} is not a method")
        object.__setattr__(self, "methods", methods)
        for name, other in (
            ("encoded_slash", "reject"),
            ("encoded_backslash", "reject"),
            ("double_slash", "merge"),
            ("dot_segments", "reject"),
        ):
            if getattr(self, name) not in (other, "keep"):
                raise ValueError(f'{name} is "{other}" or "keep", got {getattr(self, name)!r}')
        if not self.name:
            object.__setattr__(self, "name", self.path)

    @property
    def segments(self) -> tuple[str, ...]:
        """The pattern by segments; the root has none, a trailing slash of an exact path is one."""
        parts = tuple(self.path.split("/")[1:])
        if parts == ("",) or (parts[-1] == "" and not self.exact):
            return parts[:-1]
        return parts

    @property
    def accepted(self) -> frozenset[str]:
        """The methods it takes, with the ones that come along; empty when it takes all."""
        extra = {"HEAD"} if "GET" in self.methods else set()
        return frozenset(self.methods) | extra

    def rank(self) -> tuple[object, ...]:
        """Return what sorts routes: the more specific one first."""
        host = 0 if self.host and self.host[0] != "*" else 1 if self.host else 2
        shape = tuple(
            _VARIABLE_SEGMENT if segment == "*" or segment[:1] == "{" else _LITERAL_SEGMENT
            for segment in self.segments
        )
        end = -1 if self.exact else _BELOW
        return (-self.priority, host, -len(self.host), (*shape, end), not self.methods)

    def shape(self) -> tuple[object, ...]:
        """Return what two routes have in common that match the same paths."""
        segments = tuple("*" if s == "*" or s[:1] == "{" else s for s in self.segments)
        return (self.priority, self.host, segments, self.exact)


class Match(NamedTuple, Generic[E]):
    """A route that takes the request, and the parameters of its path, percent-decoded."""

    route: Route[E]
    params: dict[str, str]


class MethodNotAllowed(NamedTuple):
    """Routes match the path, but none takes the method; the ones they do take, sorted."""

    allowed: tuple[str, ...]


def listing(routes: Iterable[Route[E]], notes: Mapping[str, str] | None = None) -> list[str]:
    """Return how *routes* stand in a list for people: ``GET /orders``.

    :param notes: By route name, what to add in parentheses, such as ``auth required``.
    """
    lines: list[str] = []
    for route in routes:
        if route.listed is not None:
            lines += route.listed
            continue
        note = (notes or {}).get(route.name)
        suffix = f" ({note})" if note else ""
        path = route.host + route.path
        lines += [f"{method} {path}{suffix}" for method in route.methods or ("ANY",)]
    return list(dict.fromkeys(lines))
