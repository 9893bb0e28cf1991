"""The TLS policy by which every outgoing connection verifies its peer.

It is the same for the proxy, health checks, discovery, registration and Redis, and under every
version of Python. ``ssl.create_default_context`` is not: from Python 3.13 on it sets
``VERIFY_X509_STRICT``, which rejects certificates of many private authorities (those of Kubernetes
clusters and of ``openssl req`` among them) for a missing Authority Key Identifier, although the
chain of signatures, the dates and the name are correct.
"""

from __future__ import annotations

import ssl

__all__ = ["client_context"]


def client_context() -> ssl.SSLContext:
    """Return a context for outgoing connections, without any trusted authority yet.

    - TLS 1.2 or newer.
    - The peer's certificate must lead to a loaded authority, be valid now, and match the requested
      name or address.
    - Any loaded certificate is a trust anchor, also an intermediate one or the peer's own
      (``VERIFY_X509_PARTIAL_CHAIN``, as in curl and Go).
    - ``VERIFY_X509_STRICT`` is off: a certificate whose form violates RFC 5280 is accepted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
