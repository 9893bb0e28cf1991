"""Tests of views as a verified caller, without tokens and without the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from flask.testing import FlaskClient

from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.http.wsgi import CLAIMS

__all__ = ["IdentityClient"]


class IdentityClient(FlaskClient):
    """A test client whose requests come from a verified caller.

    ``app.test_client(identity=Identity("ada", "bearer", scopes={"orders:write"}))`` makes one in an
    app with the extension; for other apps set ``app.test_client_class = IdentityClient``.

    With an identity, requests go to the app itself: they pass no middleware around
    ``app.wsgi_app``, so nothing in the program has to trust an identity that came from elsewhere.
    Without one they pass everything, as requests of a real client do.

    :param identity: The caller; None for an ordinary client. The attribute can be changed.
    """

    def __init__(self, *args: Any, identity: Identity | None = None, **kwargs: Any) -> None:
        if identity is not None and not isinstance(identity, Identity):
            raise TypeError(f"identity: expected an Identity, not {identity!r}")
        super().__init__(*args, **kwargs)
        self.identity = identity

    def run_wsgi_app(
        self, environ: dict[str, Any], buffered: bool = False
    ) -> tuple[Iterable[bytes], str, Any]:
        """Call the app with *environ*."""
        if self.identity is None:
            return super().run_wsgi_app(environ, buffered=buffered)
        environ[IDENTITY] = self.identity
        environ[CLAIMS] = dict(self.identity.claims)
        whole = self.application
        self.application = partial(type(whole).wsgi_app, whole)  # type: ignore[assignment]
        try:
            return super().run_wsgi_app(environ, buffered=buffered)
        finally:
            self.application = whole
