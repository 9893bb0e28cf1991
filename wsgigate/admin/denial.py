"""The endpoint that denies tokens before they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.access import require_token
from wsgigate.admin.documents import json_app
from wsgigate.bodies import json_body, wrong
from wsgigate.denylist import DenyList
from wsgigate.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.rules.compact import MAX_LENGTH
from wsgigate.rules.routing import Route
from wsgigate.store import StoreError
from wsgigate.wsgi import REASON

__all__ = ["deny_route"]

LARGEST = 2 * MAX_LENGTH
"""The largest body that is read, in bytes: a token and all else there is to say."""

_FIELDS = {"token": {"until"}, "jti": {"until"}, "sub": {"before", "until"}}


def deny_route(
    deny_list: DenyList,
    prefix: str,
    token: str | None,
    *,
    now: Callable[[], float] = time.time,
    refuse: Refuse = answer_with,
) -> Route[WSGIApplication]:
    """Return the route of ``POST /tokens/deny``.

    Its body is a JSON object with one of ``token``, ``jti`` and ``sub``; with ``until``, the Unix
    time at which the last of them ends, which a ``token`` says itself; and with ``before``, for a
    ``sub``, the Unix time before which they were issued, the present unless said.

    :param prefix: The path of the gateway's own endpoints.
    :param token: What the request must present; without one all are refused.
    :param now: Tells the Unix time.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* can be guessed.
    """

    def deny(environ: WSGIEnvironment) -> object:
        try:
            kind, until = _denied(deny_list, json_body(environ, LARGEST), now)
        except Refusal as refusal:
            return refusal.problem
        except StoreError as error:
            environ[REASON] = f"the deny-list cannot be written: {error}"
            return Problem(
                503,
                "The deny-list cannot be written at the moment. What was asked may hold or not.",
                headers=(("Retry-After", "5"),),
            )
        return {"success": True, "message": "Denied.", "denied": kind, "until": until}

    app = json_app(deny, refuse=refuse)
    if token is None:
        app = refuse(Problem(403, "This gateway has no admin token, so nobody may change it."))
    else:
        app = require_token(app, token, refuse=refuse)
    return Route(
        f"{prefix}/tokens/deny",
        app,
        methods=("POST",),
        exact=True,
        listed=(),
        summary="Deny tokens before they end",
    )


def _denied(
    deny_list: DenyList, body: dict[str, Any], now: Callable[[], float]
) -> tuple[str, float]:
    """Do what *body* asks for; return what was denied, and until when."""
    kinds = [kind for kind in _FIELDS if kind in body]
    if len(kinds) != 1:
        raise wrong("token, jti, sub: exactly one of them says what is denied.")
    [kind] = kinds
    for field in body:
        if field != kind and field not in _FIELDS[kind]:
            raise wrong(f"{field[:64]!a}: there is no such field beside {kind}.", field[:64])
    named = body[kind]
    if not isinstance(named, str):
        raise wrong(f"{kind}: a text.", kind)
    if kind != "token" and "until" not in body:
        raise wrong("until: is missing, the Unix time at which the last of them ends.", "until")
    try:
        if kind == "token":
            until = deny_list.deny_token(named, body.get("until"))
        elif kind == "jti":
            until = deny_list.deny_jti(named, body["until"])
        else:
            until = deny_list.deny_subject(named, body.get("before", now()), body["until"])
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None
    return kind, until
