"""What is out of service on purpose, as the gateway tells of it, and the switch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.access import require_token
from wsgigate.admin.documents import json_app
from wsgigate.bodies import json_body, wrong
from wsgigate.discovery.status import iso_time
from wsgigate.maintenance import MaintenanceSwitch
from wsgigate.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.rules.maintenance import GATEWAY, Notice
from wsgigate.rules.routing import Route
from wsgigate.store import StoreError
from wsgigate.units import parse_duration
from wsgigate.wsgi import REASON

__all__ = ["maintenance_routes", "maintenance_told", "notices_told"]

LARGEST = 4096
"""The largest body that is read, in bytes."""

_FIELDS = ("on", "scope", "for", "message")


def maintenance_told(switch: MaintenanceSwitch) -> dict[str, dict[str, Any]]:
    """Return what is out of service, by scope: since when, until when and what is said.

    :raises StoreError: The store failed.
    """
    return notices_told(switch.status())


def notices_told(notices: Mapping[str, Notice]) -> dict[str, dict[str, Any]]:
    """Return *notices* as members of a JSON object, by scope."""
    return {
        scope: {
            "since": iso_time(since),
            "until": None if until is None else iso_time(until),
            "message": message,
        }
        for scope, (since, until, message) in notices.items()
    }


def maintenance_routes(
    switch: MaintenanceSwitch,
    scopes: Collection[str],
    prefix: str = "",
    *,
    token: str | None,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes of ``/maintenance``: GET tells what is out of service, POST switches it.

    The body of a POST is a JSON object with ``on``, true or false; ``scope``, ``gateway`` unless
    said; and to switch it on ``for``, seconds or a text such as ``"30m"`` after which it ends by
    itself, and ``message``, a sentence for clients.

    :param scopes: What there is to be switched: ``gateway``, ``service:NAME``, ``route:NAME``.
    :param prefix: The path of the gateway's own endpoints.
    :param token: What both of them take; without one all are refused.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* can be guessed.
    """
    unreadable = Problem(
        503,
        "What is out of service is not known at the moment. What was asked may hold or not.",
        headers=(("Retry-After", "5"),),
    )

    def told(environ: WSGIEnvironment) -> object:
        return {"success": True, "scopes": list(scopes), "maintenance": maintenance_told(switch)}

    def change(environ: WSGIEnvironment) -> object:
        _switch(switch, scopes, json_body(environ, LARGEST))
        return {"success": True, "maintenance": maintenance_told(switch)}

    def tried(does: Callable[[WSGIEnvironment], object]) -> WSGIApplication:
        def answer(environ: WSGIEnvironment) -> object:
            try:
                return does(environ)
            except Refusal as refusal:
                return refusal.problem
            except StoreError as error:
                environ[REASON] = f"the store failed: {error}"
                return unreadable

        if token is None:
            return refuse(Problem(403, "This gateway has no admin token, so nobody may change it."))
        return require_token(json_app(answer, refuse=refuse), token, refuse=refuse)

    return [
        Route(
            f"{prefix}/maintenance",
            tried(does),
            methods=(method,),
            exact=True,
            name=f"{method} {prefix}/maintenance",
            listed=(),
            summary=summary,
        )
        for method, does, summary in (
            ("GET", told, "What is out of service"),
            ("POST", change, "Take out of service, and back"),
        )
    ]


def _switch(switch: MaintenanceSwitch, scopes: Collection[str], body: dict[str, Any]) -> None:
    for field in body:
        if field not in _FIELDS:
            raise wrong(f"{field[:64]!a}: there is no such field.", field[:64])
    on, scope, lasts = body.get("on"), body.get("scope", GATEWAY), body.get("for")
    if not isinstance(on, bool):
        raise wrong("on: true or false.", "on")
    if not on and ("for" in body or "message" in body):
        raise wrong("for and message: only to switch it on.", "on")
    if not isinstance(scope, str) or (on and scope not in scopes):
        raise wrong("scope: one of those that GET tells.", "scope")
    try:
        if not on:
            switch.off(scope)
            return
        try:
            seconds = None if lasts is None else parse_duration(lasts)
        except ValueError as error:
            raise ValueError(f"for: {error}") from None
        switch.on(scope, lasts=seconds, message=body.get("message", ""))
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None
