"""Build the routes of the file: each with its app, in its middlewares.

:class:`RouteApps` builds the innermost app of a route: the forwarder to its service, its split,
fallback and mirror, or a WSGI application. :class:`MiddlewareStack` wraps it in its middlewares.
:class:`Routes` makes a route for each path and collects them in the dispatcher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from mimetypes import guess_type
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.endpoints import RemoteEndpoints
from wsgigate.auth.jwks import KeySources
from wsgigate.config.build_services import Services
from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.middlewares import App, BuildContext, Middleware, wrap
from wsgigate.config.model import MIRROR, SPLIT, STALE, Config, FallbackTable, RouteTable
from wsgigate.config.resources import Resources
from wsgigate.config.tables import Arguments, arguments_for
from wsgigate.config.types import import_app
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch
from wsgigate.http.limits import CallerLimit
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import LARGEST, fixed_response
from wsgigate.middleware.fallback import Fallback
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.rules.fallback import FallbackRules
from wsgigate.rules.routing import Route, RouteConflict, listing
from wsgigate.store import Store

__all__ = [
    "MiddlewareStack",
    "OnlyMethods",
    "RouteApps",
    "RouteEntry",
    "Routes",
    "answers_preflights",
    "api_keys_of",
    "leading_loggers",
    "maintenance_scopes",
    "policy_name",
]


# Middlewares around an app. Limiters and breakers without a name get one that is unique.

_SHARING = {
    "breaker": ("breaker", "circuit"),
    "concurrency-limiter": ("limiter", "counts"),
    "limiter": ("limiter", "counts"),
}
"""The kind of middlewares that may share a name, and what they share, by ``use``."""


class MiddlewareStack:
    """Wraps apps in their middlewares.

    :param store: The store that the gateway's workers share.
    :param folder: The folder that relative file names refer to.
    :param errors: Collects the errors.
    :param mounted: Whether the gateway wraps an app, which is its fallback.
    :param refuse: Returns the WSGI app that responds with a given problem.
    :ivar closing: Functions to call when the gateway closes.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        folder: Path,
        errors: Errors,
        *,
        mounted: bool = False,
        refuse: Refuse = answer_with,
    ) -> None:
        self.closing: list[Callable[[], object]] = []
        self._mounted = mounted
        self._refuse = refuse
        self.deny_list = DenyList(store)
        """Shared by all authenticators, so that a denial takes effect at once in this worker."""
        made = errors.catch(
            "api_keys", partial(api_keys_of, config, store, folder), keys=["prefix"]
        )
        self.api_keys = made or ApiKeys(store)
        """Shared by all middlewares that accept API keys."""
        self.closing.append(self.api_keys.close)
        self.key_sources = KeySources(store)
        """Shared by all authenticators, so that the keys of an issuer are fetched once."""
        self.endpoints = RemoteEndpoints()
        """Shared by all middlewares that ask an endpoint about requests, with its bounds."""
        self.closing.append(self.endpoints.close)
        self.limits: dict[str, CallerLimit] = {}
        """A limiter of each name."""
        self.key_paths: dict[str, str] = {}
        """The first key path that needs the keys of an issuer or an endpoint, by its name."""
        self.resources = errors.catch("gateway", partial(Resources, config), keys=["resource"])
        """The protected resources, which challenges refer to."""
        self._store = store
        self._folder = folder
        self._faults = config.gateway.fault_injection
        self._errors = errors
        self._named: dict[tuple[str, str], tuple[str, Arguments]] = {}
        self._unnamed: dict[str, str] = {}
        for path, entries in config.middleware_lists():
            for index, entry in enumerate(entries):
                self._take_name(at(path, index), entry)

    def around(
        self,
        app: WSGIApplication,
        entries: Sequence[Middleware],
        path: str,
        name: str,
        *,
        without: Collection[int] = (),
    ) -> WSGIApplication:
        """Return *app* wrapped in the middlewares of *entries*, the first outermost.

        :param path: The key path of the list.
        :param name: The name for its limiters and breakers without a name.
        :param without: Positions of entries to skip.
        """
        named = [self._name_of(at(path, n), entry, name) for n, entry in enumerate(entries)]
        for index, entry in reversed(list(enumerate(entries))):
            where = at(path, index)
            if index in without or self._errors.under(where) or entry.options is None:
                continue
            context = BuildContext(
                self._store,
                named[index],
                self._folder,
                self.deny_list,
                self.api_keys,
                self.key_sources,
                self.endpoints,
                self._faults,
                self.resources.metadata_url(path) if self.resources else None,
                self._refuse,
            )
            made = self._errors.catch(where, partial(wrap, app, entry, context), keys=entry.keys)
            if made is None:
                continue
            if self._mounted and path == "middleware" and _guards_routes(made):
                self._errors.add(
                    where,
                    f"{type(made).__name__} guards the routes of services, and hides the session "
                    "from the app: name it in the middleware of a route",
                )
                continue
            app = made
            limit: object = made
            if isinstance(limit, CallerLimit):  # those of one name share their counts
                self.limits.setdefault(limit.name, limit)
            for asked in (*self.key_sources.status(), *self.endpoints.status()):
                self.key_paths.setdefault(asked, where)
            close = getattr(app, "close", None)
            if callable(close):
                self.closing.append(close)
        return app

    def _take_name(self, path: str, entry: Middleware) -> None:
        options = entry.options
        if entry.use not in _SHARING or options is None or "name" not in options:
            return
        kind, shared = _SHARING[entry.use]
        first, other = self._named.setdefault((kind, options["name"]), (path, options))
        if other != options:
            self._errors.add(
                path,
                f"the {kind} {shown(options['name'])} shares its {shared} with the one at {first}, "
                "so all their options must be equal; or use another name",
            )

    def _name_of(self, path: str, entry: Middleware, name: str) -> str:
        options = entry.options
        if entry.use not in _SHARING or options is None or "name" in options:
            return name
        if path not in self._unnamed:  # called again for each path of a route
            kind, _ = _SHARING[entry.use]
            free, number = name, 1
            while (kind, free) in self._named:
                number += 1
                free = f"{name}-{number}"
            self._named[kind, free] = (path, options)
            self._unnamed[path] = free
        return self._unnamed[path]


def api_keys_of(config: Config, store: Store | None, folder: Path) -> ApiKeys:
    """Return the API keys of a gateway.

    :param store: The store that the gateway's workers share; None for keys in a file, without the
        times of their last use.
    :param folder: The folder that relative file names refer to.
    :raises ValueError: A key of the table ``api_keys`` is invalid; the message names it.
    """
    table = config.api_keys
    if table is None:
        return ApiKeys(store)
    file = None if table.file is None else str(folder / table.file)
    return ApiKeys(store, file=file, **arguments_for(ApiKeys, table))


def policy_name(text: str) -> str:
    """Return *text*, a route's name or path, as a policy name: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:56] or "root"


def _guards_routes(middleware: object) -> bool:
    return getattr(middleware, "guards_routes", False) is True


def answers_preflights(entries: Iterable[Middleware]) -> bool:
    """Return whether one of *entries* answers preflight requests, so OPTIONS must reach it."""
    return any(entry.use == "cors" for entry in entries)


def leading_loggers(entries: Iterable[Middleware]) -> set[int]:
    """Return the positions of the loggers that only loggers and request ids precede."""
    leading = takewhile(lambda at: at[1].use in ("logger", "request-id"), enumerate(entries))
    return {index for index, entry in leading if entry.use == "logger"}


class OnlyMethods:
    """Reject methods that a route accepts for its middlewares only.

    :param app: The app of the route.
    :param methods: The methods to pass to the app.
    """

    def __init__(self, app: WSGIApplication, methods: Sequence[str]) -> None:
        self.app = app
        self._methods = frozenset(methods) | ({"HEAD"} if "GET" in methods else set())
        allowed = ", ".join(sorted(self._methods))
        self._refused = Problem(405, "Method not allowed.", headers=(("Allow", allowed),))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in self._methods:
            return self.app(environ, start_response)
        return self._refused(environ, start_response)


# The app of a route: a WSGI application, or the forwarder to its services.


class RouteApps:
    """Builds the apps of routes, without their middlewares.

    :param switch: The maintenance switch, used if the file has ``[maintenance]``.
    :param folder: The folder that relative file names refer to.
    :param errors: Collects the errors.
    :ivar closing: Functions to call when the gateway closes.
    """

    def __init__(
        self,
        config: Config,
        services: Services,
        switch: MaintenanceSwitch,
        folder: Path,
        errors: Errors,
    ) -> None:
        self.closing: list[Callable[[], object]] = []
        self._config = config
        self._services = services
        self._switch = switch
        self._folder = folder
        self._errors = errors
        self._maintenance: dict[str, Any] | None = self._maintenance_arguments()

    def app(self, table: RouteTable, prefix: str, path: str) -> App | None:
        """Return the app of a route without its middlewares, ``None`` if it cannot be built.

        :param prefix: The prefix to remove from the path.
        :param path: The route's key path.
        """
        app: App | None
        if table.app is not None:
            app = self._errors.catch(at(path, "app"), partial(import_app, table.app))
        elif table.services:
            app = self._split(table, prefix, path)
        else:
            app = self._service(table.service, table, prefix, path)
        if app is None:
            return None
        if table.fallback is not None:
            app = self._with_fallback(
                app, table.fallback, table, prefix, path, at(path, "fallback")
            )
        if table.mirror is not None:
            app = self._with_mirror(app, table.mirror, table, prefix, path)
        return app

    def maintained(self, app: App, *scopes: str) -> App:
        """Return *app* behind the maintenance mode of *scopes*."""
        if self._maintenance is None:
            return app
        return Maintenance(app, self._switch, scopes, **self._maintenance)

    def _service(self, name: str | None, table: RouteTable, prefix: str, path: str) -> App | None:
        """Return the forwarder to a service, with the service's fallback."""
        app = self._forwarder(name, table, prefix, path)
        service = self._config.services.get(name or "")
        if app is None or service is None or service.fallback is None or table.fallback is not None:
            return app
        where = at(at("services", str(name)), "fallback")
        return self._with_fallback(app, service.fallback, table, prefix, path, where)

    def _forwarder(self, name: str | None, table: RouteTable, prefix: str, path: str) -> App | None:
        forwarder = self._services.forwarder(replace(table, service=name), prefix, path)
        return None if forwarder is None else self.maintained(forwarder, f"service:{name}")

    def shared(self, app: App, other: App, percent: float, table: RouteTable, path: str) -> App:
        """Return an app that passes *percent* of the requests to *app*, the others to *other*."""
        apps = {"route": (app, percent), "fallback": (other, 100 - percent)}
        settings = table.split or {}
        salt = f"percent {_salt(table)}"  # so that the split between services is independent
        made = self._errors.catch(
            at(path, "split"), lambda: Splitter(apps, salt=salt, **settings), keys=SPLIT.keys
        )
        return app if made is None else made

    def _split(self, table: RouteTable, prefix: str, path: str) -> App | None:
        apps: dict[str, tuple[App, float]] = {}
        for share in table.services:
            app = self._service(share.service, table, prefix, path)
            if app is None:
                return None
            apps[share.service] = (app, share.weight)
        settings, salt = table.split or {}, _salt(table)
        where = at(path, "split") if table.split is not None else at(path, "services")
        return self._errors.catch(
            where, lambda: Splitter(apps, salt=salt, **settings), keys=SPLIT.keys
        )

    def _with_fallback(
        self,
        app: App,
        fallback: FallbackTable,
        table: RouteTable,
        prefix: str,
        path: str,
        where: str,
    ) -> App:
        """Return *app* with *fallback*.

        :param where: The key path of *fallback*.
        """
        given_rules = arguments_for(FallbackRules, fallback)
        rules = self._errors.catch(where, lambda: FallbackRules(**given_rules), keys=given_rules)
        if fallback.stale is not False:
            settings = {} if fallback.stale is True else fallback.stale
            stale = self._errors.catch(
                at(where, "stale"),
                lambda: StaleAnswers(app, rules=rules, **settings),
                keys=STALE.keys,
            )
            app = app if stale is None else stale
        other: App | None = None
        kind = "app"
        if fallback.service is not None:
            other, kind = self._forwarder(fallback.service, table, prefix, path), "service"
        elif fallback.app is not None:
            other = self._errors.catch(at(where, "app"), partial(import_app, fallback.app))
        elif fallback.body is not None or fallback.file is not None:
            made = lambda: self._fixed(fallback)  # noqa: E731
            other = self._errors.catch(where, made, keys=["file", "body", "status", "content_type"])
            kind = "fixed"
        if other is None:
            return app
        return Fallback(app, other, rules=rules, kind=kind, acts=kind != "fixed")

    def _fixed(self, fallback: FallbackTable) -> App:
        body: bytes | str = fallback.body or ""
        settings = arguments_for(fixed_response, fallback)
        if fallback.file is not None:
            body, kind = self._content(fallback.file, "file")
            settings.setdefault("content_type", kind)
        return fixed_response(body, **settings)

    def _with_mirror(
        self, app: App, mirror: Arguments, table: RouteTable, prefix: str, path: str
    ) -> App:
        other = self._services.forwarder(replace(table, service=mirror["service"]), prefix, path)
        if other is None:
            return app
        settings = {name: value for name, value in mirror.items() if name != "service"}
        made = self._errors.catch(
            at(path, "mirror"), lambda: Mirror(app, other, **settings), keys=MIRROR.keys
        )
        if made is None:
            return app
        self.closing.append(made.close)
        return made

    def _maintenance_arguments(self) -> dict[str, Any] | None:
        """Return the arguments of :class:`Maintenance`, ``None`` without ``[maintenance]``."""
        table = self._config.maintenance
        if table is None or self._errors.under("maintenance"):
            return None
        settings = {
            **arguments_for(Maintenance, table),
            "allow": table.allow,
            "exempt": table.exempt,
        }
        if table.allow_header is not None:
            settings["allow_header"] = (table.allow_header.name, table.allow_header.secret)
        if table.page is not None:
            page = table.page
            found = self._errors.catch(
                "maintenance", lambda: self._content(page, "page"), keys=["page"]
            )
            if found is None:
                return None
            settings["page"] = (found[0], table.content_type or found[1])
        made = self._errors.catch(
            "maintenance",
            lambda: Maintenance(_unreachable, self._switch, **settings),
            keys=["allow", "allow_header", "content_type", "exempt", "retry_after"],
        )
        return None if made is None else settings

    def _content(self, name: str, key: str) -> tuple[bytes, str]:
        """Return the content of a file, and the content type that its name suggests."""
        file = self._folder / name
        try:
            with file.open("rb") as opened:
                content = opened.read(LARGEST + 1)
        except OSError as error:
            raise ValueError(f"{key}: {file} cannot be read: {error.strerror}") from error
        if len(content) > LARGEST:
            raise ValueError(f"{key}: {file} is larger than {LARGEST} bytes")
        kind = guess_type(name)[0] or "application/octet-stream"
        return content, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _salt(table: RouteTable) -> str:
    return table.name or table.path or next(iter(table.paths), "")


def _unreachable(environ: Any, start_response: Any) -> list[bytes]:
    raise RuntimeError("this app is never called: it only validates the arguments")


def maintenance_scopes(config: Config) -> list[str]:
    """Return the maintenance scopes of a gateway: itself, its services and its routes."""
    routes = [table.name or table.path or next(iter(table.paths), "") for table in config.routes]
    return [
        GATEWAY,
        *(f"service:{name}" for name in config.services),
        *dict.fromkeys(f"route:{name}" for name in routes if name),
    ]


_MISSING_APP = Problem(503)
"""Replaces an app that cannot be built, so that the check for further errors continues."""


class RouteEntry(NamedTuple):
    """One route with its table in the file, for the commands routes and explain.

    :ivar path: The key path of its table, or of its path if the table has several.
    :ivar table: The table in the file.
    :ivar strip_prefix: The prefix to remove from the path.
    :ivar route: The route itself.
    """

    path: str
    table: RouteTable
    strip_prefix: str
    route: Route[App]


class Routes:
    """The routes of a gateway.

    :param route_apps: Builds the apps of the routes.
    :param stack: Wraps the apps in their middlewares.
    :param errors: Collects the errors.
    :param fallback: The app for requests that no route matches; None for a 404.
    """

    def __init__(
        self,
        config: Config,
        route_apps: RouteApps,
        stack: MiddlewareStack,
        errors: Errors,
        *,
        fallback: App | None = None,
    ) -> None:
        self.entries: list[RouteEntry] = []
        self._config = config
        self._fallback = fallback
        self._route_apps = route_apps
        self._stack = stack
        self._errors = errors
        self._with_options = {
            _shape(table, pattern)
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
        identity: Mapping[str, str],
        refuse: Refuse = answer_with,
    ) -> Dispatcher:
        """Return the dispatcher of the *own*, the *registry*'s and the file's routes, in order.

        :param registry: The routes of the registry, each with the key that configures it.
        """
        known = {entry.route.name: self._note(entry.table) for entry in self.entries}
        routes = [("admin.prefix", route) for route in own]
        routes += registry
        routes += [(entry.path, entry.route) for entry in self.entries]
        while True:
            try:
                return Dispatcher(
                    [route for _, route in routes],
                    fallback=self._fallback,
                    identity_fields=identity,
                    allowed_hosts=self._config.gateway.allowed_hosts,
                    list_routes=self._config.gateway.list_routes,
                    notes={name: note for name, note in known.items() if note},
                    refuse=refuse,
                )
            except RouteConflict as conflict:
                path = routes.pop(conflict.second)[0]
                self._errors.add(
                    path, f"{conflict}; the other route is {routes[conflict.first][0]}"
                )

    def _add(self, table: RouteTable, path: str) -> None:
        """Add the routes of one table: one per path."""
        if self._errors.under(path, but=at(path, "middleware")):
            self._wrapped(_MISSING_APP, table, path)
            return
        apps: dict[str, App] = {}
        for number, pattern in enumerate(_patterns(table)):
            strip = table.strip_prefix
            prefix = strip if isinstance(strip, str) else pattern if strip else ""
            if prefix not in apps:
                apps[prefix] = self._wrapped(self._app(table, prefix, path), table, path)
            where = at(at(path, "paths"), number) if table.paths else path
            route = self._errors.catch(where, partial(self._route, table, pattern, apps[prefix]))
            if route is not None:
                self.entries.append(RouteEntry(where, table, prefix, route))

    def _app(self, table: RouteTable, prefix: str, path: str) -> App:
        app = self._route_apps.app(table, prefix, path)
        return _MISSING_APP if app is None else app

    def _wrapped(self, app: App, table: RouteTable, path: str) -> App:
        if _accepts_options_for_middlewares(table):
            app = OnlyMethods(app, _upper(table.methods))
        name = table.name or next(iter(_patterns(table)), "")
        app = self._stack.around(app, table.middleware, at(path, "middleware"), policy_name(name))
        if name:
            app = self._route_apps.maintained(app, GATEWAY, f"route:{name}")
        if table.percent is None or self._fallback is None:
            return app
        # outside of the route's middlewares, which may reject or change what the fallback needs
        return self._route_apps.shared(app, self._fallback, table.percent, table, path)

    def _route(self, table: RouteTable, pattern: str, app: App) -> Route[App]:
        route = Route(
            pattern,
            app,
            host=table.host,
            methods=table.methods,
            name=table.name,
            encoded_slash=table.encoded_slash or self._config.gateway.encoded_slash,
            **arguments_for(Route, table),
        )
        shape = _shape(table, pattern)
        if not _accepts_options_for_middlewares(table) or shape in self._with_options:
            return route
        self._with_options.add(shape)  # only one route may accept the preflights of a path
        listed = listing([route], {route.name: self._note(table)})
        return replace(route, methods=(*route.methods, "OPTIONS"), listed=listed)

    def _note(self, table: RouteTable) -> str:
        entries: list[Middleware] = [*self._config.middleware, *table.middleware]
        required = any(entry.use == "authorizer" or entry.requires_caller for entry in entries)
        return "auth required" if required else ""


def _shape(table: RouteTable, pattern: str) -> tuple[str, str, bool, int]:
    """Return what the routes of the same requests have in common."""
    return table.host, pattern, bool(table.exact), table.priority or 0


def _patterns(table: RouteTable) -> tuple[str, ...]:
    return table.paths or ((table.path,) if table.path else ())


def _upper(methods: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(method.upper() for method in methods)


def _accepts_options_for_middlewares(table: RouteTable) -> bool:
    """Return whether the route must accept OPTIONS for its middlewares only."""
    methods = _upper(table.methods)
    return bool(methods) and "OPTIONS" not in methods and answers_preflights(table.middleware)
