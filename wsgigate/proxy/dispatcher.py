"""The innermost app of a gateway's stack: dispatches each request to its route's app."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, refused
from wsgigate.http.target import (
    BadTarget,
    OddTarget,
    any_target_of,
    canonical_pattern,
    has_dot_segments,
    host_of,
    keep_target,
    leaves,
    mount_of,
    readings,
)
from wsgigate.http.wsgi import KEPT_TARGET, PARAMS, ROUTE, environ_key, peer_trusted
from wsgigate.proxy.request import NEVER
from wsgigate.proxy.rewriting import DESTINATION_METHODS, beneath, destination_path
from wsgigate.rules.arguments import checked
from wsgigate.rules.routing import Hosts, Match, MethodNotAllowed, Route, Router, listing

__all__ = ["Dispatcher"]

_ROUTED_BY = "wsgigate.routed_by"
_EVERY = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

# Methods are case-sensitive (RFC 9110 section 9.1), but Flask and Django serve "post" as POST, and
# granian and werkzeug hand it on. A route limited to POST must match it: otherwise it would reach
# the fallback, without the middlewares of the route.
_USUAL = frozenset(_EVERY.split(", "))


@checked
class Dispatcher:
    """Dispatch each request to the app of the route that matches its host, path and method.

    The path is matched in its canonical form, the same form that a forwarder sends; a target
    without one is rejected here, before any route sees it. The app of a route gets ``SCRIPT_NAME``
    and ``PATH_INFO`` as the server set them.

    :param routes: The routes, each with a WSGI app as its endpoint. Paths may contain unencoded
        characters, ``/café``.
    :param fallback: The app for requests that match no route, such as the Flask or Django app that
        the gateway wraps. Default: respond with 404.
    :param identity_fields: Names of the fields that carry the caller's identity to backends. They
        are removed from every request, in any spelling, before a route sees it.
    :param allowed_hosts: The hosts to serve, ``api.example.com`` or ``*.example.com`` for every
        name below it; requests for other hosts get a 421. Empty allows all.
    :param list_routes: Whether the 404 lists the routes.
    :param notes: Notes for that list by route name, such as ``auth required``.
    :param refuse: Returns the WSGI app that responds with a given problem.
    :raises ValueError: A route or a host is malformed.
    :raises RouteConflict: Two routes match the same requests.
    """

    def __init__(
        self,
        routes: Sequence[Route[WSGIApplication]],
        *,
        fallback: WSGIApplication | None = None,
        identity_fields: Iterable[str] = (),
        allowed_hosts: Collection[str] = (),
        list_routes: bool = True,
        notes: Mapping[str, str] | None = None,
        refuse: Refuse = answer_with,
    ) -> None:
        self.routes = tuple(replace(route, path=canonical_pattern(route.path)) for route in routes)
        self._router = Router(self.routes)
        self._identity = tuple(environ_key(name) for name in identity_fields)
        self._hosts = Hosts(allowed_hosts) if allowed_hosts else None
        self._fallback = fallback
        self._refuse = refuse
        extensions = {"availableRoutes": listing(self.routes, notes)} if list_routes else {}
        self._not_found = refuse(Problem(404, "Route not found!", extensions=extensions))
        self._elsewhere = refuse(Problem(421, "Misdirected request."))
        self._no_method = refuse(Problem(405, "Method not allowed.", headers=(("Allow", _EVERY),)))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method not in _USUAL:
            method = method.upper()
        if method in NEVER:
            return self._no_method(environ, start_response)
        for key in self._identity:
            environ.pop(key, None)
        if method == "OPTIONS" and environ.get("RAW_URI", environ.get("PATH_INFO")) == "*":
            return self._server_options(environ, start_response)
        if KEPT_TARGET in environ:  # set by an outer dispatcher, for its routes
            del environ[KEPT_TARGET]
        try:
            target = any_target_of(environ)
            if self._hosts is not None and target.host not in self._hosts:
                return self._misdirected(target.host, environ, start_response)
            found = self._router.match(target.host, target.path, method)
            if isinstance(target, OddTarget):
                found = self._odd(environ, target, method, found)
        except BadTarget as error:
            return self._bad_target(str(error), environ, start_response)
        if found is None or (found.__class__ is MethodNotAllowed and self._fallback is not None):
            if environ.get(_ROUTED_BY) is self:  # routed here before
                del environ[_ROUTED_BY], environ[ROUTE], environ[PARAMS]
            app = self._fallback or self._not_found
            return app(environ, start_response)
        if isinstance(found, MethodNotAllowed):
            problem = Problem(
                405, "Method not allowed.", headers=(("Allow", ", ".join(found.allowed)),)
            )
            return self._refuse(problem)(environ, start_response)
        if "HTTP_DESTINATION" in environ and method in DESTINATION_METHODS:
            try:
                self._check_destination(environ, target.host, method, found)
            except Refusal as error:
                refused(environ, "Dispatcher", str(error))
                return self._refuse(error.problem)(environ, start_response)
        environ[ROUTE] = found.route.name
        environ[PARAMS] = found.params
        environ[_ROUTED_BY] = self
        return found.route.endpoint(environ, start_response)

    def serves(self, host: str) -> bool:
        """Return whether this gateway serves *host*, as found in a request target."""
        return self._hosts is None or host in self._hosts

    def find(self, environ: WSGIEnvironment) -> Match[WSGIApplication] | MethodNotAllowed | None:
        """Return the route match for the request, without serving it.

        :raises BadTarget: The request target is ambiguous.
        """
        target = any_target_of(environ)
        method = environ["REQUEST_METHOD"].upper()
        found = self._router.match(target.host, target.path, method)
        if isinstance(target, OddTarget):
            found = self._odd(environ, target, method, found)
        if isinstance(found, MethodNotAllowed) and self._fallback is not None:
            return None
        return found

    def _odd(
        self,
        environ: WSGIEnvironment,
        target: OddTarget,
        method: str,
        found: Match[WSGIApplication] | MethodNotAllowed | None,
    ) -> Match[WSGIApplication] | MethodNotAllowed | None:
        """Return the match of a target with several readings, or *found* unchanged.

        :raises BadTarget: No route accepts the target, or another reading matches another route.
        """
        path, host = target.path, target.host
        if not isinstance(found, Match):
            if target.refused:
                raise BadTarget(target.refused)
            if "%2F" in path and not (
                self._fallback and self._matches_no_route(host, path, method)
            ):
                raise BadTarget("an encoded slash in the path")
            return found
        route = found.route
        if route.double_slash == "keep":
            path = target.kept
        for is_held, keeps, what in (
            ("%2F" in path, route.encoded_slash, "an encoded slash in the path"),
            ("%5C" in path, route.encoded_backslash, "an encoded backslash in the path"),
            (has_dot_segments(path), route.dot_segments, "a dot segment in the path"),
        ):
            if is_held and keeps != "keep":
                raise BadTarget(what)
        if path == target.path and not target.refused and "%2F" not in path:
            return found
        if leaves(path, len([each for each in route.segments if each])):
            raise BadTarget("a dot segment that leaves the route")
        for reading in readings(path):
            there = self._router.match(host, reading, method)
            if there is not None and (
                isinstance(there, MethodNotAllowed) or there.route is not route
            ):
                raise BadTarget("a path that matches another route in another reading")
        keep_target(environ, path)
        return found

    def _matches_no_route(self, host: str, path: str, method: str) -> bool:
        """Return whether *path* matches no route in any reading."""
        matches = (self._router.match(host, each, method) for each in readings(path))
        return not any(isinstance(each, Match) for each in matches)

    def _check_destination(
        self, environ: WSGIEnvironment, host: str, method: str, found: Match[WSGIApplication]
    ) -> None:
        """Check that a request does not write to resources of another route.

        :raises Refusal: The Destination belongs to another route.
        """
        named = destination_path(environ)
        if named is None:
            return
        before = environ.get("HTTP_X_FORWARDED_PREFIX", "") if peer_trusted(environ) else ""
        path = beneath(before.rstrip("/") + mount_of(environ), named[0])
        if path is not None and "%2F" in path and found.route.encoded_slash != "keep":
            raise Refusal.of(400, "Malformed Destination field.", "an encoded slash")
        there = None if path is None else self._router.match(host, path, method)
        if not isinstance(there, Match) or there.route is not found.route:
            raise Refusal.of(403, "Forbidden.", "the Destination belongs to another route")

    def _server_options(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Respond to ``OPTIONS *``, which concerns the server as a whole."""
        try:
            host = host_of(environ)
        except BadTarget as error:
            return self._bad_target(str(error), environ, start_response)
        if not self.serves(host):
            return self._misdirected(host, environ, start_response)
        start_response("204 No Content", [("Allow", _EVERY)])
        return []

    def _misdirected(
        self, host: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        refused(environ, "Dispatcher", f"the host {host!r} is not in allowed_hosts")
        return self._elsewhere(environ, start_response)

    def _bad_target(
        self, reason: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        refused(environ, "Dispatcher", reason)
        problem = Problem(400, "Malformed request target.")
        return self._refuse(problem)(environ, start_response)
