"""The app at the end of a route: it passes the request to an instance and streams both ways."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.client.response import RawResponse
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.target import BadTarget, kept_target_of
from wsgigate.http.wsgi import FAILURE, INSTANCE, REASON, SERVICE, ExcInfo, Headers
from wsgigate.proxy.attempts import TIMEOUT_KEY, Attempts
from wsgigate.proxy.disconnect import ClientLeft, Departure, Departures
from wsgigate.proxy.pool import InstanceLease, Pool
from wsgigate.proxy.request import Outgoing, RequestMaker, is_last_hop
from wsgigate.proxy.resilience import Resilience
from wsgigate.proxy.response import BadResponse, Body, ResponseMaker, problem_of, reason_of
from wsgigate.proxy.send import CLIENT_LEFT, Reservation, Sender
from wsgigate.proxy.websocket import Tunnels, Upgrader, WebSocketLimits, asks_for_websocket
from wsgigate.rules.arguments import checked

__all__ = ["Forwarder"]

DEPARTURES = Departures()


@checked
class Forwarder:
    """Forward requests to the instances of a service.

    Bodies stream both ways in constant memory. Nothing is sent that the client did not send, but
    for the fields that say which way the request came and who verified it; see
    :class:`wsgigate.proxy.request.RequestMaker` for those.

    :param pool: The instances of the service.
    :param strip_prefix: What to take off the front of the path.
    :param add_prefix: What to put in front of it then.
    :param preserve_host: Send the client's ``Host`` instead of the instance's own.
    :param request_fields: Changes to the request fields.
    :param response_fields: Changes to the response fields.
    :param identity: Field name to claim name, such as ``{"X-User-Id": "sub"}``: who the caller is.
    :param forward_authorization: Whether the client's ``Authorization`` goes along; by default
        unless verified claims are told by *identity* instead.
    :param connect_timeout: Seconds to wait for a connection.
    :param read_timeout: Seconds to wait for the response to begin, and between its parts.
    :param timeout: Seconds for all of it until the response begins, but for what a long request
        body takes to be sent; caps the other two. A client that sends ``X-Request-Timeout`` may
        have less, and what is left is passed on.
    :param rewrite_location: Bring ``Location`` fields back to what clients see.
    :param rewrite_cookies: Bring the paths of cookies back to what clients see, so that a cookie
        of one service is not sent to all; off for a service whose cookies are for all of them.
    :param via: The gateway's name in ``Via``. A request that has passed it already is refused.
    :param loop_field: The field by which it sees loops: ``via``, or ``cdn-loop`` (RFC 8586) to send
        no ``Via``, for services that compress or cache less because of it, as nginx does.
    :param hidden_cookies: Names of cookies of the gateway's own, which no instance gets, beside
        that of the pool.
    :param verify: Whether to verify the instances' TLS certificates, or a bundle to do it by.
    :param cert: A client certificate: the path of a PEM file, or of one and of its key.
    :param resilience: What is done when the service fails; shared by its forwarders.
    :param sessions: Where connections come from; shared by forwarders to share theirs.
    :param departures: Looks after clients that leave meanwhile; one for a process is enough.
    :param websocket: Whether requests that ask for it become WebSockets, and what those may take.
        Where it is off they are forwarded as plain ones.
    :param tunnels: Counts the WebSockets of this process; shared by forwarders to count together.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: A setting is not of its form; says which.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        strip_prefix: str = "",
        add_prefix: str = "",
        preserve_host: bool = False,
        request_fields: FieldRules | None = None,
        response_fields: FieldRules | None = None,
        identity: Mapping[str, str] | None = None,
        forward_authorization: bool | None = None,
        connect_timeout: float = 2.0,
        read_timeout: float = 30.0,
        timeout: float = 30.0,
        rewrite_location: bool = True,
        rewrite_cookies: bool = True,
        via: str = "wsgigate",
        loop_field: str = "via",
        hidden_cookies: Collection[str] = (),
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        resilience: Resilience | None = None,
        sessions: Sessions | None = None,
        departures: Departures = DEPARTURES,
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
                raise ValueError(f"{name} is a number of seconds above 0, got {seconds}")
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
        self._tries = Attempts(pool, resilience, self._make, self._sender)
        self._plain = not (resilience.active or pool.timed or pool.judges)
        self._departures = departures
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
        environ.pop(FAILURE, None)  # of a service that was asked before
        try:
            if environ["REQUEST_METHOD"] == "OPTIONS" and is_last_hop(environ):
                start_response("204 No Content", [])
                return []
            if self._plain and TIMEOUT_KEY not in environ:
                return self._forward(environ, start_response)
            return self._try(environ, start_response)
        except BadTarget as error:
            problem = Problem(400, "Malformed request target.")
            return self._refused(problem, str(error), environ, start_response)
        except Refusal as error:
            return self._refused(error.problem, str(error), environ, start_response)

    def _forward(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on, whatever became of others."""
        lease = self._tries.lease(environ)
        try:
            environ[INSTANCE] = lease.instance.address
            request = self._make(environ, lease.instance)
            departure = self._departures.watch(environ)
            try:
                if self._upgrade is not None and asks_for_websocket(environ):
                    opened = self._upgrade(environ, start_response, request, departure, lease)
                    if not isinstance(opened, requests.Response):
                        return opened
                    response = opened
                else:
                    response = self._sender.send(request, departure)
            except BaseException:
                departure.close()
                raise
            return self._answer(response, request, lease, departure, environ, start_response)
        except BaseException:
            lease.release()
            raise

    def _try(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on as far as the service is to be asked, and tell how it ended."""
        if self._upgrade is not None and asks_for_websocket(environ):
            self._tries.look()
            return self._forward(environ, start_response)
        departure = self._departures.watch(environ)
        try:
            response, request, hold = self._tries.answer(environ, departure)
        except BaseException:
            departure.close()
            raise
        try:
            return self._answer(response, request, hold, departure, environ, start_response)
        except BaseException:
            hold.release()
            raise

    def _make(self, environ: WSGIEnvironment, instance: Instance) -> Outgoing:
        request = self._requests.make(environ, kept_target_of(environ), instance)
        if self.pool.sticky is not None:
            self.pool.sticky.mark(request, environ, instance)
        return request

    def _answer(
        self,
        response: requests.Response,
        request: Outgoing,
        lease: InstanceLease | Reservation,
        departure: Departure,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        lease.began()
        whole = response.raw.whole() if type(response.raw) is RawResponse else None
        if whole is not None:
            return self._at_once(whole, response, request, lease, departure, start_response)
        body = Body(response, lease.release, departure)
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
        body.instead = partial(self._instead, environ, start_response)
        return body

    def _instead(
        self, environ: WSGIEnvironment, start_response: StartResponse, error: Exception
    ) -> Iterable[bytes]:
        """Answer instead of a response whose body has failed before its first byte.

        :raises Exception: The one that is being handled, when the head has been sent already.
        """

        def start(status: str, headers: Headers, _: ExcInfo | None = None) -> Any:
            return start_response(status, headers, sys.exc_info())

        return self._refused(problem_of(error), reason_of(error), environ, start)

    def _at_once(
        self,
        block: bytes,
        response: requests.Response,
        request: Outgoing,
        lease: InstanceLease | Reservation,
        departure: Departure,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Answer with a body that came together with its head, as a list: it costs the least."""
        departure.close()
        if departure.gone:  # its end is not told from that of the connection
            lease.release(ClientLeft())
            raise Refusal(CLIENT_LEFT, "the client has left")
        try:
            status, headers, length = self._responses.head(response, request, lease.instance)
        except BadResponse as error:
            lease.release(error)
            raise Refusal(problem_of(error), str(error)) from error
        start_response(status, headers)
        lease.release()
        return [block] if block and length != 0 else []

    def _refused(
        self,
        problem: Problem,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        environ[REASON] = reason
        environ[FAILURE] = problem.extensions.get("error", "")
        return self._refuse(problem)(environ, start_response)
