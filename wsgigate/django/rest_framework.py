"""Django REST framework: the verified caller as ``request.user`` and ``request.auth``.

It requires djangorestframework. :class:`IdentityAuthentication` has a challenge, or DRF would
answer an anonymous request with 403; :class:`HasScopes` applies the rule of an Authorizer to a
view.
"""

from __future__ import annotations

import weakref
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import (
    APIException,
    AuthenticationFailed,
    NotAuthenticated,
    PermissionDenied,
)
from rest_framework.permissions import BasePermission

from wsgigate.auth.access import AccessCheck
from wsgigate.auth.authorization import Authorization, AuthorizationRule
from wsgigate.auth.challenge import bearer_challenge
from wsgigate.auth.identity import Identity
from wsgigate.django.identity import identity_of, is_disabled, user_of
from wsgigate.django.middleware import environ_of
from wsgigate.http.problem import refused

__all__ = ["HasIdentity", "HasScopes", "IdentityAuthentication"]


class IdentityAuthentication(BaseAuthentication):  # type: ignore[misc]
    """Authenticates by the identity that a middleware of the package has verified.

    ``request.auth`` is the :class:`~wsgigate.Identity`. ``request.user`` is the user that the
    ``IdentityBackend`` in ``AUTHENTICATION_BACKENDS`` finds, an anonymous one for a program: use
    :class:`HasIdentity` or :class:`HasScopes`, as DRF's ``IsAuthenticated`` requires a user.
    """

    realm = "api"
    """The name of the protected area, in ``WWW-Authenticate``."""

    def authenticate(self, request: Any) -> tuple[Any, Identity] | None:
        """Return the user and the identity; None without an identity.

        :raises AuthenticationFailed: The user is inactive.
        """
        identity = identity_of(request)
        if identity is None:
            return None
        user = user_of(request._request, identity)
        if is_disabled(request._request):
            raise AuthenticationFailed("The user is inactive.")
        return user, identity

    def authenticate_header(self, request: Any) -> str:
        """Return the challenge, by which a request without a caller gets a 401 instead of a 403."""
        return bearer_challenge(self.realm)[1]


class HasIdentity(BasePermission):  # type: ignore[misc]
    """Allows verified callers, whether or not they are users of the project."""

    def has_permission(self, request: Any, view: Any) -> bool:
        """Return whether the request has a verified caller."""
        return isinstance(request.auth, Identity)


class HasScopes(BasePermission):  # type: ignore[misc]
    """Allows verified callers with all ``required_scopes`` of the view, as ``TokenHasScope`` does.

    A view may also have ``required_roles``, ``required_groups`` and ``required_claims``, as for an
    :class:`~wsgigate.AuthorizationRule`. A view with none of the four is an error, as a misspelled
    one would allow every verified caller; :class:`HasIdentity` does that. To a caller without a
    scope the response names it (RFC 6750 section 3.1).
    """

    def has_permission(self, request: Any, view: Any) -> bool:
        """Return true for an allowed caller.

        :raises NotAuthenticated: The request has no verified caller.
        :raises PermissionDenied: The caller lacks something.
        :raises ImproperlyConfigured: The view does not say what it requires.
        """
        environ = environ_of(request, "wsgigate.django.rest_framework")
        refusal = _access_of(type(view)).refusal(environ)
        if refusal is None:
            return True
        refused(environ, "HasScopes", str(refusal))
        problem = refusal.problem
        if problem.status == 401:
            raise NotAuthenticated
        failed: APIException = PermissionDenied(problem.detail)
        if problem.status != 403:
            failed = APIException(problem.detail)
            failed.status_code = problem.status
        failed.auth_header = dict(problem.headers).get("WWW-Authenticate")
        raise failed


_accesses: weakref.WeakKeyDictionary[type, AccessCheck] = weakref.WeakKeyDictionary()
"""The rules of views, by class: DRF makes a permission for each request."""


_KINDS = ("scopes", "roles", "groups", "claims")


def _access_of(view: type) -> AccessCheck:
    found = _accesses.get(view)
    if found is None:
        name = f"{view.__module__}.{view.__qualname__}"
        required: dict[str, Any] = {
            kind: value
            for kind in _KINDS
            if (value := getattr(view, f"required_{kind}", None)) is not None
        }
        if not required:
            names = ", ".join(f"required_{kind}" for kind in _KINDS)
            raise ImproperlyConfigured(
                f"HasScopes needs one of {names} of {name}; use HasIdentity for a view that every "
                "verified caller may use"
            )
        rule = AuthorizationRule(**required)
        found = _accesses[view] = AccessCheck(Authorization({}, (name, rule)))
    return found
