"""The Flask extension: a gateway around the application, configured by ``app.config``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from wsgigate.config.build import assemble
from wsgigate.config.errors import ConfigError
from wsgigate.flask.identity import get_identity
from wsgigate.flask.refusals import (
    InsufficientPermissions,
    InvalidCredentials,
    LimitExceeded,
    MissingCredentials,
    Refused,
    render_refusals,
)
from wsgigate.flask.settings import EXTENSION, ViewSettings, read_settings
from wsgigate.flask.testing import IdentityClient
from wsgigate.gateway import Gateway
from wsgigate.http.wsgi import PROPAGATE

__all__ = ["FLASK_APP", "WsgiGate"]

FLASK_APP = "wsgigate.flask.app"
"""``Flask``: the app that the gateway wraps; set by the extension."""

H = TypeVar("H", bound=Callable[..., Any])


class _State:
    """What the extension keeps of one app, in ``app.extensions["wsgigate"]``."""

    def __init__(self, gateway: Gateway, settings: ViewSettings) -> None:
        self.gateway = gateway
        self.settings = settings


class WsgiGate:
    """The gateway around a Flask app.

    The keys of ``app.config`` that begin with ``WSGIGATE_`` are the tables of a gateway's file, or
    ``WSGIGATE_FILE`` names one. Requests pass the middlewares, and the routes that are forwarded;
    all others reach the app. The app's error handlers render the rejections.

    Use one object for the whole program: ``gate = WsgiGate()`` beside the app, ``gate.init_app``
    in the application factory. Several apps may share it.

    :param app: The app, for :meth:`init_app`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._apps: list[Flask] = []
        self._handlers: dict[type[Refused], Callable[..., Any]] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings of *app*, and wrap it in the gateway.

        Call it when ``app.config`` is complete. Nothing is opened before the first request.

        :raises ConfigError: A setting is invalid; the exception has all errors.
        :raises RuntimeError: *app* has the extension already.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"init_app() was called twice for the app {app.name!r}: the gateway would check "
                "and count each request twice"
            )
        settings = read_settings(app)
        try:
            gateway = assemble(
                settings.gateway.config,
                path=settings.path,
                errors=settings.gateway.errors,
                fallback=_raising(app.wsgi_app),
                refuse=render_refusals(app),
            ).gateway
        except ConfigError as error:
            raise settings.renamed(error) from None
        app.extensions[EXTENSION] = _State(gateway, settings.views)
        if settings.mounts:
            app.wsgi_app = _Mounted(gateway, app)  # type: ignore[method-assign]
        if app.test_client_class is None:
            app.test_client_class = IdentityClient
        app.context_processor(_template_names)
        for kind, handler in self._handlers.items():
            app.register_error_handler(kind, handler)
        self._apps.append(app)

    def on_missing(self, handler: H) -> H:
        """Let *handler* respond to requests without credentials, in all apps.

        Like a function of ``app.errorhandler(MissingCredentials)``, it receives the exception and
        returns the response. The challenge in ``WWW-Authenticate`` is added unless it sets one.
        """
        return self._on(MissingCredentials, handler)

    def on_invalid(self, handler: H) -> H:
        """Let *handler* respond to requests with invalid credentials, in all apps."""
        return self._on(InvalidCredentials, handler)

    def on_insufficient(self, handler: H) -> H:
        """Let *handler* respond to callers without the permission, in all apps."""
        return self._on(InsufficientPermissions, handler)

    def on_limit(self, handler: H) -> H:
        """Let *handler* respond to callers that have used up a quota, in all apps."""
        return self._on(LimitExceeded, handler)

    def close(self) -> None:
        """Stop the background tasks of all apps, and release what their gateways opened."""
        for app in self._apps:
            app.extensions[EXTENSION].gateway.close()

    def _on(self, kind: type[Refused], handler: H) -> H:
        self._handlers[kind] = handler
        for app in self._apps:
            app.register_error_handler(kind, handler)
        return handler


class _Mounted:
    """The outermost app: the gateway around a Flask app."""

    def __init__(self, gateway: Gateway, flask_app: Flask) -> None:
        self.app = gateway
        self._flask_app = flask_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[FLASK_APP] = self._flask_app
        return self.app(environ, start_response)


def _raising(app: WSGIApplication) -> WSGIApplication:
    """Return *app*, whose exceptions reach the server.

    Flask raises an exception only if a debugger or a test client waits for it; otherwise it has
    responded with 500 itself.
    """

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except Exception:
            environ[PROPAGATE] = True
            raise

    return call


def _template_names() -> dict[str, object]:
    return {"current_identity": get_identity()}
