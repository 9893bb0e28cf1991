"""Identities for tests of a project: requests of ``Client()`` as if a middleware verified them."""

from __future__ import annotations

from typing import Any

from wsgigate.auth.identity import Identity
from wsgigate.django.settings import FORCED_IDENTITY
from wsgigate.http.wsgi import CLAIMS, IDENTITY

__all__ = ["force_identity"]


def force_identity(client: Any, identity: Identity | None) -> None:
    """Give each further request of *client* an identity, without a credential.

    It replaces what the authenticators of ``WSGIGATE["MIDDLEWARE"]`` would verify. It works in
    test runners only: elsewhere an authenticator ignores it::

        def test_orders(self):
            force_identity(self.client, Identity("7", "bearer", scopes=["orders:read"]))
            self.assertEqual(self.client.get("/orders").status_code, 200)

    :param client: A ``django.test.Client``, ``RequestFactory``, or DRF's ``APIClient``.
    :param identity: The caller; None for anonymous requests again.
    :raises TypeError: *identity* is not an :class:`~wsgigate.Identity`.
    """
    if identity is not None and not isinstance(identity, Identity):
        raise TypeError(f"identity: expected an Identity, not {identity!r}")
    for key in (IDENTITY, FORCED_IDENTITY, CLAIMS):
        client.defaults.pop(key, None)
    if identity is not None:
        client.defaults |= {
            IDENTITY: identity,
            FORCED_IDENTITY: identity,
            CLAIMS: dict(identity.claims),
        }
