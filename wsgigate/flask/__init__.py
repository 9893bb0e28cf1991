"""Flask: what an application needs of the gateway inside its own views, settings and tests."""

from __future__ import annotations

try:
    import flask as _flask  # noqa: F401 - the check that comes before every other import
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ModuleNotFoundError(
        "wsgigate.flask requires Flask 3.0 or later: pip install 'wsgigate[flask]'", name="flask"
    ) from None

from wsgigate.flask.extension import WsgiGate
from wsgigate.flask.identity import (
    current_identity,
    get_identity,
    requires,
    verify_identity_in_request,
)
from wsgigate.flask.refusals import (
    InsufficientPermissions,
    InvalidCredentials,
    LimitExceeded,
    MissingCredentials,
    Refused,
    render_refusals,
)
from wsgigate.flask.session import FlaskSession

__all__ = [
    "FlaskSession",
    "InsufficientPermissions",
    "InvalidCredentials",
    "LimitExceeded",
    "MissingCredentials",
    "Refused",
    "WsgiGate",
    "current_identity",
    "get_identity",
    "render_refusals",
    "requires",
    "verify_identity_in_request",
]
