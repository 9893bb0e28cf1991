"""Middlewares around an app, and what those are called that have no name of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.config.breakers import BreakerOptions
from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.middlewares import Middleware, wrap
from wsgigate.config.model import Config
from wsgigate.config.options import ConcurrencyOptions, CorsOptions, LimiterOptions
from wsgigate.config.uses import Surroundings
from wsgigate.denylist import DenyList
from wsgigate.problem import Problem
from wsgigate.store import Store

__all__ = ["OnlyMethods", "Stacker", "answers_preflights", "leading_loggers", "policy_name"]

_Named = LimiterOptions | ConcurrencyOptions | BreakerOptions


class Stacker:
    """Puts apps into their middlewares.

    :param store: What the gateway's workers share.
    :param folder: Where relative file names start.
    :param errors: Where a middleware that can not be made is told.
    """

    def __init__(self, config: Config, store: Store, folder: Path, errors: Errors) -> None:
        self.closing: list[Callable[[], object]] = []
        self.deny_list = DenyList(store)
        """One for all, so that what the gateway is told to deny holds at once where it was told."""
        self._store = store
        self._folder = folder
        self._faults = config.gateway.fault_injection
        self._errors = errors
        self._named: dict[tuple[str, str], tuple[str, _Named]] = {}
        self._unnamed: dict[str, str] = {}
        lists = [("middleware", config.middleware)]
        for index, route in enumerate(config.routes):
            lists.append((at(at("routes", index), "middleware"), route.middleware))
        for path, entries in lists:
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
        """Return *app* in the middlewares of *entries*, the first outermost.

        :param path: The key path of the list.
        :param name: What its limiters and breakers are called that have no name.
        :param without: Positions of entries that are left out.
        """
        named = [self._name_of(at(path, n), entry, name) for n, entry in enumerate(entries)]
        for index, entry in reversed(list(enumerate(entries))):
            where = at(path, index)
            if index in without or self._errors.under(where) or entry.options is None:
                continue
            surroundings = Surroundings(
                self._store, named[index], self._folder, self.deny_list, self._faults
            )
            made = self._errors.tried(
                where, partial(wrap, app, entry, surroundings), keys=entry.keys
            )
            if made is None:
                continue
            app = made
            close = getattr(app, "close", None)
            if callable(close):
                self.closing.append(close)
        return app

    def _take_name(self, path: str, entry: Middleware) -> None:
        options = entry.options
        if not isinstance(options, _Named) or options.name is None:
            return
        kind, together = _kind(options)
        first, other = self._named.setdefault((kind, options.name), (path, options))
        if other != options:
            self._errors.add(
                path,
                f"the {kind} {shown(options.name)} {together} together with the one at {first}, "
                "so all their options must be the same; or give it another name",
            )

    def _name_of(self, path: str, entry: Middleware, name: str) -> str:
        options = entry.options
        if not isinstance(options, _Named) or options.name is not None:
            return ""
        if path not in self._unnamed:  # it is asked for again for each path of a route
            kind, _ = _kind(options)
            free, number = name, 1
            while (kind, free) in self._named:
                number += 1
                free = f"{name}-{number}"
            self._named[kind, free] = (path, options)
            self._unnamed[path] = free
        return self._unnamed[path]


def _kind(options: _Named) -> tuple[str, str]:
    """Return what must not share a name, and what those do that do."""
    return ("breaker", "opens") if isinstance(options, BreakerOptions) else ("limiter", "counts")


def policy_name(text: str) -> str:
    """Return *text*, a route's name or path, as a limiter's name: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:56] or "root"


def answers_preflights(entries: Iterable[Middleware]) -> bool:
    """Return whether one of *entries* answers preflight requests, and so needs to get them."""
    return any(isinstance(entry.options, CorsOptions) for entry in entries)


def leading_loggers(entries: Iterable[Middleware]) -> set[int]:
    """Return the positions of the loggers that nothing but loggers and request ids precede."""
    leading = takewhile(lambda at: at[1].use in ("logger", "request-id"), enumerate(entries))
    return {index for index, entry in leading if entry.use == "logger"}


class OnlyMethods:
    """Refuse methods that a route takes for the sake of its middlewares alone.

    :param app: The app of the route.
    :param methods: The methods the app takes.
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
