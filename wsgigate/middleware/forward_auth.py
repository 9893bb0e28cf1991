"""Forward authentication: another HTTP service decides about each request.

As Traefik's ``forwardAuth``, nginx's ``auth_request`` and Caddy's ``forward_auth``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Annotated, Any, Self
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.auth.endpoints import RemoteEndpoints
from wsgigate.auth.forward_auth import (
    SCHEME,
    AuthRejection,
    AuthRequestFields,
    AuthResponseFields,
    AuthService,
    AuthUnavailable,
    check_address,
    field_names,
    probe,
    with_cookies,
)
from wsgigate.auth.identity import Identity
from wsgigate.auth.outcomes import Outcomes
from wsgigate.http.bodies import buffer_body, client_body
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, refused, status_line
from wsgigate.http.wsgi import (
    CLAIMS,
    IDENTITY,
    SET_FIELDS,
    BodyError,
    ExcInfo,
    Headers,
    is_preflight,
)
from wsgigate.rules.arguments import Bytes, FieldName, OneOf, Range, Seconds, checked
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.logs import ThrottledLog

__all__ = ["ForwardAuth"]

_log = logging.getLogger("wsgigate.forward_auth")

_CACHE_SCOPES = ("request", "credential")

_NAME = "ForwardAuth"

_REJECTED = "The authentication service rejected the request."


class ForwardedAnswer(Problem):
    """The response of the service to a client that it rejects, and the app that responds with it.

    Its ``status`` and its ``headers`` are those that matter to a middleware around this one.
    """

    answer: AuthRejection

    @classmethod
    def of(cls, answer: AuthRejection) -> Self:
        """Return the problem of *answer*."""
        telling = ("retry-after", "set-cookie", "www-authenticate")
        headers = tuple(field for field in answer.headers if field[0].lower() in telling)
        made = cls(answer.status, _REJECTED, headers=headers)
        object.__setattr__(made, "answer", answer)  # a problem is frozen
        return made

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body, _ = self.answer
        start_response(status_line(status), [*headers, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class AnonymousAnswer(ForwardedAnswer, CredentialsMissing):
    """The same, to a request without a credential."""


@checked
class ForwardAuth:
    """Authentication: ask another HTTP service about each request.

    As the ``forwardAuth`` of Traefik and the ``forward_auth`` of Caddy: for Authelia, Authentik,
    oauth2-proxy, or a service of your own. A 2xx lets the request pass, with the fields
    *auth_response_headers* of the answer. Any other answer is the response to the client: a
    redirect to a login page, a 401 with its challenge, cookies. If the service cannot be asked, the
    response is 503, or 504 if it was too slow.

    The service is asked with ``GET`` and the fields of the request, besides
    ``X-Forwarded-Method``, ``-Uri``, ``-Proto``, ``-Host``, ``-For`` and ``-Port``. The gateway
    makes these itself; those of a client are not believed. ``-Proto``, ``-Host``, ``-For`` and
    ``-Port`` are those of a trusted proxy (:class:`ClientAddress`), if there is one.

    The fields in *auth_response_headers*, *header_field* and *claim_headers* are always removed
    from the client's request, in every spelling, also if the answer lacks them and for requests
    that are exempt.

    With *header_field* the caller is in ``environ["wsgigate.identity"]``. A request that passes
    without that field, such as an anonymous one to a public page, has no identity. Without
    *header_field* the service only allows requests, and the identity of an authenticator around
    this middleware stays.

    :param app: The WSGI application to protect.
    :param address: The URL of the service, ``"https://..."``, or ``"http://..."`` with a private
        address.
    :param auth_request_headers: The fields of the client's request that the service gets. Default:
        all; with a cache, *cache_key_headers*.
    :param auth_response_headers: The fields of the answer that are set on the request, replacing
        those of the client.
    :param header_field: The field of the answer with the user: the subject of the identity, such as
        ``"Remote-User"``.
    :param claim_headers: Claims of the identity, with the fields of the answer that have them, such
        as ``email`` and ``"Remote-Email"``. ``groups``, ``roles`` and ``permissions`` are lists.
    :param add_auth_cookies_to_response: Names of cookies that an answer that lets a request pass
        sets on the client.
    :param preserve_location_header: Whether ``Location`` is passed on as it is. Otherwise a
        relative one is resolved by *address*.
    :param preserve_request_method: Whether the service is asked with the method of the request.
    :param forward_body: Whether the service gets the body of the request; requires
        *preserve_request_method*.
    :param max_body_size: Maximum size of such a body in bytes; a larger one is a 413.
    :param max_response_body_size: Maximum size of an answer in bytes; a larger one is a 503.
    :param ca: A file of trusted certificate authorities. Default: those of the package ``certifi``.
    :param timeout: Maximum time for an answer, in seconds.
    :param max_concurrent: Maximum number of exchanges with the service at a time in each worker.
        Other requests wait for at most a second, and then get a 503.
    :param cache: Time for which an answer that lets a request pass is remembered, in seconds, or
        less if its ``Cache-Control`` says so. Default: not at all.
    :param cache_key_headers: The fields with the client's credential, such as ``["Cookie"]``:
        answers are remembered for one client each, and requests without any of them are always
        asked about. The service gets no other fields of the client.
    :param cache_scope: Whether an answer is remembered for the same ``"request"`` (method, URL and
        client address), or for every request with the same ``"credential"``.
    :param cache_size: Maximum number of answers that are remembered.
    :param on_error: What to do with a request that the service cannot be asked about: ``"refuse"``
        it, or ``"allow"`` it without an identity and without the fields, counted in ``errors``. A
        5xx counts as no answer. One that cannot be passed on may be a rejection, and is refused.
    :param required: Whether a 401 of the service rejects the request. If not, the request passes
        without an identity and without the fields.
    :param exempt: Requests that pass unasked and without an identity: a function of ``environ``, or
        a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a :class:`Limiter`.
    :param preflights: Whether the service is asked about CORS preflight requests, which have no
        credentials. Default: they pass without an identity.
    :param endpoints: The endpoints that several middlewares share. Default: its own.
    :param timer: Returns monotonic seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        address: str,
        *,
        auth_request_headers: Sequence[FieldName] | None = None,
        auth_response_headers: Sequence[FieldName] = (),
        header_field: FieldName | None = None,
        claim_headers: Mapping[str, FieldName] | None = None,
        add_auth_cookies_to_response: Sequence[str] = (),
        preserve_location_header: bool = True,
        preserve_request_method: bool = False,
        forward_body: bool = False,
        max_body_size: Bytes = 65536,
        max_response_body_size: Bytes = 1_048_576,
        ca: str | None = None,
        timeout: Seconds = 5.0,
        max_concurrent: Annotated[int, Range(1, 1000)] = 16,
        cache: Annotated[Seconds, Range(0)] = 0.0,
        cache_key_headers: Sequence[FieldName] = (),
        cache_scope: Annotated[str, OneOf(_CACHE_SCOPES)] = "request",
        cache_size: Annotated[int, Range(0)] = 10_000,
        on_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        endpoints: RemoteEndpoints | None = None,
        timer: Callable[[], float] = steady,
        refuse: Refuse = answer_with,
    ) -> None:
        check_address(address)
        if not 0 <= cache <= 86_400:
            raise ValueError(f"cache: 0 to 86400 seconds, not {cache!r}")
        if cache_scope not in _CACHE_SCOPES:
            raise ValueError(f'cache_scope is "request" or "credential", not {cache_scope!r}')
        if on_error not in ("allow", "refuse"):
            raise ValueError(f'on_error is "allow" or "refuse", not {on_error!r}')
        if forward_body and not preserve_request_method:
            raise ValueError("forward_body: requires preserve_request_method: a GET has no body")
        for name, size in (
            ("max_body_size", max_body_size),
            ("max_response_body_size", max_response_body_size),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= 1 << 30:
                raise ValueError(f"{name}: 1 byte to 1 GiB, not {size!r}")
        sent = field_names("auth_request_headers", auth_request_headers)
        keys = field_names("cache_key_headers", cache_key_headers) or ()
        _check_cache(cache, keys, sent, forward_body)
        self.app = app
        self._outcomes = Outcomes(SCHEME)
        refuse = self._outcomes.counting(refuse)
        self._set = AuthResponseFields(
            auth_response_headers, header_field, claim_headers or {}, add_auth_cookies_to_response
        )
        self._identifies = header_field is not None
        self._owns = endpoints is None
        self._endpoints = RemoteEndpoints() if endpoints is None else endpoints
        endpoint = self._endpoints.get(
            address,
            probe=probe,
            private=True,
            ca=ca,
            timeout=timeout,
            max_concurrent=max_concurrent,
            max_bytes=max_response_body_size,
        )
        self._ask = AuthService(
            endpoint,
            AuthRequestFields(keys if cache else sent),
            self._set,
            keep_location=preserve_location_header,
            keep_method=preserve_request_method,
            cache=float(cache),
            cache_keys=keys,
            per_request=cache_scope == "request",
            size=cache_size,
            timer=timer,
        ).ask
        self._most = max_body_size if forward_body else 0
        self._exempt = exempt_of(exempt)
        self._required = required
        self._passes_preflights = not preflights
        self._allows = on_error == "allow"
        effect = "passed unasked" if self._allows else "were rejected"
        self._outages = ThrottledLog(
            _log.error,
            f"the service cannot be asked, %s requests {effect} since the last such message: %s",
            wall,
        )
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and not self._keeps(environ[IDENTITY]):
            del environ[IDENTITY]
            environ.pop(CLAIMS, None)
        credentials = self._set.remove(environ)  # first: nothing below sees the client's
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        if self._passes_preflights and is_preflight(environ):
            return self.app(environ, start_response)
        try:
            answer = self._ask(environ, credentials, self._kept_body(environ))
        except Refusal as refusal:
            refused(environ, _NAME, str(refusal))
            return self._refuse(refusal.problem)(environ, start_response)
        except AuthUnavailable as error:
            allowed = self._allows and not error.answered
            if allowed or not self._allows:
                self._outages.log(str(error))
            if allowed:
                return self.app(environ, start_response)
            refused(environ, _NAME, f"the service cannot be asked: {error}")
            return self._refuse(_unavailable(error))(environ, start_response)
        if self._outages.ongoing:
            self._outages.resolved(_log.warning, "the service can be asked again")
        if isinstance(answer, AuthRejection):
            if answer.status == 401 and not self._required:
                self._outcomes.anonymous(environ)
                return self.app(environ, start_response)
            refused(environ, _NAME, f"the service answered {answer.status}")
            return self._rejected(answer)(environ, start_response)
        if answer.fields:
            environ.update(answer.fields)
            environ[SET_FIELDS] = (*environ.get(SET_FIELDS, ()), *answer.fields)
        if answer.identity is not None:
            environ.pop(CLAIMS, None)  # those of another credential
            environ[IDENTITY] = answer.identity
        self._outcomes.accepted(environ)
        if answer.cookies:
            return self.app(environ, _with_cookies(start_response, answer.cookies))
        return self.app(environ, start_response)

    @property
    def errors(self) -> int:
        """Number of requests that the service could not be asked about."""
        return self._outages.total

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        self._set.remove(environ)

    def close(self) -> None:
        """Close the idle connections, unless *endpoints* was given."""
        if self._owns:
            self._endpoints.close()

    def _keeps(self, caller: object) -> bool:
        """Return whether *caller* was verified by a middleware around this one, and stays."""
        if not isinstance(caller, Identity):
            return False
        return not self._identifies or (not self._required and caller.scheme != SCHEME)

    def _kept_body(self, environ: WSGIEnvironment) -> bytes | None:
        """Return the body that the service gets, which the app can read as well.

        :raises Refusal: It is too large or malformed, or cannot be read.
        """
        kept = buffer_body(environ, self._most) if self._most else None
        body = None if kept is None else client_body(environ)
        if kept is None or body is None:
            return None
        too_large = Refusal.of(413, f"The body has to be at most {self._most} bytes.")
        if (body.length or 0) > self._most:
            raise too_large
        blocks = []
        try:
            while block := body.read(65536):
                blocks.append(block)
                if kept.too_large:
                    raise too_large
        except BodyError as error:
            raise Refusal.of(400, "The body could not be read to its end.", str(error)) from None
        kept.rewind()
        return b"".join(blocks)

    def _rejected(self, answer: AuthRejection) -> WSGIApplication:
        if answer.status not in (401, 403, 407, 429):  # such as a redirect to a login page
            return ForwardedAnswer.of(answer)
        kind = AnonymousAnswer if answer.status == 401 and answer.anonymous else ForwardedAnswer
        return self._refuse(kind.of(answer))


def _unavailable(error: AuthUnavailable) -> Problem:
    if error.timed_out:
        return Problem(504, "The authentication service did not answer in time.")
    again = (("Retry-After", str(max(1, ceil(error.again_in)))),)
    return Problem(503, "The authentication service is not available.", headers=again)


def _with_cookies(
    start_response: StartResponse, cookies: Sequence[tuple[str, str]]
) -> StartResponse:
    """Return a *start_response* that adds *cookies* to the fields of the app."""

    def start(
        status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        fields = with_cookies(headers, cookies)
        if exc_info:
            return start_response(status, fields, exc_info)
        return start_response(status, fields)

    return start


def _check_cache(
    cache: float, keys: Sequence[str], sent: Sequence[str] | None, forward_body: bool
) -> None:
    """Check that an answer that is remembered depends on nothing else than its key.

    :raises ValueError: It does; the message names the option.
    """
    if not cache:
        if keys:
            raise ValueError('cache_key_headers: requires cache, such as "30s"')
        return
    if not keys:
        raise ValueError(
            'cache_key_headers: required with cache, such as ["Cookie"]: the fields with the '
            "client's credential, as another client must not get the answer"
        )
    if forward_body:
        raise ValueError("cache: mutually exclusive with forward_body")
    others = {name.lower() for name in sent or ()} - {name.lower() for name in keys}
    if others:
        raise ValueError(
            f"auth_request_headers: with cache, the service gets the fields of cache_key_headers "
            f"only, as an answer that depends on {min(others)} must not be remembered without it"
        )
