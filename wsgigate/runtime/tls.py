"""The policy by which every connection that is opened verifies its peer by TLS.

It is the same for the proxy, health checks, discovery, registration and Redis, and under every
version of Python. ``ssl.create_default_context`` is no such policy: from Python 3.13 on it sets
``VERIFY_X509_STRICT``, which refuses certificates of many private authorities (those of Kubernetes
clusters and of ``openssl req`` among them) for a missing Authority Key Identifier, although the
chain of signatures, the dates and the name are right.
"""

from __future__ import annotations

import ssl

__all__ = ["client_context"]


def client_context() -> ssl.SSLContext:
    """Return a context for connections that are opened, without any authority yet.

    - TLS 1.2 or newer.
    - The peer's certificate must lead to an authority that is loaded, be valid now, and be for the
      name or the address that was asked for.
    - Any certificate that is loaded is an authority, an intermediate one or the peer's own too
      (``VERIFY_X509_PARTIAL_CHAIN``, as in curl and Go).
    - ``VERIFY_X509_STRICT`` is off: a certificate whose form RFC 5280 does not allow is accepted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
