"""Shared code of the three services: a Flask app with /health, JSON errors, and the caller's id."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NoReturn

from flask import Flask, Response, abort, json, request
from werkzeug.exceptions import BadRequest, HTTPException, UnsupportedMediaType

__all__ = ["caller", "create_app", "fail", "is_admin", "json_body", "text", "timestamp"]

MAX_BODY = 16 * 1024


def create_app(name: str) -> Flask:
    """Return a Flask app with ``/health`` and with errors as ``{"success": false, ...}``."""
    app = Flask(name)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]  # "success" comes first

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "healthy", "service": name, "timestamp": timestamp()}

    @app.errorhandler(HTTPException)
    def as_json(error: HTTPException) -> Response:
        response = error.get_response()  # keeps its header fields, such as Allow
        if error.code == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="shop"'
        response.data = json.dumps({"success": False, "message": error.description})
        response.content_type = "application/json"
        return response  # type: ignore[return-value]

    return app


def timestamp() -> str:
    """Return the time in JavaScript's format: ISO 8601 in UTC, milliseconds, ``Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fail(status: int, message: str) -> NoReturn:
    """Abort the request with an error document."""
    abort(status, message)


def caller() -> int:
    """Return the id of the authenticated user of this request; 401 without one.

    ``X-User-Id`` can be trusted if two conditions hold: the gateway removes the field from client
    requests and sets it from the claims of a verified token, and clients cannot bypass the gateway,
    because this service listens on the loopback interface only.
    """
    user_id = request.headers.get("X-User-Id", "")
    if not (user_id.isascii() and user_id.isdigit()):
        fail(401, "Access token required!")
    return int(user_id)


def is_admin() -> bool:
    """Return whether the caller is an admin; trusted as :func:`caller` is."""
    return request.headers.get("X-User-Role") == "admin"


def json_body() -> dict[str, Any]:
    """Return the request's JSON object; 415 or 400 if the body is not one."""
    try:
        body = request.get_json()
    except UnsupportedMediaType:
        fail(415, "Send JSON, with the field Content-Type: application/json!")
    except (BadRequest, RecursionError):
        fail(400, "The body is not valid JSON!")
    if not isinstance(body, dict):
        fail(400, "The body must be a JSON object!")
    return body


def text(body: dict[str, Any], field: str, *, at_least: int = 1, at_most: int) -> str:
    """Return the text *field* of *body*; 400 names the field if it is missing or invalid."""
    value = body.get(field)
    if not isinstance(value, str) or not value.strip():
        fail(400, f"{field} is required!")
    if not value.isprintable():  # control characters, and halves of surrogate pairs
        fail(400, f"{field} has characters that cannot be used!")
    if not at_least <= len(value) <= at_most:
        fail(400, f"{field} must have {at_least} to {at_most} characters!")
    return value
