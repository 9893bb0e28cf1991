"""Django's session as the login of services behind the gateway.

The user logs in to the project; a route guarded by :class:`DjangoSession` accepts that session for
another service. Django itself decides: its session engine loads the session,
``django.contrib.auth.get_user()`` finds the user and compares the session with the password and
with ``SECRET_KEY_FALLBACKS``, and ``CsrfViewMiddleware`` compares tokens and origins.

Theory of operation. A forwarded request never passes Django's own handler, which would open and
close its database connections. So the signals that begin and end a request are sent here, around
the look-up alone: the connection is released before the request is forwarded, however long the
service takes. Inside of ``GateMiddleware`` Django's handler sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import isclass
from typing import Annotated, Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.apps import apps
from django.conf import settings
from django.contrib import auth
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest, get_script_name
from django.core.signals import request_finished, request_started
from django.db import Error as DatabaseError
from django.http import HttpResponse, QueryDict
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import set_script_prefix
from django.utils.module_loading import import_string

from wsgigate.auth.challenge import CredentialsMissing, bearer_challenge, check_realm
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.session_guard import SessionGuard
from wsgigate.django.identity import SESSION
from wsgigate.django.middleware import REQUEST
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with, prefers_html, refused
from wsgigate.http.wsgi import CLAIMS, Headers, is_preflight, is_websocket
from wsgigate.rules.arguments import OneOf, checked

__all__ = ["DjangoSession"]

_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")

_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


@checked
class DjangoSession:
    """Authentication: allow requests of users who are logged in to the Django project only.

    The caller is in ``environ["wsgigate.identity"]``: its ``scheme`` is ``"session"``, its claims
    are ``sub``, ``username`` and ``roles``, with ``staff`` and ``superuser``. An inactive user is
    anonymous, and so is one whose password has changed since the login.

    Requests that change something need Django's CSRF token in the field ``X-CSRFToken``, and come
    from the site itself or from ``CSRF_TRUSTED_ORIGINS``; so do WebSockets, without a token.

    The cookies of the session and of CSRF, and the token, are not forwarded; the service cannot
    set or clear these cookies. All other cookies pass.

    It guards the routes of services, in the ``middleware`` of a route; Django guards its own views.

    :param app: The WSGI application to protect, such as a forwarder.
    :param required: Whether an anonymous request is rejected with a 401. If not, the identity that
        an outer middleware has verified, such as that of a token, stays.
    :param login_redirect: Whether an anonymous browser that opens a page is redirected to
        ``LOGIN_URL`` instead.
    :param csrf: The check of requests that change something: ``"token"`` is Django's own,
        ``"origin"`` compares ``Origin`` and ``Sec-Fetch-Site`` only, for pages that cannot send the
        token.
    :param subject: The subject of the identity: the user's ``"id"``, or its ``"username"``.
    :param email: Whether the claims have the user's ``email``.
    :param groups: Whether the claims have the names of the user's ``groups``.
    :param permissions: Whether the user's permissions, such as ``"shop.view_order"``, are scopes.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests need a session, which browsers never send.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid, or Django is not set up; the message names it.
    """

    guards_routes = True
    """It hides the session from the app, so it cannot stand around Django itself."""

    def __init__(
        self,
        app: WSGIApplication,
        *,
        required: bool = True,
        login_redirect: bool = False,
        csrf: Annotated[str, OneOf(("token", "origin"))] = "token",
        subject: Annotated[str, OneOf(("id", "username"))] = "id",
        email: bool = False,
        groups: bool = False,
        permissions: bool = False,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        realm: str = "api",
        refuse: Refuse = answer_with,
    ) -> None:
        if csrf not in ("token", "origin"):
            raise ValueError(f'csrf: expected "token" or "origin", got {csrf!r}')
        if subject not in ("id", "username"):
            raise ValueError(f'subject: expected "id" or "username", got {subject!r}')
        check_realm(realm)
        try:
            self._sessions = _session_middleware()
        except ImproperlyConfigured as error:
            raise ValueError(f"Django is not set up: {error}") from None
        self.app = app
        self._guard = SessionGuard([settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME])
        self._cookie = settings.SESSION_COOKIE_NAME
        self._token_key = settings.CSRF_HEADER_NAME
        self._csrf = _CsrfCheck(_no_response)
        self._needs_token = csrf == "token"
        self._required = required
        self._redirects = login_redirect
        self._by_name = subject == "username"
        self._email, self._groups, self._permissions = email, groups, permissions
        self._exempt = exempt_of(exempt)
        self._passes_preflights = not preflights
        challenge = bearer_challenge(realm, scheme="Session")
        self._anonymous = refuse(CredentialsMissing(401, "Login required!", headers=(challenge,)))
        self._forged = refuse(Problem(403, "Requests from other sites are not allowed."))
        self._unavailable = refuse(
            Problem(503, "Sessions cannot be checked.", headers=(("Retry-After", "5"),))
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        outer = environ.get(IDENTITY)
        verified = isinstance(outer, Identity) and outer.scheme != SESSION
        if self._required or not verified:
            environ.pop(IDENTITY, None)
            environ.pop(CLAIMS, None)
        if (
            (verified and not self._required)  # by an outer middleware, such as a token
            or (self._exempt is not None and self._exempt(environ))
            or (self._passes_preflights and is_preflight(environ))
        ):
            return self._forward(environ, start_response, [])
        try:
            found = self._look_up(environ)
        except DatabaseError as error:
            refused(environ, "DjangoSession", f"the database failed: {type(error).__name__}")
            return self._unavailable(environ, start_response)
        if found.identity is None and not self._required:
            return self._forward(environ, start_response, found.fields)
        start = self._guard.starting(start_response, found.fields)
        if found.identity is None:
            refused(environ, "DjangoSession", "the browser has no session of a user")
            if found.login:
                where = [("Location", found.login), ("Content-Length", "0")]
                start("302 Found", [*where, ("Cache-Control", "no-store")])
                return []
            return self._anonymous(environ, start)
        if found.forgery:
            refused(environ, "DjangoSession", found.forgery)
            return self._forged(environ, start)
        environ[IDENTITY] = found.identity
        environ[CLAIMS] = dict(found.identity.claims)
        return self._forward(environ, start_response, found.fields)

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove the cookies and the token that no app behind it gets from a client."""
        self._guard.hide(environ)
        environ.pop(self._token_key, None)

    def starting(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` by which the app behind cannot change the session."""
        return self._guard.starting(start_response)

    def _forward(
        self, environ: WSGIEnvironment, start_response: StartResponse, fields: Headers
    ) -> Iterable[bytes]:
        self.hide(environ)
        return self.app(environ, self._guard.starting(start_response, fields))

    def _look_up(self, environ: WSGIEnvironment) -> _SessionState:
        """Return what Django knows of the browser, with a connection only for that long."""
        request = _GuardRequest(dict(environ))  # Django adds keys of its own
        around = environ.get(REQUEST)
        if around is not None:
            # the test client of Django disables the check of CSRF by this attribute
            unchecked = getattr(around[0], "_dont_enforce_csrf_checks", False)
            request._dont_enforce_csrf_checks = unchecked
            return self._found(request)
        request_started.send(sender=type(self), environ=request.environ)
        set_script_prefix(get_script_name(request.environ))  # of LOGIN_URL
        try:
            return self._found(request)
        finally:
            request_finished.send(sender=type(self))

    def _found(self, request: Any) -> _SessionState:
        if self._cookie not in request.COOKIES:
            return _SessionState(None, "", self._login(request), [])
        response = HttpResponse()
        self._sessions.process_request(request)
        user = auth.get_user(request)
        identity, forgery = None, ""
        if user.is_authenticated and getattr(user, "is_active", True):
            identity = self._identity(user)
            forgery = self._forgery(request)
        fields: Headers = []
        # A forged request must not renew the session. But it may have begun a new one, with another
        # of the SECRET_KEY_FALLBACKS; without its cookie the user would be logged out.
        if not forgery or request.session.session_key != request.COOKIES[self._cookie]:
            try:
                self._sessions.process_response(request, response)
            except SessionInterrupted:  # the user has logged out in another request
                identity = None
            fields = [("Set-Cookie", each.OutputString()) for each in response.cookies.values()]
        return _SessionState(identity, forgery, "" if identity else self._login(request), fields)

    def _identity(self, user: Any) -> Identity:
        name = user.get_username()
        claims: dict[str, Any] = {"sub": name if self._by_name else str(user.pk), "username": name}
        roles = [role for role in ("staff", "superuser") if getattr(user, f"is_{role}", False)]
        if roles:
            claims["roles"] = roles
        if self._email:
            claims["email"] = getattr(user, user.get_email_field_name(), "")
        if self._groups:
            claims["groups"] = sorted(user.groups.values_list("name", flat=True))
        scopes = frozenset(user.get_all_permissions()) if self._permissions else frozenset()
        return Identity(claims["sub"], SESSION, claims=claims, scopes=scopes)

    def _forgery(self, request: Any) -> str:
        """Return why a request may be forged by a page of another site; empty if it cannot be."""
        websocket = is_websocket(request.environ)
        if request.method in _SAFE and not websocket:
            return ""
        if getattr(request, "_dont_enforce_csrf_checks", False):
            return ""
        origin = request.META.get("HTTP_ORIGIN")
        if origin is not None:
            if not self._csrf._origin_verified(request):
                return f"Origin {origin!r} is neither this site nor in CSRF_TRUSTED_ORIGINS"
        elif request.META.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
            return "a page of another site sent it with the browser's session"
        if websocket or not self._needs_token:
            return ""
        self._csrf.process_request(request)
        return self._csrf.process_view(request, _no_response, (), {}) or ""

    def _login(self, request: Any) -> str:
        """Return the URL of the login for a browser that opens a page; empty for all others."""
        accept = request.META.get("HTTP_ACCEPT", "")
        if not self._redirects or request.method not in ("GET", "HEAD") or not prefers_html(accept):
            return ""
        if is_websocket(request.environ):
            return ""
        from django.contrib.auth.views import redirect_to_login

        return str(redirect_to_login(request.get_full_path()).url)


class _SessionState(NamedTuple):
    """What Django knows of a browser.

    :ivar identity: The user; None for an anonymous browser.
    :ivar forgery: Why the request may be forged; empty if it cannot be.
    :ivar login: Where an anonymous browser is redirected; empty for a 401.
    :ivar fields: The fields by which Django renews or removes the session's cookie.
    """

    identity: Identity | None
    forgery: str
    login: str
    fields: Headers


class _GuardRequest(WSGIRequest):  # type: ignore[misc]
    """A request whose body is left to the service: the CSRF token comes from a field alone."""

    @property
    def POST(self) -> QueryDict:
        """No fields of a form."""
        return QueryDict()


class _CsrfCheck(CsrfViewMiddleware):  # type: ignore[misc]
    """Django's check of CSRF, which returns the reason of a rejection, as DRF's does."""

    def _reject(self, request: Any, reason: str) -> str:
        return f"CSRF: {reason}"


def _no_response(*_: Any) -> HttpResponse:
    return HttpResponse()


def _session_middleware() -> Any:
    """Return the session middleware of the project, which may be a class of its own."""
    if not apps.models_ready:
        raise ImproperlyConfigured(
            "set DJANGO_SETTINGS_MODULE and call django.setup(), as get_wsgi_application() does"
        )
    made: Any = import_string(_SESSIONS)
    for path in settings.MIDDLEWARE:
        try:
            found = import_string(path)
        except ImportError:  # Django reports it
            continue
        if isclass(found) and issubclass(found, made):
            made = found
            break
    return made(_no_response)
