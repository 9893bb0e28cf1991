"""The innermost app of a gateway's stack: to each request its route's app."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.proxy.destination import METHODS, beneath, destination_path, mount_of
from wsgigate.proxy.hops import NEVER
from wsgigate.rules.hosts import Hosts
from wsgigate.rules.router import Router
from wsgigate.rules.routing import Match, MethodNotAllowed, Route, listing
from wsgigate.target import BadTarget, canonical_pattern, host_of, target_of
from wsgigate.wsgi import PARAMS, PEER_TRUSTED, REASON, ROUTE, environ_key

__all__ = ["Dispatcher"]

_ROUTED_BY = "wsgigate.routed_by"
_EVERY = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


class Dispatcher:
    """Pass each request to the app of the route that matches its host, path and method.

    The path is matched in its canonical form, the very one a forwarder sends on; a target that has
    none is refused here, before any route sees it. The app of a route gets ``SCRIPT_NAME`` and
    ``PATH_INFO`` as the server set them.

    :param routes: The routes, each with a WSGI app as its endpoint. Paths may be written as people
        do, ``/café``.
    :param fallback: The app that serves what no route matches, such as the Flask or Django app the
        gateway is mounted around; a 404 when there is none.
    :param identity_fields: Names of the fields by which backends are told who the caller is. They
        are removed from every request before a route sees it, whatever their spelling.
    :param allowed_hosts: The hosts it serves, ``api.example.com`` or ``*.example.com`` for every
        name below it; a request for another is answered with 421. All when empty.
    :param list_routes: Whether the 404 names the routes there are.
    :param notes: By route name, what to add in that list, such as ``auth required``.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: A route or a host is malformed.
    :raises RouteConflict: Two routes can not be told apart.
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
        if method in NEVER:
            return self._no_method(environ, start_response)
        for key in self._identity:
            environ.pop(key, None)
        if method == "OPTIONS" and environ.get("RAW_URI", environ.get("PATH_INFO")) == "*":
            return self._of_the_server(environ, start_response)
        try:
            target = target_of(environ)
        except BadTarget as error:
            return self._bad_target(str(error), environ, start_response)
        if self._hosts is not None and target.host not in self._hosts:
            return self._misdirected(target.host, environ, start_response)
        found = self._router.match(target.host, target.path, method)
        if target.has_encoded_slash and not _keeps_encoded_slash(found):
            return self._bad_target("an encoded slash in the path", environ, start_response)
        if found is None:
            if environ.get(_ROUTED_BY) is self:  # a request of its own that was sent here again
                del environ[_ROUTED_BY], environ[ROUTE], environ[PARAMS]
            app = self._fallback or self._not_found
            return app(environ, start_response)
        if isinstance(found, MethodNotAllowed):
            problem = Problem(
                405, "Method not allowed.", headers=(("Allow", ", ".join(found.allowed)),)
            )
            return self._refuse(problem)(environ, start_response)
        if "HTTP_DESTINATION" in environ and method in METHODS:
            try:
                self._check_destination(environ, target.host, method, found)
            except Refusal as error:
                environ[REASON] = str(error)
                return self._refuse(error.problem)(environ, start_response)
        environ[ROUTE] = found.route.name
        environ[PARAMS] = found.params
        environ[_ROUTED_BY] = self
        return found.route.endpoint(environ, start_response)

    def serves(self, host: str) -> bool:
        """Return whether requests for *host*, as a target has it, are for this gateway."""
        return self._hosts is None or host in self._hosts

    def find(self, environ: WSGIEnvironment) -> Match[WSGIApplication] | MethodNotAllowed | None:
        """Return what would serve the request, without serving it.

        :raises BadTarget: Its target has no single meaning.
        """
        target = target_of(environ)
        found = self._router.match(target.host, target.path, environ["REQUEST_METHOD"])
        if target.has_encoded_slash and not _keeps_encoded_slash(found):
            raise BadTarget("an encoded slash in the path")
        return found

    def _check_destination(
        self, environ: WSGIEnvironment, host: str, method: str, found: Match[WSGIApplication]
    ) -> None:
        """See that a request for one route does not write to what another one protects.

        :raises Refusal: It does.
        """
        named = destination_path(environ)
        if named is None:
            return
        before = environ.get("HTTP_X_FORWARDED_PREFIX", "") if environ.get(PEER_TRUSTED) else ""
        path = beneath(before.rstrip("/") + mount_of(environ), named[0])
        if path is not None and "%2F" in path and found.route.encoded_slash != "keep":
            raise Refusal.of(400, "Malformed Destination field.", "an encoded slash")
        there = None if path is None else self._router.match(host, path, method)
        if not isinstance(there, Match) or there.route is not found.route:
            raise Refusal.of(403, "Forbidden.", "the Destination is not of the request's own route")

    def _of_the_server(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer ``OPTIONS *``, which asks about the server as a whole."""
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
        environ[REASON] = f"the host {host!r} is none of the allowed ones"
        return self._elsewhere(environ, start_response)

    def _bad_target(
        self, reason: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        environ[REASON] = reason
        problem = Problem(400, "Malformed request target.")
        return self._refuse(problem)(environ, start_response)


def _keeps_encoded_slash(
    found: Match[WSGIApplication] | MethodNotAllowed | None,
) -> bool:
    return isinstance(found, Match) and found.route.encoded_slash == "keep"
