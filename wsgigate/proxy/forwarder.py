"""The WSGI app at the end of a route: forwards a request to an instance and streams both ways."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.client.http11 import RawResponse
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.target import BadTarget, kept_target_of
from wsgigate.http.wsgi import FAILURE, INSTANCE, REASON, SERVICE, ExcInfo, Headers
from wsgigate.proxy.attempts import TIMEOUT_KEY, Attempts
from wsgigate.proxy.disconnect import ClientLeft, ClientWatch, Disconnects
from wsgigate.proxy.pool import InstanceLease, Pool
from wsgigate.proxy.request import Outgoing, RequestMaker, is_last_hop
from wsgigate.proxy.resilience import Resilience
from wsgigate.proxy.response import BadResponse, Body, ResponseMaker, problem_of, reason_of
from wsgigate.proxy.send import CLIENT_LEFT, Reservation, Sender
from wsgigate.proxy.websocket import Tunnels, Upgrader, WebSocketLimits, is_upgrade
from wsgigate.rules.arguments import Pattern, Seconds, checked

__all__ = ["Forwarder"]

DISCONNECTS = Disconnects()


@checked
class Forwarder:
    """Forward requests to the instances of a service.

    Bodies stream both ways in constant memory. The gateway adds only the fields that describe the
    path of the request and the verified identity of the caller; see
    :class:`wsgigate.proxy.request.RequestMaker` for those.

    :param pool: The instances of the service.
    :param strip_prefix: Prefix to remove from the path.
    :param add_prefix: Prefix to add to the path, after *strip_prefix*.
    :param preserve_host: Send the client's ``Host`` instead of the instance's own.
    :param request_fields: Changes to the request fields.
    :param response_fields: Changes to the response fields.
    :param identity: Field names and the claims they carry, such as ``{"X-User-Id": "sub"}``.
    :param forward_authorization: Whether to forward the client's ``Authorization``. Default: only
        when *identity* sends no verified claims instead.
    :param connect_timeout: The time limit for connecting, in seconds.
    :param read_timeout: How long an instance may send nothing, in seconds: until the response
        begins, and between its parts.
    :param timeout: The time limit until the response begins, in seconds, excluding the time to send
        a long request body; also caps *connect_timeout* and *read_timeout*. A client may shorten it
        with ``X-Request-Timeout``, and the remaining time is passed on.
    :param rewrite_location: Rewrite redirects to the instance (``Location``) to the URLs that
        clients see.
    :param rewrite_cookies: Rewrite the paths of cookies to those that clients see, so that a cookie
        of one service is not sent to all. Disable it for a service that sets cookies for all.
    :param via: The gateway's name in ``Via``. A request that has passed it already is rejected.
    :param loop_field: The field for loop detection: ``via``, or ``cdn-loop`` (RFC 8586) to send
        no ``Via``, for services that compress or cache less because of it, as nginx does.
    :param hidden_cookies: Names of the gateway's own cookies, which are not forwarded, in addition
        to the pool's.
    :param verify: Whether to verify the instances' TLS certificates, or a CA bundle to verify with.
    :param cert: A client certificate: the path of a PEM file, or ``(certificate, key)`` paths.
    :param resilience: The service's circuit breaker, retries and limits; shared by its forwarders.
    :param sessions: Provides the connections; share it to share connections between forwarders.
    :param disconnects: Detects client disconnects; one per process is enough.
    :param websocket: Whether WebSocket upgrades are allowed, or their limits. When disabled, an
        upgrade is forwarded as a plain request.
    :param tunnels: Counts the WebSockets of this process; share it to count them together.
    :param refuse: Returns the WSGI app that responds with a given problem.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        strip_prefix: str = "",
        add_prefix: Annotated[str, Pattern(r"(?:/[^/?#]+)+", 'a path such as "/v1"')] = "",
        preserve_host: bool = False,
        request_fields: FieldRules | None = None,
        response_fields: FieldRules | None = None,
        identity: Mapping[str, str] | None = None,
        forward_authorization: bool | None = None,
        connect_timeout: Seconds = 2.0,
        read_timeout: Seconds = 30.0,
        timeout: Seconds = 30.0,
        rewrite_location: bool = True,
        rewrite_cookies: bool = True,
        via: str = "wsgigate",
        loop_field: str = "via",
        hidden_cookies: Collection[str] = (),
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        resilience: Resilience | None = None,
        sessions: Sessions | None = None,
        disconnects: Disconnects = DISCONNECTS,
        websocket: bool | WebSocketLimits = False,
        tunnels: Tunnels | None = None,
        refuse: Refuse = answer_with,
    ) -> None:
        for name, seconds in (
            ("connect_timeout", connect_timeout),
            ("read_timeout", read_timeout),
            ("timeout", timeout),
        ):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a number of seconds above 0, got {seconds}")
        self.pool = pool
        self._requests = RequestMaker(
            strip_prefix=strip_prefix,
            add_prefix=add_prefix,
            preserve_host=preserve_host,
            fields=request_fields,
            identity=identity,
            forward_authorization=forward_authorization,
            via=via,
            loop_field=loop_field,
            hidden_cookies=(*hidden_cookies, *([pool.sticky.cookie] if pool.sticky else ())),
        )
        self._responses = ResponseMaker(
            fields=response_fields,
            rewrite_location=rewrite_location,
            rewrite_cookies=rewrite_cookies,
            preserve_host=preserve_host,
            add_prefix=add_prefix,
        )
        limits = Timeout(min(connect_timeout, timeout), min(read_timeout, timeout), timeout)
        self._sender = Sender(sessions or Sessions(), limits, verify, cert)
        resilience = Resilience() if resilience is None else resilience
        self._attempts = Attempts(pool, resilience, self._make, self._sender)
        self._plain = not (resilience.active or pool.timed or pool.judges)
        self._disconnects = disconnects
        self._upgrade: Upgrader | None = None
        if websocket:
            self._upgrade = Upgrader(
                WebSocketLimits() if websocket is True else websocket,
                tunnels or Tunnels(),
                self._sender,
                self._responses,
            )
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[SERVICE] = self.pool.service
        environ.pop(FAILURE, None)  # set by a previous forwarder of this request
        try:
            if environ["REQUEST_METHOD"] == "OPTIONS" and is_last_hop(environ):
                start_response("204 No Content", [])
                return []
            if self._upgrade is not None and is_upgrade(environ):
                return self._open_websocket(self._upgrade, environ, start_response)
            if self._plain and TIMEOUT_KEY not in environ:
                return self._forward_once(environ, start_response)
            return self._forward_resilient(environ, start_response)
        except BadTarget as error:
            problem = Problem(400, "Malformed request target.")
            return self._reject(problem, str(error), environ, start_response)
        except Refusal as error:
            return self._reject(error.problem, str(error), environ, start_response)

    def _forward_once(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Forward the request without retries; its outcome is not reported."""
        lease = self._attempts.lease(environ)
        try:
            environ[INSTANCE] = lease.instance.address
            request = self._make(environ, lease.instance)
            watch = self._disconnects.watch(environ)
            try:
                response = self._sender.send(request, watch)
            except BaseException:
                watch.close()
                raise
            return self._respond(response, request, lease, watch, environ, start_response)
        except BaseException:
            lease.release()
            raise

    def _forward_resilient(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Forward the request with the service's resilience, and report the outcome."""
        watch = self._disconnects.watch(environ)
        try:
            response, request, reservation = self._attempts.run(environ, watch)
        except BaseException:
            watch.close()
            raise
        try:
            return self._respond(response, request, reservation, watch, environ, start_response)
        except BaseException:
            reservation.release()
            raise

    def _open_websocket(
        self, upgrade: Upgrader, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Open a WebSocket, without retries; its outcome is not reported."""
        self._attempts.check_circuit()
        lease = self._attempts.lease(environ)
        try:
            environ[INSTANCE] = lease.instance.address
            request = self._make(environ, lease.instance)
            watch = self._disconnects.watch(environ)
            try:
                opened = upgrade(environ, start_response, request, watch, lease)
            except BaseException:
                watch.close()
                raise
            if not isinstance(opened, requests.Response):
                return opened
            return self._respond(opened, request, lease, watch, environ, start_response)
        except BaseException:
            lease.release()
            raise

    def _make(self, environ: WSGIEnvironment, instance: Instance) -> Outgoing:
        request = self._requests.make(environ, kept_target_of(environ), instance)
        if self.pool.sticky is not None:
            self.pool.sticky.mark(request, environ, instance)
        return request

    def _respond(
        self,
        response: requests.Response,
        request: Outgoing,
        lease: InstanceLease | Reservation,
        watch: ClientWatch,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        lease.began()
        whole = response.raw.whole() if type(response.raw) is RawResponse else None
        if whole is not None:
            return self._respond_at_once(whole, response, request, lease, watch, start_response)
        body = Body(response, lease.release, watch)
        try:
            status, headers, length = self._responses.head(response, request, lease.instance)
            if length == 0:
                body.skip()
            start_response(status, headers)
        except BadResponse as error:
            body.error = error
            body.close()
            raise Refusal(problem_of(error), str(error)) from error
        except BaseException:
            body.close()
            raise
        if length == 0:
            return []
        body.promised = length
        body.instead = partial(self._respond_with_error, environ, start_response)
        return body

    def _respond_with_error(
        self, environ: WSGIEnvironment, start_response: StartResponse, error: Exception
    ) -> Iterable[bytes]:
        """Return an error response for a response whose body failed before its first byte.

        :raises Exception: The exception being handled, if the head has been sent already.
        """

        def start(status: str, headers: Headers, _: ExcInfo | None = None) -> Any:
            return start_response(status, headers, sys.exc_info())

        return self._reject(problem_of(error), reason_of(error), environ, start)

    def _respond_at_once(
        self,
        block: bytes,
        response: requests.Response,
        request: Outgoing,
        lease: InstanceLease | Reservation,
        watch: ClientWatch,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Return a body that arrived with its head as a list, the cheapest WSGI response."""
        watch.close()
        if watch.gone:  # the shutdown may have looked like the end of the response
            lease.release(ClientLeft())
            raise Refusal(CLIENT_LEFT, "the client has disconnected")
        try:
            status, headers, length = self._responses.head(response, request, lease.instance)
        except BadResponse as error:
            lease.release(error)
            raise Refusal(problem_of(error), str(error)) from error
        start_response(status, headers)
        lease.release()
        return [block] if block and length != 0 else []

    def _reject(
        self,
        problem: Problem,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        environ[REASON] = reason
        environ[FAILURE] = problem.extensions.get("error", "")
        return self._refuse(problem)(environ, start_response)
