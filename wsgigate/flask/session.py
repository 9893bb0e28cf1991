"""The session of a Flask app as the credential of requests to other services.

A user who has logged in to the app in the usual way is the verified caller of the routes behind
:class:`FlaskSession`. :mod:`wsgigate.auth.session_guard` protects the session on its way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import iscoroutinefunction
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, request, session
from werkzeug.exceptions import SecurityError

from wsgigate.auth.challenge import CredentialsMissing, bearer_challenge, check_realm
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.session_guard import SessionGuard
from wsgigate.config.types import import_object
from wsgigate.flask.refusals import render_refusals
from wsgigate.flask.settings import FLASK_APP
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, prefers_html, refused
from wsgigate.http.wsgi import CLAIMS, is_preflight

__all__ = ["FlaskSession"]


class FlaskSession:
    """Authentication: allow requests of users who are logged in to a Flask app only.

    The caller is in ``environ["wsgigate.identity"]``, with the scheme ``"session"``. A request that
    changes something is rejected if a page of another site may have sent it. The app's session
    cookie never reaches *app*, and a cookie of its name in a response of *app* is dropped; all
    other cookies pass. A permanent session is renewed as by a request to the Flask app. A host that
    is not in the app's ``TRUSTED_HOSTS`` gets a 400 here, too.

    In ``app.config`` it is the middleware ``{"use": "wsgigate.flask:FlaskSession"}`` of a route.

    :param app: The WSGI application to protect, such as the forwarder to a service.
    :param flask_app: The Flask app, or its name, ``"package.module:app"``. Default: the app that
        the extension wraps.
    :param load_user: A function that is called within a request of the Flask app and returns the
        user: a subject, a table of claims, an :class:`~wsgigate.Identity`, a user of Flask-Login,
        or None; or its name, ``"package.module:function"``. Default: the ``current_user`` of
        Flask-Login if the app uses it, else the subject in ``session[user_key]``.
    :param user_key: The key of the user in the session.
    :param required: Whether a request without a user is rejected.
    :param login_url: Where browsers that open a page without a user are redirected, with the page
        in the parameter ``next``: a path, which includes the one that the app is mounted at, or a
        URL. Default: they get a 401, too.
    :param trusted_origins: Other origins whose pages may send requests that change something, such
        as ``"https://www.example.com"``.
    :param check_csrf: A function that is called within a request of the Flask app, for requests
        that change something, and returns a false value or raises an exception to reject the
        request; or its name. ``None`` allows it, as ``validate_csrf`` of Flask-WTF returns nothing
        for the right token. It sees no body, so the token is in a request field.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`~wsgigate.Limiter`.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param refuse: A function that turns a :class:`~wsgigate.Problem` into the WSGI app that
        responds with it. Default: the error handlers of the Flask app.
    :raises ValueError: An argument is invalid; the message names it.
    """

    guards_routes = True
    """It hides the session from the app, so it cannot stand around the Flask app itself."""

    def __init__(
        self,
        app: WSGIApplication,
        flask_app: Flask | str | None = None,
        *,
        load_user: Callable[[], object] | str | None = None,
        user_key: str = "user_id",
        required: bool = True,
        login_url: str | None = None,
        trusted_origins: Sequence[str] = (),
        check_csrf: Callable[[], object] | str | None = None,
        exempt: Exempt | Mapping[str, Any] | None = None,
        realm: str = "api",
        refuse: Refuse | None = None,
    ) -> None:
        check_realm(realm)
        if not isinstance(required, bool):
            raise ValueError(f"required is True or False, not {required!r}")
        if login_url is not None and not (isinstance(login_url, str) and _URL.fullmatch(login_url)):
            raise ValueError(f'login_url: expected a path such as "/login", not {login_url!r}')
        if not isinstance(user_key, str):
            raise ValueError(f"user_key: expected a text, not {user_key!r}")
        SessionGuard((), trusted_origins)  # a malformed origin is an error here
        self.app = app
        self._flask_app = _flask_app(flask_app)
        self._load_user = _function("load_user", load_user)
        self._user_key = user_key
        self._required = required
        self._login_url = login_url
        self._trusted_origins = trusted_origins
        self._check_csrf = _function("check_csrf", check_csrf)
        self._exempt = exempt_of(exempt)
        self._refuse = refuse
        challenge = bearer_challenge(realm, scheme="Session")
        self._missing = CredentialsMissing(401, "Log in first.", headers=(challenge,))
        self._forged = Problem(403, "Requests from other sites are not allowed.")
        self._untrusted = Problem(400, "This host is not served.")
        self._guards: dict[Flask, SessionGuard] = {}  # one, unless several apps share a route

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        flask_app, guard = self._app_of(environ), self._guard_for(environ)
        outer = environ.get(IDENTITY)
        verified = isinstance(outer, Identity) and outer.scheme != "session"
        if self._required or not verified:
            environ.pop(IDENTITY, None)
            environ.pop(CLAIMS, None)
        passes = (verified and not self._required) or (
            self._exempt is not None and self._exempt(environ)
        )
        if passes or is_preflight(environ):
            guard.hide(environ)
            return self.app(environ, guard.starting(start_response))
        with flask_app.request_context(_without_body(environ)):
            if isinstance(request.routing_exception, SecurityError):  # TRUSTED_HOSTS
                return self._reject(
                    self._untrusted,
                    "the app does not trust the host",
                    flask_app,
                    environ,
                    start_response,
                )
            identity = self._identity(flask_app)
            why = "" if identity is None else guard.forgery(environ)
            if identity is not None and not why and guard.changes_something(environ):
                why = self._csrf_failure()
            renewal = _renewal(flask_app) if identity is not None and not why else []
        if why:
            return self._reject(self._forged, why, flask_app, environ, start_response)
        if identity is None and self._required:
            return self._anonymous(flask_app, environ, start_response)
        guard.hide(environ)
        if identity is not None:
            environ[IDENTITY] = identity
            environ[CLAIMS] = dict(identity.claims)
        return self.app(environ, guard.starting(start_response, renewal))

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove the cookies that no app behind it gets from a client."""
        self._guard_for(environ).hide(environ)

    def starting(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` by which the app behind cannot change the session."""
        return self._guard_for(environ).starting(start_response)

    def _guard_for(self, environ: WSGIEnvironment) -> SessionGuard:
        flask_app = self._app_of(environ)
        return self._guards.get(flask_app) or self._guard_of(flask_app)

    def _app_of(self, environ: WSGIEnvironment) -> Flask:
        found = self._flask_app or environ.get(FLASK_APP)
        if not isinstance(found, Flask):
            raise RuntimeError(
                "FlaskSession has no Flask app: pass flask_app, or use it in an app that the "
                "extension wraps"
            )
        return found

    def _guard_of(self, flask_app: Flask) -> SessionGuard:
        names = {flask_app.session_interface.get_cookie_name(flask_app)}
        if hasattr(flask_app, "login_manager"):
            names.add(flask_app.config.get("REMEMBER_COOKIE_NAME", "remember_token"))
        guard = SessionGuard(names, self._trusted_origins)
        return self._guards.setdefault(flask_app, guard)

    def _identity(self, flask_app: Flask) -> Identity | None:
        """Return the user of the current request of *flask_app*.

        :raises RuntimeError: The app has no sessions.
        """
        if flask_app.session_interface.is_null_session(session):
            raise RuntimeError(f"the app {flask_app.name!r} has no sessions: set its SECRET_KEY")
        if self._load_user is not None:
            return _identity_of(self._load_user())
        if hasattr(flask_app, "login_manager"):
            return _identity_of(import_module("flask_login").current_user)
        return _identity_of(session.get(self._user_key))

    def _csrf_failure(self) -> str:
        if self._check_csrf is None:
            return ""
        try:
            valid = self._check_csrf()
        except Exception as error:  # how a check says no
            return f"check_csrf raised {type(error).__name__}"
        return "" if valid is None or valid else f"check_csrf returned {valid!r}"

    def _anonymous(
        self, flask_app: Flask, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        page = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if self._login_url is None or not page or not prefers_html(environ.get("HTTP_ACCEPT", "")):
            return self._reject(self._missing, "no session", flask_app, environ, start_response)
        refused(environ, "FlaskSession", "no session")
        whole = environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]
        path = "/" + quote(whole.lstrip("/"), encoding="latin-1")  # "//a.example" is another site
        query = environ.get("QUERY_STRING", "")
        back = urlencode({"next": f"{path}?{query}" if query else path})
        location = f"{self._login_url}{'&' if '?' in self._login_url else '?'}{back}"
        headers = [("Location", location), ("Content-Length", "0"), ("Cache-Control", "no-store")]
        start_response("302 Found", headers)
        return []

    def _reject(
        self,
        problem: Problem,
        reason: str,
        flask_app: Flask,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "FlaskSession", reason)
        refuse = self._refuse or render_refusals(flask_app)
        return refuse(problem)(environ, start_response)


def _without_body(environ: WSGIEnvironment) -> WSGIEnvironment:
    """Return a copy of *environ* without its body, which is forwarded and can be read only once."""
    copied = {**environ, "wsgi.input": BytesIO(), "CONTENT_LENGTH": "0"}
    copied.pop("HTTP_TRANSFER_ENCODING", None)
    return copied


def _renewal(flask_app: Flask) -> list[tuple[str, str]]:
    """Return the ``Set-Cookie`` fields that renew the session of the current request."""
    response = flask_app.response_class()
    flask_app.session_interface.save_session(flask_app, session, response)
    return [("Set-Cookie", value) for value in response.headers.getlist("Set-Cookie")]


def _identity_of(user: Any) -> Identity | None:
    """Return the identity of what ``load_user`` has returned.

    :raises TypeError: It is no user.
    """
    if hasattr(user, "is_authenticated") and hasattr(user, "get_id"):  # a user of Flask-Login
        user = user.get_id() if user.is_authenticated else None
    if user is None or user is False or user == "":
        return None
    if isinstance(user, Identity):
        return user
    if isinstance(user, (str, int, UUID)) and not isinstance(user, bool):
        return Identity(str(user), "session", claims={"sub": str(user)})
    if isinstance(user, Mapping):
        return Identity.from_claims(user, scheme="session")
    raise TypeError(
        "load_user returns a subject, a table of claims, an Identity, a user of Flask-Login or "
        f"None, not {type(user).__name__}"
    )


def _flask_app(given: Flask | str | None) -> Flask | None:
    if isinstance(given, str):
        given = import_object(given)
    if given is not None and not isinstance(given, Flask):
        raise ValueError(f"flask_app: expected a Flask app or its name, not {given!r}")
    return given


def _function(called: str, given: Callable[[], object] | str | None) -> Any:
    if isinstance(given, str):
        try:
            given = import_object(given)
        except ValueError as error:
            raise ValueError(f"{called}: {error}") from None
    if given is not None and not callable(given):
        raise ValueError(f"{called}: expected a function, not {given!r}")
    if iscoroutinefunction(given):
        raise ValueError(f"{called}: expected a function, not a coroutine function")
    return given


_URL = re.compile(r"(?:/|https?://)[!-\"$-~]*")
"""A path or a URL without a fragment, which would hide the parameter that is added."""
