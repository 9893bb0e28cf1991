"""The WSGI app at the end of a route: forwards a request to an instance and streams both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated
from wsgiref.types import StartResponse, WSGIEnvironment

from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.http.fields import FieldRules
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import FAILURE, REJECTED_BY, SERVICE
from wsgigate.proxy.attempts import Attempts, Resilience, Sender
from wsgigate.proxy.disconnect import Disconnects
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.request import RequestMaker, TokenSigner, is_last_hop
from wsgigate.proxy.response import ResponseMaker, Unanswered
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
    :param identity: Field names and the value of the verified caller that each carries:
        ``subject``, ``client``, ``issuer``, ``scheme``, ``scopes``, or the path of a claim, such
        as ``{"X-User-Id": "subject", "X-Roles": "realm_access.roles"}``. A client's own field of
        such a name is removed in any spelling.
    :param internal_tokens: Signs a short-lived token for the service, in place of the caller's own:
        :class:`~wsgigate.auth.internal_token.InternalTokens`. Its audience is the service's name.
    :param forward_authorization: Whether to forward the client's ``Authorization``. Default: only
        when *identity* and *internal_tokens* send no verified caller instead.
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
        internal_tokens: TokenSigner | None = None,
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
        requests = RequestMaker(
            strip_prefix=strip_prefix,
            add_prefix=add_prefix,
            preserve_host=preserve_host,
            fields=request_fields,
            identity=identity,
            internal_tokens=internal_tokens,
            audience=pool.service,
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
            refuse=refuse,
        )
        limits = Timeout(min(connect_timeout, timeout), min(read_timeout, timeout), timeout)
        sender = Sender(sessions or Sessions(), limits, verify, cert)
        resilience = Resilience() if resilience is None else resilience
        self._attempts = Attempts(pool, resilience, requests, sender)
        self._upgrade: Upgrader | None = None
        if websocket:
            self._upgrade = Upgrader(
                WebSocketLimits() if websocket is True else websocket,
                tunnels or Tunnels(),
                Attempts(pool, resilience, requests, sender, websockets=True),
                self._responses,
            )
        self._disconnects = disconnects

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[SERVICE] = self.pool.service
        environ.pop(FAILURE, None)  # set by a previous forwarder of this request
        environ.pop(REJECTED_BY, None)
        try:
            if environ["REQUEST_METHOD"] == "OPTIONS" and is_last_hop(environ):
                start_response("204 No Content", [])
                return []
            watch = self._disconnects.watch(environ)
            try:
                if self._upgrade is not None and is_upgrade(environ):
                    return self._upgrade(environ, start_response, watch)
                response, request, lease = self._attempts.run(environ, watch)
            except BaseException:
                watch.close()
                raise
            return self._responses.respond(
                response, request, lease.instance, lease.release, watch, environ, start_response
            )
        except BadTarget as error:
            problem, reason = Problem(400, "Malformed request target."), str(error)
        except Refusal as error:
            problem, reason = error.problem, str(error)
            if problem.status == 503 and not isinstance(error, Unanswered):
                # nothing was sent: no instance, an open circuit, or a full bulkhead
                environ[REJECTED_BY] = problem.extensions.get("error") or "Forwarder"
        return self._responses.reject(problem, reason, environ, start_response)
