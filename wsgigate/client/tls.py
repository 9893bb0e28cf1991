"""TLS contexts of outgoing HTTP connections: one policy, cached per verification setting."""

from __future__ import annotations

import os
import ssl

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from wsgigate.runtime import fork
from wsgigate.runtime.tls import client_context

__all__ = ["Cert", "Contexts", "Verify", "context_for", "load_client_cert"]


Verify = bool | str
"""Whether the peer is verified; a string is the file or directory of trusted CA certificates."""

Cert = str | tuple[str, str] | None
"""A client certificate: a PEM file with certificate and key, or ``(certificate, key)`` files."""


class Contexts:
    """A cache of TLS contexts by setting: loading the CA certificates takes 10 to 20 ms."""

    def __init__(self) -> None:
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Drop all contexts: one made before gevent patched makes sockets that block greenlets."""
        self._made: dict[tuple[Verify, Cert], ssl.SSLContext] = {}

    def get(self, verify: Verify, cert: Cert) -> ssl.SSLContext:
        """Return the context for these settings.

        :raises OSError: A certificate file cannot be loaded.
        """
        context = self._made.get((verify, cert))
        if context is None:
            made = context_for(verify)
            load_client_cert(made, cert)
            context = self._made.setdefault((verify, cert), made)
        return context


def context_for(verify: Verify) -> ssl.SSLContext:
    """Return a new TLS context for HTTP/1.1 that verifies the peer according to *verify*.

    :raises OSError: The CA certificates cannot be loaded.
    """
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
    folder = os.path.isdir(bundle)
    context.load_verify_locations(
        cafile=None if folder else bundle, capath=bundle if folder else None
    )
    return context


def load_client_cert(context: ssl.SSLContext, cert: Cert) -> None:
    """Load the client certificate *cert* into *context*, unless it is ``None``.

    :raises OSError: A certificate file cannot be loaded.
    """
    if cert is not None:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
