"""The verified caller of a request, and the user that it is in the project.

``request.identity`` is what a middleware around Django has verified; ``request.user`` is the user
of the project that a backend finds for it. A request with an identity never has the user of a
session, which may be another one: the credential that was verified last decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import auth
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.utils.functional import SimpleLazyObject

from wsgigate.auth.identity import Identity
from wsgigate.django.middleware import environ_of
from wsgigate.http.wsgi import IDENTITY

__all__ = [
    "SESSION",
    "IdentityMiddleware",
    "IdentityRequest",
    "PersistentIdentityMiddleware",
    "has_user",
    "identity_of",
    "is_disabled",
    "user_of",
]

SESSION = "session"
"""The scheme of an identity that Django's own session has verified."""

_DISABLED = "_wsgigate_disabled"
"""The attribute of a request whose user is inactive."""


class IdentityRequest(Protocol):
    """A Django request behind an :class:`IdentityMiddleware`, for annotations of views."""

    identity: Identity | None
    user: Any
    META: dict[str, Any]
    method: str | None
    path: str


def identity_of(request: Any) -> Identity | None:
    """Return the verified caller of Django's *request*; None for an anonymous one.

    :raises ImproperlyConfigured: The request came by ASGI.
    """
    identity = environ_of(request, "wsgigate.django").get(IDENTITY)
    return identity if isinstance(identity, Identity) else None


class IdentityMiddleware:
    """A Django middleware that sets ``request.identity``, and ``request.user`` to its user.

    List it after Django's ``AuthenticationMiddleware``, whose user stays for requests without an
    identity. The user is found by ``AUTHENTICATION_BACKENDS``, by a query when ``request.user`` is
    first used; see :class:`wsgigate.django.backends.IdentityBackend`. Without a user, as for a
    token of a program, ``request.user`` is anonymous.

    The session is neither read nor changed: each request has its own credential.

    It requires WSGI. Under ASGI each request raises ``ImproperlyConfigured``.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        environ_of(request, "wsgigate.django.IdentityMiddleware")
        self.process_request(request)
        return self.get_response(request)

    def process_request(self, request: Any) -> None:
        """Set ``request.identity`` and ``request.user``."""
        if not hasattr(request, "user"):
            raise ImproperlyConfigured(
                "wsgigate.django.IdentityMiddleware requires the authentication middleware: insert "
                "'django.contrib.auth.middleware.AuthenticationMiddleware' before it in MIDDLEWARE"
            )
        request.identity = identity = identity_of(request)
        if identity is not None and identity.scheme != SESSION:
            self.set_user(request, identity)

    def set_user(self, request: Any, identity: Identity) -> None:
        """Set ``request.user`` to the user of *identity*."""
        user = SimpleLazyObject(lambda: user_of(request, identity))
        request.user = user

        async def auser() -> Any:
            await sync_to_async(bool)(user)  # finds the user, in a thread that may query
            return user

        request.auser = auser


class PersistentIdentityMiddleware(IdentityMiddleware):
    """An :class:`IdentityMiddleware` that also logs the user in, as ``RemoteUserMiddleware`` does.

    The session lasts after the credential, so that a browser needs the credential once. A session
    of another user ends.
    """

    def set_user(self, request: Any, identity: Identity) -> None:
        """Set ``request.user``, and log the user in unless the session is the user's already."""
        before = request.user
        super().set_user(request, identity)
        if request.user.is_authenticated:
            if not before.is_authenticated or before.pk != request.user.pk:
                auth.login(request, request.user)
        elif before.is_authenticated:
            auth.logout(request)


def has_user(request: Any) -> bool:
    """Return whether *request* has a user of the project."""
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_authenticated)


def is_disabled(request: Any) -> bool:
    """Return whether the user of the request's identity is inactive.

    It finds the user if that is not known yet; false without an :class:`IdentityMiddleware`.
    """
    has_user(request)
    return getattr(request, _DISABLED, False) is True


def user_of(request: Any, identity: Identity) -> Any:
    """Return the user that the first backend finds for *identity*, an anonymous one without any.

    :param request: Django's request, which is marked if the user is inactive.

    The backends are asked directly: ``authenticate()`` would report a failed login for each request
    of a program, which has no user.
    """
    from django.contrib.auth.models import AnonymousUser

    from wsgigate.django.backends import IdentityBackend

    for path in settings.AUTHENTICATION_BACKENDS:
        backend = auth.load_backend(path)
        if not isinstance(backend, IdentityBackend):
            continue
        try:
            user = backend.authenticate(request, identity=identity)
        except PermissionDenied:  # the user is inactive: no other backend may let it in
            setattr(request, _DISABLED, True)
            break
        if user is not None:
            user.backend = path
            return user
    return AnonymousUser()
