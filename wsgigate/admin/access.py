"""Who may change something: whoever presents the operator's token, and no page of another site."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.credentials import bearer, from_another_site
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.wsgi import REASON

__all__ = ["require_token"]

_TOKEN = re.compile(r"[\x21-\x7e]{32,1024}")


def require_token(
    app: WSGIApplication, token: str, *, refuse: Refuse = answer_with
) -> WSGIApplication:
    """Return *app* for requests with ``Authorization: Bearer`` and *token* alone.

    The token is taken from that field only: one in a query would end up in logs and histories. A
    browser says where a request comes from (``Origin``, ``Sec-Fetch-Site``): one that comes from a
    page of another origin is refused whatever it presents.

    :param token: The operator's secret, at least 32 visible characters.
    :raises ValueError: *token* is too short or has characters that no field value has.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError("an admin token is 32 to 1024 visible ASCII characters without spaces")
    digest = sha256(token.encode("ascii")).digest()
    elsewhere = refuse(Problem(403, "Requests from other sites are not allowed."))
    challenge = (("WWW-Authenticate", 'Bearer realm="admin"'),)
    unknown = refuse(Problem(401, "Admin token required!", headers=challenge))

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if from_another_site(environ):
            environ[REASON] = "the request comes from a page of another origin"
            return elsewhere(environ, start_response)
        # digests are of one length, so the time taken tells nothing of the token, not even that
        if not compare_digest(sha256(bearer(environ)).digest(), digest):
            environ[REASON] = "the admin token is missing or wrong"
            return unknown(environ, start_response)
        return app(environ, start_response)

    return guarded
