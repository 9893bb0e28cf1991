"""TLS contexts for the HTTP connections that are opened: one policy, with authorities loaded."""

from __future__ import annotations

import os
import ssl

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from wsgigate.runtime import fork
from wsgigate.runtime.tls import client_context

__all__ = ["Cert", "Contexts", "Verify", "context_for", "present"]


Verify = bool | str
"""Whether the peer is verified; a text is the file or folder of authorities to do it by."""

Cert = str | tuple[str, str] | None
"""A client certificate: a file that holds its key too, or a pair of files."""


class Contexts:
    """One TLS context for each policy: to read the authorities anew costs 10 to 20 ms."""

    def __init__(self) -> None:
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have none: one of before gevent patched makes sockets that block all greenlets."""
        self._made: dict[tuple[Verify, Cert], ssl.SSLContext] = {}

    def get(self, verify: Verify, cert: Cert) -> ssl.SSLContext:
        """Return the context for these settings.

        :raises OSError: A file that they name cannot be used.
        """
        context = self._made.get((verify, cert))
        if context is None:
            made = context_for(verify)
            present(made, cert)
            context = self._made.setdefault((verify, cert), made)
        return context


def context_for(verify: Verify) -> ssl.SSLContext:
    """Return a new context for HTTP/1.1 that verifies the peer as *verify* says.

    :raises OSError: The authorities cannot be read.
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


def present(context: ssl.SSLContext, cert: Cert) -> None:
    """Have *context* present a client certificate, if there is one.

    :raises OSError: Its files cannot be used.
    """
    if cert is not None:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
