"""Which route serves a request: host, path and method against a table made once.

The more specific route wins, whatever order they were written in: a higher ``priority`` first, then
an exact host before a wildcard before none, then from the left a literal segment before a variable
one, the longer path before the shorter, an exact path before a prefix, and a route limited to some
methods before one that takes all. Two routes that none of this tells apart are refused when the
table is made. Looking one up walks a tree of path segments, so ten thousand routes cost about what
ten do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

from wsgigate.rules.routing import Match, MethodNotAllowed, Route, RouteConflict

__all__ = ["Router"]

E = TypeVar("E")

_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+")


class _Entry(NamedTuple, Generic[E]):
    rank: int
    route: Route[E]
    accepted: frozenset[str]
    names: tuple[tuple[int, str], ...]


class _Node(Generic[E]):
    __slots__ = ("below", "ends", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[E]] = {}
        self.variable: _Node[E] | None = None
        self.ends: list[_Entry[E]] = []
        self.below: list[_Entry[E]] = []


class Router(Generic[E]):
    """A table of routes, compiled.

    :param routes: The routes, in any order, their literal segments in the canonical form in which
        paths are matched (see :mod:`wsgigate.target`).
    :raises ValueError: A literal segment is in another form.
    :raises RouteConflict: Two of them can not be told apart.
    """

    def __init__(self, routes: Iterable[Route[E]]) -> None:
        self.routes: tuple[Route[E], ...] = tuple(routes)
        _refuse_conflicts(self.routes)
        ordered = sorted(self.routes, key=Route.rank)
        self._hosts: dict[str, _Node[E]] = {}
        self._wildcards = False
        for rank, route in enumerate(ordered):
            self._wildcards = self._wildcards or route.host.startswith("*.")
            self._insert(self._hosts.setdefault(route.host, _Node()), rank, route)
        self._any = self._hosts.pop("", None)
        self._by_host = bool(self._hosts)

    @staticmethod
    def _insert(node: _Node[E], rank: int, route: Route[E]) -> None:
        names: list[tuple[int, str]] = []
        for position, segment in enumerate(route.segments):
            if segment == "*" or segment[:1] == "{":
                if segment != "*":
                    names.append((position, segment[1:-1]))
                if node.variable is None:
                    node.variable = _Node()
                node = node.variable
            else:
                if segment in (".", "..") or (not _LITERAL.fullmatch(segment) and segment):
                    raise ValueError(f"{segment!r} in {route.path!r} is not in canonical form")
                node = node.literals.setdefault(segment, _Node())
        entry = _Entry(rank, route, route.accepted, tuple(names))
        (node.ends if route.exact else node.below).append(entry)

    def match(self, host: str, path: str, method: str) -> Match[E] | MethodNotAllowed | None:
        """Return the route for a request, what is allowed instead, or None.

        :param host: Lower case, without port or trailing dot; empty when the request has none.
        :param path: In canonical form.
        """
        segments = path.split("/")[1:] if path != "/" else []
        found: list[_Entry[E]] = []
        if self._any is not None:
            _collect(self._any, segments, found)
        if self._by_host:
            for tree in self._trees(host):
                _collect(tree, segments, found)
        best: _Entry[E] | None = None
        for entry in found:
            if (best is None or entry.rank < best.rank) and (
                not entry.accepted or method in entry.accepted
            ):
                best = entry
        if best is not None:
            return Match(best.route, {name: unquote(segments[at]) for at, name in best.names})
        if found:
            return MethodNotAllowed(tuple(sorted(set().union(*(e.accepted for e in found)))))
        return None

    def _trees(self, host: str) -> list[_Node[E]]:
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


def _collect(root: _Node[E], segments: Sequence[str], found: list[_Entry[E]]) -> None:
    """Append every entry of the tree whose path matches; each node is visited at most once."""
    node = root
    for at, segment in enumerate(segments):  # as long as there is but one way to go
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


def _collect_all(root: _Node[E], segments: Sequence[str], found: list[_Entry[E]]) -> None:
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
    if not these or not those:  # all methods beside some: the one with some is more specific
        return not these and not those
    return bool(these & those)


def _describe(route: Route[E]) -> str:
    kind = "exactly " if route.exact else ""
    methods = " ".join(route.methods) + " " if route.methods else ""
    return f"{methods}{kind}{route.host}{route.path}"
