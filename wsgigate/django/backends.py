"""The authentication backend that maps verified identities to users of the project.

Django imports it when the models are ready; do not import it before.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache, partial
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.core.exceptions import PermissionDenied

from wsgigate.auth.identity import Identity
from wsgigate.rules.claims import ClaimPath

__all__ = ["IdentityBackend"]


class IdentityBackend(ModelBackend):  # type: ignore[misc]
    """Finds the user of a verified identity, as ``RemoteUserBackend`` does for ``REMOTE_USER``.

    Change its attributes and methods in a subclass, and list that in ``AUTHENTICATION_BACKENDS``::

        class StaffBackend(IdentityBackend):
            create_unknown_user = True
            username_claim = "preferred_username"
            issuers = ["https://login.example.com/realms/staff"]

    A name of one issuer may be another person at another: set ``issuers`` if the project accepts
    tokens of several, or include the issuer in :meth:`username_of`.
    """

    create_unknown_user: bool = False
    """Whether a user is created for an unknown name. ``RemoteUserBackend`` does by default."""

    username_claim: str = "sub"
    """The path of the claim that names the user, such as ``"preferred_username"``. Choose one that
    users cannot change: many providers let them set an unverified ``email``."""

    issuers: Collection[str] | None = None
    """The issuers whose identities are users of the project; None for all that are verified."""

    schemes: Collection[str] = ("bearer", "dpop", "introspection", "forward-auth", "basic")
    """The schemes whose identities are users: the owner of an API key, for example, is not."""

    def authenticate(
        self, request: Any, identity: Identity | None = None, **credentials: Any
    ) -> Any:
        """Return the user of *identity*; None if it is no user of the project.

        :raises PermissionDenied: The user is inactive.
        """
        if identity is None:
            return None
        name = self.username_of(identity)
        if not name:
            return None
        name = self.clean_username(name)
        model = get_user_model()
        longest = model._meta.get_field(model.USERNAME_FIELD).max_length
        if "\x00" in name or (longest is not None and len(name) > longest):
            return None  # no user can have it, and some databases fail on it
        user, created = None, False
        if self.create_unknown_user:
            user, created = model._default_manager.get_or_create(
                **{model.USERNAME_FIELD: name},
                # an empty password could be reset, to log in without the issuer
                defaults={"password": partial(make_password, None)},
            )
        else:
            try:
                user = model._default_manager.get_by_natural_key(name)
            except model.DoesNotExist:
                pass
        # a database that ignores case would return another user
        if user is None or user.get_username() != name:
            return None
        user = self.configure_user(request, user, created=created)
        if not self.user_can_authenticate(user):
            raise PermissionDenied("the user is inactive")
        return user

    def username_of(self, identity: Identity) -> str | None:
        """Return the name of the user that *identity* speaks of; None if it is no user.

        A token of a program (OAuth 2 client credentials) speaks of no user.
        """
        if identity.scheme not in self.schemes:
            return None
        if self.issuers is not None and identity.issuer not in self.issuers:
            return None
        if _is_program(identity):
            return None
        if self.username_claim == "sub":
            return identity.subject
        found = _path(self.username_claim).find(identity.claims)
        return found if isinstance(found, str) else None

    def clean_username(self, username: str) -> str:
        """Return *username* as it is in the database. By default it is unchanged."""
        return username

    def configure_user(self, request: Any, user: Any, created: bool = True) -> Any:
        """Return *user*, changed if need be, such as by groups of ``request.identity``.

        :param created: Whether the user was created for this request.
        """
        return user


def _is_program(identity: Identity) -> bool:
    """Return whether the credential was issued to a program, not for a user."""
    claims, subject, client = identity.claims, identity.subject, identity.client
    return (
        subject is None
        or (client is not None and subject in (client, f"{client}@clients"))  # Auth0: @clients
        or claims.get("gty") == "client-credentials"  # Auth0
        or claims.get("idtyp") == "app"  # Entra
        or claims.get("grant_type") == "client_credentials"
    )


@cache
def _path(claim: str) -> ClaimPath:
    return ClaimPath(claim)
