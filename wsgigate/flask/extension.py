"""The Flask extension: a gateway around the application, configured by ``app.config``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Blueprint, Flask, Response

from wsgigate.config.build import assemble, check_store_later
from wsgigate.config.build_routes import policy_name
from wsgigate.config.errors import ConfigError
from wsgigate.flask.commands import commands
from wsgigate.flask.identity import get_identity
from wsgigate.flask.limits import AppLimits, LimitDecorator, check_functions, exempt, limits_of
from wsgigate.flask.refusals import (
    InsufficientPermissions,
    InvalidCredentials,
    LimitExceeded,
    MissingCredentials,
    Refused,
    add_fields,
    render_refusals,
)
from wsgigate.flask.settings import (
    EXTENSION,
    FLASK_APP,
    PREFIX,
    ViewSettings,
    given_settings,
    read_settings,
)
from wsgigate.flask.testing import IdentityClient
from wsgigate.gateway import Gateway
from wsgigate.http.caller import KeyNames
from wsgigate.http.wsgi import PROPAGATE
from wsgigate.middleware.limiter import LimitedViews
from wsgigate.rules.algorithms import QuotaSpec

__all__ = ["WsgiGate"]

H = TypeVar("H", bound=Callable[..., Any])
V = TypeVar("V", bound="Callable[..., Any] | Blueprint")


class _ExtensionState:
    """What the extension keeps of one app, in ``app.extensions["wsgigate"]``."""

    def __init__(self, gateway: Gateway, settings: ViewSettings, limits: AppLimits) -> None:
        self.gateway = gateway
        self.settings = settings
        self.limits = limits


class WsgiGate:
    """The gateway around a Flask app.

    The keys of ``app.config`` that begin with ``WSGIGATE_`` are the tables of a gateway's file, or
    ``WSGIGATE_FILE`` names one. Requests pass the middlewares, and the routes that are forwarded;
    all others reach the app. The app's error handlers render the rejections.

    Use one object for the whole program: ``gate = WsgiGate()`` beside the app, ``gate.init_app``
    in the application factory. Several apps may share it.

    :param app: The app, for :meth:`init_app`.
    :param default_limits: The limits of each view that has none of its own, such as
        ``["100 per hour"]``, unless ``WSGIGATE_LIMIT_DEFAULT`` is set.
    :param key: The caller that limits of views count, as for a :class:`~wsgigate.Limiter`, or a
        function without a parameter, unless ``WSGIGATE_LIMIT_KEY`` is set. Default: the address.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        default_limits: Sequence[QuotaSpec] = (),
        key: KeyNames | Callable[[], object] | None = None,
    ) -> None:
        self._apps: list[Flask] = []
        self._default_limits = default_limits
        self._key = key
        self._filters: list[Callable[[], bool]] = []
        self._handlers: dict[type[Refused], Callable[..., Any]] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings of *app*, and wrap it in the gateway.

        Call it when ``app.config`` is complete: a setting that changes before the first request
        makes every request an error. Nothing is opened before the first request.

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
        check_store_later(gateway, f"correct store.url of {settings.path}")
        views = replace(
            settings.views,
            limit_default=_set(settings.views.limit_default, self._default_limits),
            limit_key=_set(settings.views.limit_key, self._key),
        )
        namespace = f"views-{policy_name(settings.gateway.config.gateway.name)}"
        try:
            limits = AppLimits(
                LimitedViews(app.import_name), gateway.store, namespace, views, self._filters
            )
        except ValueError as error:
            which = "LIMIT_KEY" if str(error).startswith("key") else "LIMIT_DEFAULT"
            raise ConfigError("app.config", [(PREFIX + which, str(error))]) from None
        app.extensions[EXTENSION] = _ExtensionState(gateway, views, limits)
        app.before_request(_UnchangedSettings(app))
        app.before_request(limits.before_request)
        app.after_request(limits.after_request)
        app.after_request(add_fields)
        if settings.mounts:
            app.wsgi_app = _Mounted(gateway, app)  # type: ignore[method-assign]
        if app.test_client_class is None:
            app.test_client_class = IdentityClient
        app.context_processor(_template_names)
        app.cli.add_command(commands)
        for kind, handler in self._handlers.items():
            app.register_error_handler(kind, handler)
        self._apps.append(app)

    def limit(
        self,
        quota: QuotaSpec | Callable[[], QuotaSpec | None],
        *,
        key: KeyNames | Callable[[], object] | None = None,
        methods: Sequence[str] = (),
        per_method: bool = False,
        cost: int | Callable[[], int] = 1,
        exempt_when: Callable[[], bool] | None = None,
        deduct_when: Callable[[Response], bool] | None = None,
        override_defaults: bool = True,
        error_message: str = "",
        name: str = "",
        observe: bool = False,
    ) -> LimitDecorator:
        """Return a decorator that limits how often a caller may use a view.

        ``@gate.limit("5/minute")`` stands below ``@app.route``: above it, nothing is limited. Each
        view has a count of its own, and all workers count together. ``decorators =
        [gate.limit(...)]`` of a class-based view, ``gate.limit(...)(blueprint)``,
        ``blueprint.before_request(gate.limit(...))`` and ``with gate.limit(...):`` within a view
        work as well. A request over the quota raises :class:`LimitExceeded` (429). Functions are
        called without an argument, within the request.

        :param quota: The quota, as for a :class:`~wsgigate.Limiter`, or a function that returns
            it; None for no limit.
        :param key: The caller to count: a name such as ``"subject|address"``, a function that
            returns it, or several of these; None from a function exempts the request. Default:
            the *key* of the extension.
        :param methods: The methods that are limited; GET includes HEAD. Default: all.
        :param per_method: Whether each method has a count of its own; HEAD counts as GET.
        :param cost: Quota units that a request consumes, or a function that returns them.
        :param exempt_when: A function that returns whether the request is exempt.
        :param deduct_when: A function of the response that returns whether the request consumes
            something, such as a failed login. Before the view it is only checked whether anything
            is left, so requests that run at the same time may exceed the quota together.
        :param override_defaults: Whether the view has no default limits.
        :param error_message: The detail of the rejection.
        :param name: The name of the limit in response fields. Default: the name of the view; of
            several that one decorator limits, each for itself, the name of the first.
        :param observe: Dry run: count and log only.
        :raises ValueError: An argument is invalid; the message names it.
        """
        return LimitDecorator(
            quota,
            key=key,
            methods=methods,
            per_method=per_method,
            cost=cost,
            exempt_when=exempt_when,
            deduct_when=deduct_when,
            override_defaults=override_defaults,
            error_message=error_message,
            name=name,
            observe=observe,
        )

    def shared_limit(
        self, quota: QuotaSpec | Callable[[], QuotaSpec | None], scope: str, **options: Any
    ) -> LimitDecorator:
        """Return a decorator whose views share one count.

        :param quota: As for :meth:`limit`.
        :param scope: The name of the count.
        :param options: Further arguments of :meth:`limit`.
        :raises ValueError: An argument is invalid; the message names it.
        """
        return LimitDecorator(quota, name=scope, shared=True, **options)

    def exempt(self, view: V) -> V:
        """Exempt *view* from the default limits and from those of its blueprint.

        :param view: A view, or a blueprint, whose views have no default limits then.
        """
        exempt(view)
        return view

    def request_filter(self, function: Callable[[], bool]) -> Callable[[], bool]:
        """Exempt the requests for which *function* returns true from the limits of all views.

        :raises ValueError: It is no function, or a coroutine function.
        """
        if not callable(function):
            raise ValueError(f"function: expected a function, not {function!r}")
        check_functions(function=[function])
        self._filters.append(function)
        return function

    def reset(self) -> None:
        """Reset the counts of all limits of views, for all workers.

        :raises StoreError: The store fails.
        """
        for app in self._apps:
            limits_of(app).reset()

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


class _UnchangedSettings:
    """Checks at the first request that no setting has changed since ``init_app`` has read them.

    Otherwise an authenticator that was configured too late would silently protect nothing.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._read = given_settings(app)
        self._checked = False

    def __call__(self) -> None:
        if self._checked:
            return
        now = given_settings(self._app)
        changed = [
            key
            for key in {**self._read, **now}
            if self._read.get(key, _NONE) != now.get(key, _NONE)
        ]
        if changed:
            raise RuntimeError(
                f"{', '.join(changed)} changed after init_app(), which had read app.config: call "
                "init_app() when app.config is complete"
            )
        self._checked = True


_NONE = object()


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


def _set(setting: object, argument: object) -> object:
    return argument if setting is None else setting


def _template_names() -> dict[str, object]:
    return {"current_identity": get_identity()}
