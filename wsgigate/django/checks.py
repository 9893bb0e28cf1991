"""System checks: mistakes of a project's settings that would show only while it serves.

``manage.py check --tag wsgigate`` runs these alone. Each id is documented in ``docs/django.rst``.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isclass
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from wsgigate.config.model import Config
from wsgigate.django.settings import checked_gateway, read_settings

__all__ = [
    "TAG",
    "check_backends",
    "check_deployment",
    "check_middleware",
    "check_proxy",
    "check_setting",
]

TAG = "wsgigate"

_DJANGO_SESSION = "wsgigate.django:DjangoSession"

# By name: a project without django.contrib.auth cannot import its middlewares.
_GATE = "wsgigate.django.middleware.GateMiddleware"
_IDENTITY = "wsgigate.django.identity.IdentityMiddleware"
_BACKEND = "wsgigate.django.backends.IdentityBackend"
_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"


def _used() -> bool:
    return getattr(settings, "WSGIGATE", None) is not None or _place(_GATE) is not None


def check_setting(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Check the setting ``WSGIGATE`` and all that it names, as when it serves."""
    if not _used():
        return []
    read = read_settings()
    built, errors, warnings = checked_gateway(read)
    if built is not None:
        built.gateway.close()
    return [
        *(Error(f"{where}: {text}", id="wsgigate.E001") for where, text in errors),
        *(Warning(f"{where}: {text}", id="wsgigate.W001") for where, text in warnings),
    ]


def check_middleware(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Check the order of ``MIDDLEWARE``."""
    return list(_of_middleware())


def _of_middleware() -> Iterator[CheckMessage]:
    gate, identity = _place(_GATE), _place(_IDENTITY)
    sessions, authentication = _place(_SESSIONS), _place(_AUTHENTICATION)
    if identity is not None:
        if authentication is None or authentication > identity:
            yield Error(
                "IdentityMiddleware requires AuthenticationMiddleware before it in MIDDLEWARE.",
                hint="Insert 'django.contrib.auth.middleware.AuthenticationMiddleware' before "
                f"{settings.MIDDLEWARE[identity]!r}.",
                id="wsgigate.E002",
            )
        if gate is not None and gate > identity:
            yield Error(
                "IdentityMiddleware is before GateMiddleware in MIDDLEWARE, so no request has "
                "an identity there.",
                hint=f"Move {settings.MIDDLEWARE[gate]!r} before "
                f"{settings.MIDDLEWARE[identity]!r}.",
                id="wsgigate.E003",
            )
    places = [
        place for place in range(len(settings.MIDDLEWARE)) if _is(settings.MIDDLEWARE[place], _GATE)
    ]
    if len(places) > 1:
        yield Error(
            "GateMiddleware is in MIDDLEWARE more than once: each request would be counted and "
            "forwarded by the first, and counted again by the others.",
            id="wsgigate.E004",
        )
    if gate is not None and sessions is not None and sessions < gate:
        yield Warning(
            "GateMiddleware is after SessionMiddleware in MIDDLEWARE, so a session may be saved, "
            "and its cookie sent, for each forwarded request.",
            hint=f"Move {settings.MIDDLEWARE[gate]!r} before {settings.MIDDLEWARE[sessions]!r}.",
            id="wsgigate.W002",
        )


def check_backends(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Check that a backend maps identities to users, if a middleware asks for one."""
    if _place(_IDENTITY) is None:
        return []
    if any(_is(path, _BACKEND) for path in settings.AUTHENTICATION_BACKENDS):
        return []
    return [
        Warning(
            "IdentityMiddleware finds no user without IdentityBackend in "
            "AUTHENTICATION_BACKENDS: request.user is anonymous for every identity.",
            hint="Add 'wsgigate.django.backends.IdentityBackend' or a subclass of it.",
            id="wsgigate.W003",
        )
    ]


def check_proxy(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Check that Django and the gateway agree on the proxies in front."""
    config = _config()
    if config is None or getattr(settings, "SECURE_PROXY_SSL_HEADER", None) is None:
        return []
    if config.gateway.trusted_proxies:
        return []
    return [
        Warning(
            "SECURE_PROXY_SSL_HEADER is set, but the gateway trusts no proxy and removes the "
            "field: request.is_secure() is false, SECURE_SSL_REDIRECT redirects forever, and "
            "CSRF rejects the Origin of https pages.",
            hint='Set WSGIGATE["GATEWAY"] = {"trusted_proxies": ["10.0.0.0/8"]}, with the '
            "addresses of the proxies.",
            id="wsgigate.W004",
        )
    ]


def check_deployment(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Check what matters in production only (``check --deploy``)."""
    return list(_of_deployment())


def _of_deployment() -> Iterator[CheckMessage]:
    config = _config()
    if config is None:
        return
    if config.store.url == "memory:":
        yield Warning(
            "The gateway's store is in memory, so each worker counts by itself.",
            hint='Remove WSGIGATE["STORE"], or set its url to "lmdb:" or "redis://...".',
            id="wsgigate.W005",
        )
    if _guards_by_session(config) and not settings.SESSION_COOKIE_SECURE:
        yield Warning(
            "Routes are guarded by Django's session, but SESSION_COOKIE_SECURE is not set: the "
            "cookie is sent without TLS as well.",
            id="wsgigate.W006",
        )


def _guards_by_session(config: Config) -> bool:
    entries = [*config.middleware, *(each for route in config.routes for each in route.middleware)]
    return any(entry.use == _DJANGO_SESSION for entry in entries)


def _config() -> Config | None:
    """Return the gateway's configuration; None without one, or if it cannot be read."""
    if not _used():
        return None
    read = read_settings()
    return None if read.parsed is None or read.errors else read.parsed.config


def _place(name: str) -> int | None:
    """Return the place of the middleware *name*, or of a subclass, in ``MIDDLEWARE``."""
    entries = enumerate(settings.MIDDLEWARE)
    return next((place for place, path in entries if _is(path, name)), None)


def _is(path: str, name: str) -> bool:
    """Return whether the class at *path* is the class *name* or a subclass of it."""
    try:
        found = import_string(path)
    except ImportError:  # Django itself reports it
        return False
    return isclass(found) and any(
        f"{each.__module__}.{each.__qualname__}" == name for each in found.__mro__
    )
