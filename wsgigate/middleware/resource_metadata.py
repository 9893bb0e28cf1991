"""The metadata of protected resources (RFC 9728), which clients read before they have a token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.resource import WELL_KNOWN, ProtectedResource
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.rules.arguments import Range, checked

__all__ = ["ResourceMetadata"]

_FIELDS = [
    ("Content-Type", "application/json"),
    ("Cache-Control", "public, max-age=300"),
    ("Access-Control-Allow-Origin", "*"),  # anyone may read it, also a page of another site
]


@checked
class ResourceMetadata:
    """Serve the metadata of protected resources at ``/.well-known/oauth-protected-resource``.

    Put it outside of the middleware that authenticates: clients have no token yet. An
    :class:`Authenticator` and an :class:`Authorizer` name the document in ``WWW-Authenticate`` with
    ``resource_metadata=resource.metadata_url``.

    :param app: The WSGI application for all other requests.
    :param resources: The resources, each :class:`~wsgigate.auth.resource.ProtectedResource`. The
        document of ``https://api.example.com/orders`` is at
        ``/.well-known/oauth-protected-resource/orders``.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: Two resources have the same path.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        resources: Annotated[Sequence[ProtectedResource], Range(1)],
        refuse: Refuse = answer_with,
    ) -> None:
        self.app = app
        self._documents = {
            each.metadata_path: json.dumps(each.document()).encode("ascii") for each in resources
        }
        if len(self._documents) < len(resources):
            raise ValueError("resources: two of them have the same path")
        self._unknown = refuse(Problem(404, "No protected resource has this path."))
        allowed = (("Allow", "GET, HEAD"),)
        self._no_method = refuse(Problem(405, "Method not allowed.", headers=allowed))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ.get("PATH_INFO", "")
        if not path.startswith(WELL_KNOWN) or path[len(WELL_KNOWN) :][:1] not in ("", "/"):
            return self.app(environ, start_response)
        document = self._documents.get(path.rstrip("/"))
        if document is None:
            return self._unknown(environ, start_response)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._no_method(environ, start_response)
        start_response("200 OK", [*_FIELDS, ("Content-Length", str(len(document)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [document]
