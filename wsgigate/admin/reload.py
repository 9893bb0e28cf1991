"""The endpoint that reloads the gateway's file: it validates it, and signals the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated, Protocol, TypedDict

from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.http.json_app import JsonRequest, JsonResponse
from wsgigate.http.problem import Problem
from wsgigate.telemetry.audit import audited, requester

__all__ = ["CanReload", "reload_group"]


class CanReload(Protocol):
    """Reloads the file of a gateway in the server of this worker."""

    def hash(self) -> str:
        """Return the hash of the configuration in the file; empty if the file is invalid."""

    def errors(self) -> list[str]:
        """Validate the file; return its errors."""

    def signal(self) -> bool:
        """Let the server reload; return whether there is a process that does."""


class Reloading(TypedDict):
    """A reload that the server has begun."""

    success: bool
    message: str
    hash: Annotated[str, "The hash of the new configuration: wait until GET /workers has it only."]


_NO_SERVER = Problem(
    409,
    "No server process reloads this gateway: it has no file, or is mounted in an application. "
    "Restart the application.",
)

_BUSY = Problem(409, "Another reload is in progress.", headers=(("Retry-After", "5"),))

_ENDED = Problem(409, "The main process of the server has ended; restart the server.")


def reload_group(server: Callable[[], CanReload | None]) -> Group:
    """Return the endpoint ``POST /reload``.

    :param server: Returns what reloads the file; None if nothing does.
    """
    busy = threading.Lock()  # of this worker: each validation is a process, and takes a thread

    def reload(request: JsonRequest) -> object:
        found = server()
        if found is None:
            return _NO_SERVER
        if not busy.acquire(blocking=False):
            return _BUSY
        try:
            return _reload(request, found)
        finally:
            busy.release()

    return Group(
        "reload",
        [
            AdminEndpoint(
                line="POST /reload",
                answer=reload,
                summary="Reload the file of the gateway",
                description="The file is validated as by wsgigate check. If it is invalid, the "
                "response is 422 with all errors, and the configuration stays. Otherwise the "
                "server replaces its workers one after the other.",
                response=Reloading,
                status=202,
            )
        ],
    )


def _reload(request: JsonRequest, server: CanReload) -> object:
    errors = server.errors()
    if errors:
        return Problem(
            422,
            "The file is invalid; the previous configuration stays active.",
            extensions={"errors": errors},
        )
    validated = server.hash()
    with audited("gateway.reload", "file", by=requester(request.environ)) as change:
        change.after = {"hash": validated}
        if not server.signal():
            change.failed = "the main process of the server has ended"
    if change.failed:
        return _ENDED
    message = "The file is valid; the server replaces its workers."
    return JsonResponse({"success": True, "message": message, "hash": validated}, 202)
