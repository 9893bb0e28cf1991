"""Routing: routes by host, path and method, and the table that finds the one for a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

from wsgigate.rules.arguments import Range, checked

__all__ = [
    "Hosts",
    "Match",
    "MethodNotAllowed",
    "Route",
    "RouteConflict",
    "Router",
    "host_pattern",
    "listing",
]


# Host patterns.

_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


def host_pattern(text: str) -> str:
    """Return *text* in lower case and without a trailing dot.

    :raises ValueError: It is neither a host name nor ``*.`` and a host name.
    """
    host = text.lower().rstrip(".")
    if not _PATTERN.fullmatch(host):
        raise ValueError(
            f'a host is a name such as "api.example.com" or "*.example.com", got {text!r}'
        )
    return host


class Hosts:
    """A set of hosts; ``host in hosts`` for a host in lower case, without port.

    :param patterns: Names, and ``*.example.com`` for every name below ``example.com``.
    :raises ValueError: One of them is not a host, or *patterns* is a string.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"expected a list of hosts, not {patterns!r}")
        known = [host_pattern(pattern) for pattern in patterns]
        self._names = frozenset(host for host in known if host[0] != "*")
        self._below = tuple(host[1:] for host in known if host[0] == "*")

    def __contains__(self, host: object) -> bool:
        if not isinstance(host, str) or not host:
            return False
        return host in self._names or (bool(self._below) and host.endswith(self._below))


E = TypeVar("E")

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

_METHOD = re.compile(r"[A-Z][A-Z-]*")

_LITERAL_SEGMENT, _VARIABLE_SEGMENT, _BELOW = 0, 1, 2


class RouteConflict(ValueError):
    """Two routes of a table match the same requests and neither is more specific.

    :ivar first: The index of the earlier route.
    :ivar second: The index of the route that conflicts with it.
    """

    def __init__(self, first: int, second: int, text: str) -> None:
        super().__init__(text)
        self.first = first
        self.second = second


@checked
@dataclass(frozen=True)
class Route(Generic[E]):
    """A pattern of requests, and the *endpoint* that serves them.

    :param path: ``/orders`` is that path and everything below it, by whole segments; ``{name}``
        matches one segment and captures it, ``*`` matches any one segment.
    :param host: ``api.example.com``, ``*.example.com`` for every name below it, or any when empty.
    :param methods: The accepted methods, all when empty; ``GET`` includes ``HEAD``.
    :param exact: Match the path only, not the paths below it.
    :param priority: Routes with a higher priority are matched first, before more specific ones.
    :param name: Its name in logs. Default: its path.
    :param listed: The route's entries in the list of routes of 404 responses; an empty list hides
        the route. Default: derived from method and path.
    :param summary: A one-line description of the route.
    :param encoded_slash: How to handle ``%2F`` in the path, a slash to servers that decode it.
    :param encoded_backslash: How to handle ``%5C`` in the path, a slash to some servers.
    :param double_slash: How to handle ``//`` in the path: merge it to one slash, or keep it.
    :param dot_segments: How to handle ``.`` and ``..`` in the path; with keep, the path must stay
        below the route's path.
    :raises ValueError: An argument is invalid; the message names it.
    """

    path: str
    endpoint: E
    host: str = ""
    methods: Sequence[str] = ()
    exact: bool = False
    priority: Annotated[int, Range(-1_000_000, 1_000_000)] = 0
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
        """The segments of *path*: none for the root; a trailing slash of an exact path is one."""
        parts = tuple(self.path.split("/")[1:])
        if parts == ("",) or (parts[-1] == "" and not self.exact):
            return parts[:-1]
        return parts

    @property
    def accepted(self) -> frozenset[str]:
        """The accepted methods, with ``HEAD`` for ``GET``; empty when it accepts all."""
        extra = {"HEAD"} if "GET" in self.methods else set()
        return frozenset(self.methods) | extra

    def rank(self) -> tuple[object, ...]:
        """Return the sort key of the route: more specific routes come first."""
        host = 0 if self.host and self.host[0] != "*" else 1 if self.host else 2
        shape = tuple(
            _VARIABLE_SEGMENT if segment == "*" or segment[:1] == "{" else _LITERAL_SEGMENT
            for segment in self.segments
        )
        end = -1 if self.exact else _BELOW
        return (-self.priority, host, -len(self.host), (*shape, end), not self.methods)

    def shape(self) -> tuple[object, ...]:
        """Return a key that is equal for two routes that match the same paths."""
        segments = tuple("*" if s == "*" or s[:1] == "{" else s for s in self.segments)
        return (self.priority, self.host, segments, self.exact)


class Match(NamedTuple, Generic[E]):
    """The route of a request, and the parameters of its path, percent-decoded."""

    route: Route[E]
    params: dict[str, str]


_match: Callable[[tuple[Route[Any], dict[str, str]]], Match[Any]] = partial(tuple.__new__, Match)
"""Takes half the time of ``Match(...)``."""


class MethodNotAllowed(NamedTuple):
    """Routes match the path, but none accepts the method; the accepted methods, sorted."""

    allowed: tuple[str, ...]


def listing(routes: Iterable[Route[E]], notes: Mapping[str, str] | None = None) -> list[str]:
    """Return *routes* as lines for people: ``GET /orders``.

    :param notes: By route name, a note to add in parentheses, such as ``auth required``.
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


# The routing table.
#
# The most specific route wins, regardless of the order of routes: a higher ``priority`` first, then
# an exact host before a wildcard before none, then from the left a literal segment before a
# variable one, the longer path before the shorter, an exact path before a prefix, and a route with
# methods before one without. The constructor rejects two routes that none of this distinguishes. A
# lookup walks a tree of path segments, so ten thousand routes cost about as much as ten.

_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+")


class _CompiledRoute(NamedTuple, Generic[E]):
    rank: int
    route: Route[E]
    accepted: frozenset[str]
    names: tuple[tuple[int, str], ...]


class _PathNode(Generic[E]):
    __slots__ = ("below", "ends", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _PathNode[E]] = {}
        self.variable: _PathNode[E] | None = None
        self.ends: list[_CompiledRoute[E]] = []
        self.below: list[_CompiledRoute[E]] = []


class Router(Generic[E]):
    """A table of routes, compiled.

    :param routes: The routes, in any order, their literal segments in the canonical form in which
        paths are matched (see :mod:`wsgigate.http.target`).
    :raises ValueError: A literal segment is in another form.
    :raises RouteConflict: Two of them match the same requests, and neither is more specific.
    """

    def __init__(self, routes: Iterable[Route[E]]) -> None:
        self.routes: tuple[Route[E], ...] = tuple(routes)
        _refuse_conflicts(self.routes)
        ordered = sorted(self.routes, key=Route.rank)
        self._hosts: dict[str, _PathNode[E]] = {}
        self._wildcards = False
        for rank, route in enumerate(ordered):
            self._wildcards = self._wildcards or route.host.startswith("*.")
            self._insert(self._hosts.setdefault(route.host, _PathNode()), rank, route)
        self._any = self._hosts.pop("", None)
        self._by_host = bool(self._hosts)

    @staticmethod
    def _insert(node: _PathNode[E], rank: int, route: Route[E]) -> None:
        names: list[tuple[int, str]] = []
        for position, segment in enumerate(route.segments):
            if segment == "*" or segment[:1] == "{":
                if segment != "*":
                    names.append((position, segment[1:-1]))
                if node.variable is None:
                    node.variable = _PathNode()
                node = node.variable
            else:
                if segment in (".", "..") or (not _LITERAL.fullmatch(segment) and segment):
                    raise ValueError(f"{segment!r} in {route.path!r} is not in canonical form")
                node = node.literals.setdefault(segment, _PathNode())
        entry = _CompiledRoute(rank, route, route.accepted, tuple(names))
        (node.ends if route.exact else node.below).append(entry)

    def match(self, host: str, path: str, method: str) -> Match[E] | MethodNotAllowed | None:
        """Return the route for a request, the allowed methods instead, or None.

        :param host: Lower case, without port or trailing dot; empty when the request has none.
        :param path: In canonical form.
        """
        segments = path.split("/")[1:] if path != "/" else []
        found: list[_CompiledRoute[E]] = []
        if self._any is not None:
            _collect(self._any, segments, found)
        if self._by_host:
            for tree in self._trees(host):
                _collect(tree, segments, found)
        best: _CompiledRoute[E] | None = None
        for entry in found:
            if (best is None or entry.rank < best.rank) and (
                not entry.accepted or method in entry.accepted
            ):
                best = entry
        if best is not None:
            params: dict[str, str] = {}
            for at, name in best.names:
                params[name] = unquote(segments[at])
            return _match((best.route, params))
        if found:
            return MethodNotAllowed(tuple(sorted(set().union(*(e.accepted for e in found)))))
        return None

    def _trees(self, host: str) -> list[_PathNode[E]]:
        trees = []
        if host:
            exact = self._hosts.get(host)
            if exact is not None:
                trees.append(exact)
            if self._wildcards:
                while "." in host:
                    host = host.partition(".")[2]
                    tree = self._hosts.get("*." + host)
                    if tree is not None:
                        trees.append(tree)
        return trees


def _collect(root: _PathNode[E], segments: Sequence[str], found: list[_CompiledRoute[E]]) -> None:
    """Append every entry of the tree whose path matches; each node is visited at most once."""
    node = root
    for at, segment in enumerate(segments):  # while there is only one branch
        if node.variable is not None:
            _collect_all(node, segments[at:], found)
            return
        if node.below:
            found += node.below
        following = node.literals.get(segment)
        if following is None:
            return
        node = following
    found += node.below
    found += node.ends


def _collect_all(
    root: _PathNode[E], segments: Sequence[str], found: list[_CompiledRoute[E]]
) -> None:
    level = [root]
    for segment in segments:
        following = []
        for node in level:
            found += node.below
            literal = node.literals.get(segment)
            if literal is not None:
                following.append(literal)
            if node.variable is not None and segment:
                following.append(node.variable)
        if not following:
            return
        level = following
    for node in level:
        found += node.below
        found += node.ends


def _refuse_conflicts(routes: Sequence[Route[E]]) -> None:
    seen: dict[tuple[object, ...], list[int]] = {}
    for index, route in enumerate(routes):
        for other in seen.setdefault(route.shape(), []):
            if _overlap(route.accepted, routes[other].accepted):
                raise RouteConflict(
                    other,
                    index,
                    f"{_describe(routes[other])} and {_describe(route)} match the same requests; "
                    "change one of them, or give one a higher priority",
                )
        seen[route.shape()].append(index)


def _overlap(these: frozenset[str], those: frozenset[str]) -> bool:
    if not these or not those:  # one with methods is more specific than one without
        return not these and not those
    return bool(these & those)


def _describe(route: Route[E]) -> str:
    kind = "exactly " if route.exact else ""
    methods = " ".join(route.methods) + " " if route.methods else ""
    return f"{methods}{kind}{route.host}{route.path}"
