"""Probes for machines: is the process alive, and should it get requests?

``/livez`` says that the process answers. It depends on nothing else: a restart repairs neither a
store nor a service. ``/readyz`` says whether a balancer should send requests:

- not while the server stops: it is 503 first, and the listener accepts for ``gateway.drain_delay``;
- not while the gateway is in maintenance as a whole;
- not before each service with a source has had its first answer, or a first error: a gateway that
  starts would answer 503 to requests that another one could serve;
- not while a service has fewer available instances than its ``required_for_readiness``.

By default a service that is down does not make the gateway unready: all gateways see the same dead
service, so all would leave rotation at once, with the services that are well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import status_line

__all__ = ["ReadinessFacts", "livez", "readiness", "readyz"]


@dataclass(frozen=True)
class ReadinessFacts:
    """The facts that decide whether a gateway gets requests.

    :param stopping: Whether the server has been asked to stop.
    :param maintenance: Whether the gateway is in maintenance as a whole.
    :param available: The number of available instances by service.
    :param required: The number of them that the gateway needs, by service.
    :param unanswered: The services whose source has neither answered nor failed yet.
    """

    stopping: bool = False
    maintenance: bool = False
    available: Mapping[str, int] = field(default_factory=dict)
    required: Mapping[str, int] = field(default_factory=dict)
    unanswered: tuple[str, ...] = ()


def readiness(facts: ReadinessFacts) -> dict[str, str]:
    """Return each condition of readiness with why it fails; empty text for one that holds."""
    conditions = {
        "running": "the server stops" if facts.stopping else "",
        "in-service": "the gateway is in maintenance" if facts.maintenance else "",
        "discovery": ""
        if not facts.unanswered
        else f"no answer yet about the instances of {', '.join(facts.unanswered)}",
    }
    for service, required in facts.required.items():
        available = facts.available.get(service, 0)
        conditions[f"service:{service}"] = (
            "" if available >= required else f"{available} of {required} instances are available"
        )
    return conditions


def livez(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer that the process is alive."""
    return _respond(environ, start_response, {"alive": ""})


def readyz(facts: Callable[[], ReadinessFacts]) -> WSGIApplication:
    """Return the app that answers whether the gateway should get requests.

    :param facts: Returns the facts of the moment; it must not wait for anything.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _respond(environ, start_response, readiness(facts()))

    return app


def _respond(
    environ: WSGIEnvironment, start_response: StartResponse, conditions: Mapping[str, str]
) -> Iterable[bytes]:
    """Respond with 200 or 503: ``ok``, or the failed conditions; all of them with ``?verbose``."""
    method = environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD"):
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Length", "0")])
        return []
    failed = {name: why for name, why in conditions.items() if why}
    query = parse_qs(environ.get("QUERY_STRING", "")[:256], keep_blank_values=True)
    shown = conditions if "verbose" in query else failed
    if "application/json" in environ.get("HTTP_ACCEPT", ""):
        kind = "application/json"
        document = {"status": "failed" if failed else "ok", "conditions": dict(shown)}
        text = json.dumps(document)
    else:
        kind = "text/plain; charset=utf-8"
        lines = [f"[-] {name}: {why}" if why else f"[+] {name}" for name, why in shown.items()]
        text = "\n".join([*lines, "failed" if failed else "ok", ""])
    body = text.encode()
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if failed:
        headers.append(("Retry-After", "5"))
    start_response(status_line(503 if failed else 200), headers)
    return [] if method == "HEAD" else [body]
