"""The TLS contexts of all outgoing connections: one policy for verifying the peer.

It is the same for the proxy, health checks, discovery, registration and Redis, and under every
version of Python. ``ssl.create_default_context`` is not: from Python 3.13 on it sets
``VERIFY_X509_STRICT``, which rejects certificates of many private authorities (those of Kubernetes
clusters and of ``openssl req`` among them) for a missing Authority Key Identifier, although the
chain of signatures, the dates and the name are correct.
"""

from __future__ import annotations

import os
import ssl

from wsgigate.runtime import fork

__all__ = ["Cert", "Contexts", "Verify", "check_authorities", "client_context", "context_for"]


Verify = bool | str
"""Whether the peer is verified; a string is the file or directory of trusted CA certificates."""

Cert = str | tuple[str, str] | None
"""A client certificate: a PEM file with certificate and key, or ``(certificate, key)`` files."""


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


def context_for(verify: Verify, cert: Cert = None) -> ssl.SSLContext:
    """Return a new context for HTTP/1.1 that verifies the peer according to *verify*.

    :param cert: The client certificate to present.
    :raises OSError: A certificate file cannot be loaded.
    """
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        bundle = _default_bundle() if verify is True else verify
        folder = os.path.isdir(bundle)
        context.load_verify_locations(
            cafile=None if folder else bundle, capath=bundle if folder else None
        )
    if cert is not None:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    return context


def check_authorities(file: str) -> None:
    """Check that the trusted authorities of the option ``ca`` can be loaded.

    :raises ValueError: They cannot.
    """
    try:
        context_for(file)
    except OSError as error:  # includes ssl.SSLError
        raise ValueError(
            f"ca: cannot load CA certificates from {file!r}: {error.strerror or error}"
        ) from error


def _default_bundle() -> str:
    from requests.utils import DEFAULT_CA_BUNDLE_PATH  # not at the top: Redis needs no requests

    return DEFAULT_CA_BUNDLE_PATH


class Contexts:
    """A cache of TLS contexts by setting: loading the CA certificates takes 10 to 20 ms."""

    def __init__(self) -> None:
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Drop all contexts: one made before gevent patched makes sockets that block greenlets."""
        self._made: dict[tuple[Verify, Cert], ssl.SSLContext] = {}

    def get(self, verify: Verify, cert: Cert = None) -> ssl.SSLContext:
        """Return the context for these settings.

        :raises OSError: A certificate file cannot be loaded.
        """
        context = self._made.get((verify, cert))
        if context is None:
            context = self._made.setdefault((verify, cert), context_for(verify, cert))
        return context

    def load(self, verify: Verify) -> None:
        """Load the context for this setting now, to report a file that cannot be used.

        :raises ValueError: The CA certificates cannot be loaded.
        """
        try:
            self.get(verify)
        except OSError as error:  # includes ssl.SSLError
            raise ValueError(
                f"verify: cannot load CA certificates from {verify!r}: {error}"
            ) from error
