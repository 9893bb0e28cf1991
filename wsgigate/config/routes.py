"""Routes of the file: each with its app, in its middlewares, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.config.ends import Ends
from wsgigate.config.errors import Errors, at
from wsgigate.config.middlewares import Middleware
from wsgigate.config.model import Config
from wsgigate.config.model import Route as RouteTable
from wsgigate.config.options import AuthenticatorOptions
from wsgigate.config.stack import OnlyMethods, Stacker, answers_preflights, policy_name
from wsgigate.problem import Problem
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.rules.maintenance import GATEWAY
from wsgigate.rules.routing import Route, RouteConflict, listing

__all__ = ["Entry", "Routes"]

App: TypeAlias = WSGIApplication

_ABSENT = Problem(503)
"""Stands for an app that can not be made, while more errors are looked for."""


class Entry(NamedTuple):
    """One route as it was built, for those who list and explain it.

    :ivar path: The key path of its table, or of its path where a table has several.
    :ivar table: What the file says of it.
    :ivar strip_prefix: What is taken off the front of the path.
    :ivar route: The route itself.
    """

    path: str
    table: RouteTable
    strip_prefix: str
    route: Route[App]


class Routes:
    """The routes of a gateway.

    :param ends: Makes what stands at their ends.
    :param stacker: Puts that into their middlewares.
    :param errors: Where it is told what can not be made.
    """

    def __init__(self, config: Config, ends: Ends, stacker: Stacker, errors: Errors) -> None:
        self.entries: list[Entry] = []
        self._config = config
        self._ends = ends
        self._stacker = stacker
        self._errors = errors
        self._with_options = {
            (table.host, pattern, table.exact, table.priority)
            for table in config.routes
            for pattern in _patterns(table)
            if "OPTIONS" in _upper(table.methods)
        }
        for index, table in enumerate(config.routes):
            self._add(table, at("routes", index))

    def dispatcher(
        self,
        own: list[Route[App]],
        *,
        registry: Sequence[tuple[str, Route[App]]] = (),
        fallback: App | None,
        identity: Mapping[str, str],
    ) -> Dispatcher:
        """Return the app that serves the routes, after the gateway's *own* and its *registry*.

        :param registry: Each with the key of the file that has it there.
        """
        known = {entry.route.name: self._note(entry.table) for entry in self.entries}
        routes = [("admin.prefix", route) for route in own]
        routes += registry
        routes += [(entry.path, entry.route) for entry in self.entries]
        while True:
            try:
                return Dispatcher(
                    [route for _, route in routes],
                    fallback=fallback,
                    identity_fields=identity,
                    allowed_hosts=self._config.gateway.allowed_hosts,
                    list_routes=self._config.gateway.list_routes,
                    notes={name: note for name, note in known.items() if note},
                )
            except RouteConflict as conflict:
                path = routes.pop(conflict.second)[0]
                self._errors.add(path, f"{conflict}; the other is {routes[conflict.first][0]}")

    def _add(self, table: RouteTable, path: str) -> None:
        """Add the routes of one table: one for each of its paths."""
        if self._errors.under(path, but=at(path, "middleware")):
            self._wrapped(_ABSENT, table, path)
            return
        apps: dict[str, App] = {}
        for number, pattern in enumerate(_patterns(table)):
            strip = table.strip_prefix
            prefix = strip if isinstance(strip, str) else pattern if strip else ""
            if prefix not in apps:
                apps[prefix] = self._wrapped(self._app(table, prefix, path), table, path)
            where = at(at(path, "paths"), number) if table.paths else path
            route = self._errors.tried(where, partial(self._route, table, pattern, apps[prefix]))
            if route is not None:
                self.entries.append(Entry(where, table, prefix, route))

    def _app(self, table: RouteTable, prefix: str, path: str) -> App:
        app = self._ends.end(table, prefix, path)
        return _ABSENT if app is None else app

    def _wrapped(self, app: App, table: RouteTable, path: str) -> App:
        if _answers_for_options(table):
            app = OnlyMethods(app, _upper(table.methods))
        name = table.name or next(iter(_patterns(table)), "")
        app = self._stacker.around(app, table.middleware, at(path, "middleware"), policy_name(name))
        return self._ends.maintained(app, GATEWAY, f"route:{name}") if name else app

    def _route(self, table: RouteTable, pattern: str, app: App) -> Route[App]:
        route = Route(
            pattern,
            app,
            host=table.host,
            methods=table.methods,
            exact=table.exact,
            priority=table.priority,
            name=table.name,
            listed=table.listed,
            summary=table.summary,
            encoded_slash=table.encoded_slash or self._config.gateway.encoded_slash,
            encoded_backslash=table.encoded_backslash,
            double_slash=table.double_slash,
            dot_segments=table.dot_segments,
        )
        shape = (table.host, pattern, table.exact, table.priority)
        if not _answers_for_options(table) or shape in self._with_options:
            return route
        self._with_options.add(shape)  # one route gets the preflights of a path
        listed = listing([route], {route.name: self._note(table)})
        return replace(route, methods=(*route.methods, "OPTIONS"), listed=listed)

    def _note(self, table: RouteTable) -> str:
        entries: list[Middleware] = [*self._config.middleware, *table.middleware]
        required = any(
            isinstance(entry.options, AuthenticatorOptions) and entry.options.required is not False
            for entry in entries
        )
        return "auth required" if required else ""


def _patterns(table: RouteTable) -> tuple[str, ...]:
    return table.paths or ((table.path,) if table.path else ())


def _upper(methods: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(method.upper() for method in methods)


def _answers_for_options(table: RouteTable) -> bool:
    """Return whether the route needs to get OPTIONS for its middlewares' sake alone."""
    methods = _upper(table.methods)
    return bool(methods) and "OPTIONS" not in methods and answers_preflights(table.middleware)
