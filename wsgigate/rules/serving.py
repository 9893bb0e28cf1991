"""What a server gets wrong for a gateway: findings from facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["MOST_THREADS", "MOST_WORKERS", "Finding", "ServerFacts", "findings"]

STRICT_PARSER = (0, 6, 14)
"""The first ``gunicorn_h1c`` that reads requests as strictly as gunicorn itself."""

MOST_WORKERS = 1024
"""Processes of one gateway. Each takes tens of MiB: a typing error must not take all there is."""

MOST_THREADS = 4096
"""Threads of one process."""

GRANIAN_CUTS = (2, 8, 9)
"""The first granian that cuts a response without a length for the client when the app fails."""

_HELD_BY_SLOW_CLIENTS = ("sync", "gthread")
_RUINED_BY_FORWARDERS = {"SCRIPT_NAME", "PATH_INFO"}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    :ivar severity: ``error`` for what makes a gateway unsafe, ``warning`` for what makes it worse.
    :ivar setting: The setting to change, or the server.
    :ivar text: What is wrong with it, and what to do.
    """

    severity: Literal["error", "warning"]
    setting: str
    text: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What is known of a server; what is not keeps its default, with which nothing is wrong.

    :ivar server: What it calls itself: ``gunicorn``, ``werkzeug``, ``wsgiref``.
    :ivar version: Its version.
    :ivar tested: The versions that the gateway was tested with: from the first, before the second.
    :ivar worker: gunicorn's kind of worker, or ``GateWorker``.
    :ivar parser: gunicorn's ``http_parser``.
    :ivar other_parser: The version of ``gunicorn_h1c`` that is installed.
    :ivar trusts: Whose word gunicorn takes for the scheme: its ``forwarded_allow_ips``.
    :ivar forwarders_set: The fields by which those set parts of the environ: ``forwarder_headers``.
    :ivar unix_socket: Whether it listens on a Unix socket, all of whose peers it trusts so.
    :ivar header_map: What gunicorn does with fields that have underscores in their names.
    :ivar preload: Whether the gateway is made before the workers are forked.
    :ivar http2: Whether it is to speak HTTP/2, and whether it can: what that takes is installed.
    :ivar raw_target: Whether the request target arrives as the client sent it.
    :ivar keeps_slashes: Whether a route of the gateway tells ``%2F`` from ``/``.
    :ivar strips_forwarded: Whether it removes ``X-Forwarded-For`` and the like by itself.
    :ivar believes_all: Whether it takes the client's address from any peer's ``X-Forwarded-For``.
    :ivar both_framings: Whether it keeps the connection of a request that has a
        ``Content-Length`` and a ``Transfer-Encoding``.
    :ivar hides_authorization: Whether it hides ``Authorization``, as far as this request shows.
    :ivar unseen_fork: Whether its workers were forked without Python being told.
    :ivar no_threads: Whether threads that an app starts do not run.
    :ivar debugger: Whether werkzeug's debugger runs what clients of other machines type.
    """

    server: str = ""
    version: tuple[int, ...] = ()
    tested: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    worker: str = "GateWorker"
    parser: str = "python"
    other_parser: tuple[int, ...] | None = None
    trusts: tuple[str, ...] = ()
    forwarders_set: tuple[str, ...] = ()
    unix_socket: bool = False
    header_map: str = "refuse"
    preload: bool = False
    http2: tuple[bool, bool] = (False, True)
    raw_target: bool = True
    keeps_slashes: bool = False
    debugger: bool = False
    strips_forwarded: bool = False
    believes_all: bool = False
    both_framings: bool = False
    hides_authorization: bool = False
    unseen_fork: bool = False
    no_threads: bool = False


def findings(facts: ServerFacts) -> list[Finding]:
    """Return what is not as it should be, errors first."""
    return sorted(_all(facts), key=lambda finding: finding.severity)


def _all(facts: ServerFacts) -> Iterator[Finding]:
    yield from _parser(facts)
    yield from _forwarders(facts)
    if facts.header_map == "dangerous":
        yield Finding(
            "error", "header_map", 'X_User_Id is read as X-User-Id; set it to "refuse" or "drop"'
        )
    if facts.http2 == (True, False):
        yield Finding(
            "error", "http_protocols", 'HTTP/2 needs the package h2: pip install "wsgigate[http2]"'
        )
    if facts.debugger:
        yield Finding("error", "werkzeug", "its debugger lets clients run code; turn it off")
    if facts.server in ("werkzeug", "wsgiref"):
        yield Finding("warning", facts.server, "it is a server for development; use gunicorn")
    if not facts.raw_target:
        yield Finding(
            "error" if facts.keeps_slashes else "warning",
            facts.server or "the server",
            "it hides the request target as it was sent: an encoded slash is taken for a slash"
            + (', so no route can have encoded_slash = "keep"' if facts.keeps_slashes else ""),
        )
    if facts.server == "granian" and facts.http2[0]:
        # no release is known that frees them; 2.8.9 was tried
        yield Finding(
            "error",
            "http2",
            "under granian one HTTP/2 connection can hold every thread of a worker, by requests "
            "whose bodies never come; turn gateway.http2 off, or run under gunicorn",
        )
    if facts.server == "granian" and () < facts.version < GRANIAN_CUTS:
        yield Finding(
            "warning",
            "granian",
            f"{_dotted(facts.version)} completes a response without a length that the service "
            f"cut, so the client takes it for whole; use granian {_dotted(GRANIAN_CUTS)} or newer",
        )
    yield from _hidden(facts)
    if facts.worker in _HELD_BY_SLOW_CLIENTS:
        yield Finding(
            "warning",
            "worker_class",
            f"slow clients can hold {facts.worker} workers; use "
            "wsgigate.integrations.gate_worker.GateWorker or put a buffering proxy in front",
        )
    if facts.preload:
        yield Finding(
            "warning",
            "preload_app",
            "a reload reads neither the file nor code again, and what middlewares open before "
            "the fork is shared by all workers; turn it off",
        )
    if facts.tested is not None and not facts.tested[0] <= facts.version[:2] < facts.tested[1]:
        first, end = map(_dotted, facts.tested)
        yield Finding(
            "warning",
            facts.server,
            f"{_dotted(facts.version)} is not a release this was tested with: "
            f"from {first}, before {end}",
        )


def _hidden(facts: ServerFacts) -> Iterator[Finding]:
    if facts.believes_all:
        yield Finding(
            "warning",
            "trusted_proxy",
            "every client may claim any address by X-Forwarded-For; remove "
            'trusted_proxy = "*", and name the proxies in gateway.trusted_proxies',
        )
    if facts.strips_forwarded:
        yield Finding(
            "warning",
            facts.server,
            "it removes X-Forwarded-For and the like, so behind a proxy all clients have the "
            "proxy's address and share one quota; serve with clear_untrusted_proxy_headers=False "
            "(waitress-serve --no-clear-untrusted-proxy-headers)",
        )
    if facts.both_framings:
        yield Finding(
            "warning",
            facts.server,
            "it accepts a request with both Content-Length and Transfer-Encoding and keeps its "
            "connection; a proxy in front that goes by the length lets clients smuggle requests; "
            "use gunicorn, or a proxy that rejects such requests",
        )
    if facts.hides_authorization:
        yield Finding(
            "warning",
            "WSGIPassAuthorization",
            "this request has no Authorization, which mod_wsgi hides by default, so that every "
            'token is refused with 401; set "WSGIPassAuthorization On" if it is not',
        )
    if facts.unseen_fork:
        yield Finding(
            "warning",
            "py-call-osafterfork",
            "the workers were forked without telling Python, so threads and locks made before may "
            "hang in them; run uwsgi with --py-call-osafterfork or --lazy-apps",
        )
    if facts.no_threads:
        yield Finding(
            "warning",
            "enable-threads",
            "threads of the app do not run, so the Logger writes nothing and no health check runs; "
            "run uwsgi with --enable-threads",
        )


def _parser(facts: ServerFacts) -> Iterator[Finding]:
    other = facts.other_parser
    if facts.parser == "python" or other is None:
        return
    if other < STRICT_PARSER:
        yield Finding(
            "error",
            "http_parser",
            f"{facts.parser!r} takes gunicorn_h1c {_dotted(other)}, which lets bare "
            'line feeds and folded fields pass; set it to "python"',
        )
    else:
        yield Finding(
            "warning",
            "http_parser",
            f'{facts.parser!r} takes gunicorn_h1c, which was not tested; set it to "python"',
        )


def _forwarders(facts: ServerFacts) -> Iterator[Finding]:
    rewriting = _RUINED_BY_FORWARDERS.intersection(facts.forwarders_set)
    if "*" in facts.trusts:
        yield Finding(
            "error",
            "forwarded_allow_ips",
            'every client may say that it came by https; set it to "", and gateway.trusted_proxies',
        )
    elif facts.trusts:
        yield Finding(
            "warning",
            "forwarded_allow_ips",
            "whom to believe is for gateway.trusted_proxies to say; "
            f'set it to "", not {",".join(facts.trusts)!r}',
        )
    if rewriting and (facts.trusts or facts.unix_socket):
        yield Finding(
            "error",
            "forwarder_headers",
            f'clients could rewrite the path by {" and ".join(sorted(rewriting))}; set it to ""',
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
