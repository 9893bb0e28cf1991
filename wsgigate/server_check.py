"""The self-check: whether the server and its settings make a gateway unsafe.

Under GateWorker, gunicorn's settings are checked before the worker serves. Under other servers the
first request's environ is checked. The facts are gathered first and judged by :func:`findings`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib import import_module, metadata
from typing import Any, Literal
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import LEND_THREAD
from wsgigate.runtime import fork

__all__ = [
    "MOST_THREADS",
    "MOST_WORKERS",
    "SERVER_KEYS",
    "Finding",
    "ServerFacts",
    "changed_keys",
    "facts_of_environ",
    "facts_of_gunicorn",
    "findings",
    "first_request_check",
    "log_findings",
]


# Findings from facts.

STRICT_PARSER = (0, 6, 14)
"""The first ``gunicorn_h1c`` that parses requests as strictly as gunicorn itself."""

MOST_WORKERS = 1024
"""The maximum number of workers. Each takes tens of MiB: a typo must not exhaust the memory."""

MOST_THREADS = 4096
"""The maximum number of threads per process."""

GRANIAN_CUTS = (2, 8, 9)
"""The first granian that aborts a response without a length when the app fails."""

Severity = Literal["error", "warning"]

Starter = Literal["gthread", "granian", "other"]
"""What runs a gateway other than GateWorker: gunicorn's own worker, granian, or another server."""


@dataclass(frozen=True)
class Unapplied:
    """A key of the file that a server does not apply.

    :ivar text: What happens instead, and the cure.
    :ivar severity: ``error`` if the gateway must not serve with it.
    """

    text: str
    severity: Severity = "warning"


_NO_DEADLINE = Unapplied(
    "slow clients have no deadline; run under gunicorn, or put a buffering proxy in front"
)

_NO_LIMIT = Unapplied(
    "one address can open any number of connections; run under gunicorn, or limit them in a proxy "
    "in front"
)

_OTHER = Unapplied("it has no effect; use wsgigate run, or the server's own setting")

SERVER_KEYS: dict[str, dict[Starter, Unapplied]] = {
    "drain_delay": {
        "granian": Unapplied(
            "it stops accepting at once; wait in the orchestrator before it is stopped, such as in "
            "a preStop hook, or run under gunicorn"
        ),
        "other": _OTHER,
    },
    "head_timeout": {"gthread": _NO_DEADLINE, "other": _OTHER},
    "http2": {
        # no release is known that frees them; 2.8.9 was tested
        "granian": Unapplied(
            "one HTTP/2 connection can occupy every thread of a worker, by requests whose bodies "
            "never arrive; set it to false, or run under gunicorn",
            severity="error",
        ),
        "other": _OTHER,
    },
    "idle_timeout": {"gthread": _NO_DEADLINE, "granian": _NO_DEADLINE, "other": _OTHER},
    "keep_alive": {
        "granian": Unapplied(
            "an idle connection is closed after head_timeout instead; set it to 0 to close each "
            "after its response, or run under gunicorn"
        ),
        "other": _OTHER,
    },
    "max_connections_per_client": {"gthread": _NO_LIMIT, "granian": _NO_LIMIT, "other": _OTHER},
    "tls": {"other": _OTHER},
}
"""The keys of ``[gateway]`` that not every server applies, and the servers that do not.

GateWorker applies all of them, under ``wsgigate run``.
"""

_HELD_BY_SLOW_CLIENTS = ("sync", "gthread")

_RUINED_BY_FORWARDERS = {"SCRIPT_NAME", "PATH_INFO"}


@dataclass(frozen=True)
class Finding:
    """One problem of the server or its settings.

    :ivar severity: ``error`` if it makes a gateway unsafe, ``warning`` if it only degrades it.
    :ivar setting: The setting to change, or the server.
    :ivar text: The problem, and how to fix it.
    """

    severity: Severity
    setting: str
    text: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The known facts about a server; an unknown one keeps its default, which yields no finding.

    :ivar server: The server's name: ``gunicorn``, ``werkzeug``, ``wsgiref``.
    :ivar version: Its version.
    :ivar tested: The range of tested versions: from the first, before the second.
    :ivar worker: gunicorn's worker class, or ``GateWorker``.
    :ivar parser: gunicorn's ``http_parser``.
    :ivar other_parser: The installed version of ``gunicorn_h1c``.
    :ivar trusts: The peers that gunicorn trusts for the scheme: its ``forwarded_allow_ips``.
    :ivar forwarders_set: The fields by which those set parts of the environ: ``forwarder_headers``.
    :ivar unix_socket: Whether it listens on a Unix socket, all of whose peers gunicorn trusts.
    :ivar header_map: How gunicorn handles fields with underscores in their names.
    :ivar preload: Whether the gateway is built before the workers are forked.
    :ivar http2: Whether HTTP/2 is enabled, and whether the package for it is installed.
    :ivar raw_target: Whether the request target is available as the client sent it.
    :ivar keeps_slashes: Whether a route of the gateway distinguishes ``%2F`` from ``/``.
    :ivar strips_forwarded: Whether it removes ``X-Forwarded-For`` and similar fields.
    :ivar believes_all: Whether it takes the client's address from any peer's ``X-Forwarded-For``.
    :ivar both_framings: Whether it keeps the connection open after a request with both
        ``Content-Length`` and ``Transfer-Encoding``.
    :ivar hides_authorization: Whether it may hide ``Authorization``: this request has none.
    :ivar unseen_fork: Whether its workers were forked without Python's fork hooks.
    :ivar no_threads: Whether threads that an app starts do not run.
    :ivar debugger: Whether werkzeug's debugger runs code that clients of other machines enter.
    :ivar started_by: What runs the gateway, if that does not apply all keys of the file.
    :ivar changed: The keys of :data:`SERVER_KEYS` whose value is not the default.
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
    started_by: Starter | None = None
    changed: frozenset[str] = frozenset()


def findings(facts: ServerFacts) -> list[Finding]:
    """Return the problems that *facts* show, errors first."""
    return sorted(_all(facts), key=lambda finding: finding.severity)


def _all(facts: ServerFacts) -> Iterator[Finding]:
    yield from _parser(facts)
    yield from _forwarders(facts)
    if facts.header_map == "dangerous":
        yield Finding(
            "error",
            "header_map",
            'X_User_Id is accepted as X-User-Id; set it to "refuse" or "drop"',
        )
    if facts.http2 == (True, False):
        yield Finding(
            "error",
            "http_protocols",
            'HTTP/2 requires the package h2: pip install "wsgigate[http2]"',
        )
    if facts.debugger:
        yield Finding("error", "werkzeug", "its debugger lets clients run code; disable it")
    if facts.server in ("werkzeug", "wsgiref"):
        yield Finding(
            "warning", facts.server, "this is a development server; use gunicorn in production"
        )
    if not facts.raw_target:
        yield Finding(
            "error" if facts.keeps_slashes else "warning",
            facts.server or "the server",
            "it hides the raw request target: an encoded slash cannot be distinguished from a slash"
            + (', so no route can have encoded_slash = "keep"' if facts.keeps_slashes else ""),
        )
    if facts.server == "granian" and () < facts.version < GRANIAN_CUTS:
        yield Finding(
            "warning",
            "granian",
            f"{_dotted(facts.version)} completes a response without a length that the service "
            f"aborted, so the client takes it for complete; use granian {_dotted(GRANIAN_CUTS)} "
            "or newer",
        )
    yield from _hidden(facts)
    yield from _unapplied(facts)
    if facts.worker in _HELD_BY_SLOW_CLIENTS:
        yield Finding(
            "warning",
            "worker_class",
            f"slow clients can block {facts.worker} workers; use "
            "wsgigate.servers.gunicorn_worker.GateWorker or put a buffering proxy in front",
        )
    if facts.preload:
        yield Finding(
            "warning",
            "preload_app",
            "a reload reads neither the file nor code again, and what middlewares open before "
            "the fork is shared by all workers; disable it",
        )
    if facts.tested is not None and not facts.tested[0] <= facts.version[:2] < facts.tested[1]:
        first, end = map(_dotted, facts.tested)
        yield Finding(
            "warning",
            facts.server,
            f"{_dotted(facts.version)} is not a tested release; tested are "
            f"{first} up to, but not including, {end}",
        )


def _hidden(facts: ServerFacts) -> Iterator[Finding]:
    if facts.believes_all:
        yield Finding(
            "warning",
            "trusted_proxy",
            "every client can forge its address by X-Forwarded-For; remove "
            'trusted_proxy = "*", and name the proxies in gateway.trusted_proxies',
        )
    if facts.strips_forwarded:
        yield Finding(
            "warning",
            facts.server,
            "it removes X-Forwarded-For and similar fields, so behind a proxy all clients have the "
            "proxy's address and share one quota; serve with clear_untrusted_proxy_headers=False "
            "(waitress-serve --no-clear-untrusted-proxy-headers)",
        )
    if facts.both_framings:
        yield Finding(
            "warning",
            facts.server,
            "it accepts a request with both Content-Length and Transfer-Encoding and keeps its "
            "connection; behind a proxy that uses the length, clients can smuggle requests; "
            "use gunicorn, or a proxy that rejects such requests",
        )
    if facts.hides_authorization:
        yield Finding(
            "warning",
            "WSGIPassAuthorization",
            "this request has no Authorization, which mod_wsgi hides by default, so every "
            'token is rejected with 401; set "WSGIPassAuthorization On" unless it is set',
        )
    if facts.unseen_fork:
        yield Finding(
            "warning",
            "py-call-osafterfork",
            "the workers were forked without Python's fork hooks, so threads and locks made before "
            "may hang in them; run uwsgi with --py-call-osafterfork or --lazy-apps",
        )
    if facts.no_threads:
        yield Finding(
            "warning",
            "enable-threads",
            "threads of the app do not run, so the Logger writes nothing and no health check runs; "
            "run uwsgi with --enable-threads",
        )


def _unapplied(facts: ServerFacts) -> Iterator[Finding]:
    for name in sorted(facts.changed):
        servers = SERVER_KEYS[name]
        unapplied = servers.get(facts.started_by) if facts.started_by else None
        if unapplied is not None:
            text = f"under {facts.server or 'this server'} {unapplied.text}"
            yield Finding(unapplied.severity, f"gateway.{name}", text)


def _parser(facts: ServerFacts) -> Iterator[Finding]:
    other = facts.other_parser
    if facts.parser == "python" or other is None:
        return
    if other < STRICT_PARSER:
        yield Finding(
            "error",
            "http_parser",
            f"{facts.parser!r} selects gunicorn_h1c {_dotted(other)}, which accepts bare "
            'line feeds and folded fields; set it to "python"',
        )
    else:
        yield Finding(
            "warning",
            "http_parser",
            f'{facts.parser!r} selects gunicorn_h1c, which was not tested; set it to "python"',
        )


def _forwarders(facts: ServerFacts) -> Iterator[Finding]:
    rewriting = _RUINED_BY_FORWARDERS.intersection(facts.forwarders_set)
    if "*" in facts.trusts:
        yield Finding(
            "error",
            "forwarded_allow_ips",
            'every client can claim to use https; set it to "", and use gateway.trusted_proxies',
        )
    elif facts.trusts:
        yield Finding(
            "warning",
            "forwarded_allow_ips",
            "trusted proxies are configured by gateway.trusted_proxies; "
            f'set it to "", not {",".join(facts.trusts)!r}',
        )
    if rewriting and (facts.trusts or facts.unix_socket):
        yield Finding(
            "error",
            "forwarder_headers",
            f'clients can rewrite the path by {" and ".join(sorted(rewriting))}; set it to ""',
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


SelfCheckMode = Literal["refuse", "warn"]

_log = logging.getLogger("wsgigate")

_SOFTWARE = re.compile(r"([A-Za-z_]+)/([0-9]+(?:\.[0-9]+)*)")


def changed_keys(table: Any) -> frozenset[str]:
    """Return the keys of :data:`SERVER_KEYS` that a table ``[gateway]`` gives another value.

    :param table: The table, a dataclass with the defaults.
    """
    return frozenset(
        field.name
        for field in fields(table)
        if field.name in SERVER_KEYS and getattr(table, field.name) != field.default
    )


def facts_of_gunicorn(
    cfg: Any, *, worker: str, tested: Any = None, changed: frozenset[str] = frozenset()
) -> ServerFacts:
    """Return the facts that gunicorn's settings *cfg* show.

    :param worker: The worker class: ``GateWorker``, ``gthread``.
    :param tested: The range of gunicorn versions that the worker was tested with.
    :param changed: What :func:`changed_keys` returns, where ``wsgigate run`` starts gunicorn.
    """
    import gunicorn
    from gunicorn.http2 import is_http2_available

    return ServerFacts(
        server="gunicorn",
        version=_version(gunicorn.__version__),
        tested=tested,
        worker=worker,
        parser=cfg.http_parser,
        other_parser=_installed("gunicorn_h1c"),
        trusts=_listed(cfg.forwarded_allow_ips),
        forwarders_set=tuple(name.upper() for name in _listed(cfg.forwarder_headers)),
        unix_socket=any(isinstance(address, str) for address in cfg.address),
        header_map=cfg.header_map,
        preload=cfg.preload_app,
        http2=("h2" in cfg.http_protocols, is_http2_available()),
        started_by="gthread" if worker == "gthread" else None,
        changed=changed,
    )


def facts_of_environ(
    environ: WSGIEnvironment,
    *,
    keeps_slashes: bool = False,
    changed: frozenset[str] = frozenset(),
) -> ServerFacts:
    """Return the facts that a request's environ shows about its server.

    :param keeps_slashes: Whether a route of the gateway distinguishes ``%2F`` from ``/``.
    :param changed: What :func:`changed_keys` returns; ``wsgigate run`` did not start the server.
    """
    software = environ.get("SERVER_SOFTWARE", "")
    name, version = "", tuple[int, ...]()
    found = _SOFTWARE.search(software)
    if found is not None:
        name, version = found[1].lower(), _version(found[2])
    elif software == "Granian":  # granian does not report its version
        name, version = "granian", _installed("granian") or ()
    if "uwsgi.version" in environ:
        name, version = "uwsgi", _version(str(environ["uwsgi.version"]))
    elif "mod_wsgi.version" in environ:
        name, version = "mod_wsgi", tuple(environ["mod_wsgi.version"])
    elif "waitress.client_disconnected" in environ:
        name, version = "waitress", _installed("waitress") or ()
    waitress = _settings_of_waitress(environ)
    return ServerFacts(
        server={"wsgiserver": "wsgiref"}.get(name, name),
        version=version,
        worker="gthread" if name == "gunicorn" and _is_gunicorns_own(environ) else "",
        raw_target=not name or bool(environ.get("RAW_URI") or environ.get("REQUEST_URI")),
        keeps_slashes=keeps_slashes,
        debugger="werkzeug.debug.preserve_context" in environ
        and not environ.get("REMOTE_ADDR", "").startswith(("127.", "::1")),
        strips_forwarded=getattr(waitress, "clear_untrusted_proxy_headers", False)
        and getattr(waitress, "trusted_proxy", None) is None,
        believes_all=getattr(waitress, "trusted_proxy", None) == "*",
        both_framings=name == "waitress" and _waitress_takes_both_framings(),
        hides_authorization=name == "mod_wsgi" and "HTTP_AUTHORIZATION" not in environ,
        unseen_fork=fork.unseen,
        no_threads=name == "uwsgi" and not _uwsgi_runs_threads(),
        started_by="other",
        changed=changed,
    )


def _settings_of_waitress(environ: WSGIEnvironment) -> Any:
    """Return the settings of the waitress that serves, if found; they have no public interface."""
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    return getattr(getattr(channel, "server", None), "adj", None)


def _waitress_takes_both_framings() -> bool:
    """Return whether the installed waitress accepts both framings, by trying it."""
    try:
        parser = import_module("waitress.parser").HTTPRequestParser(
            import_module("waitress.adjustments").Adjustments()
        )
        parser.received(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
    except Exception:  # this version of waitress has other internals
        return False
    return not parser.error and not parser.connection_close


def _uwsgi_runs_threads() -> bool:
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", {})
    return any(name in options for name in ("enable-threads", "threads", "gevent"))


def log_findings(found: list[Finding], mode: SelfCheckMode, log: Any = _log) -> bool:
    """Log the findings; return whether the gateway must refuse to serve."""
    for finding in found:
        (log.error if finding.severity == "error" else log.warning)("Self-check: %s", finding)
    refused = mode == "refuse" and any(finding.severity == "error" for finding in found)
    if refused:
        log.error(
            "Self-check failed: all requests are rejected; fix the errors, or set "
            'gateway.self_check = "warn"'
        )
    return refused


def first_request_check(
    mode: SelfCheckMode, *, keeps_slashes: bool = False, changed: frozenset[str] = frozenset()
) -> Callable[[WSGIEnvironment], WSGIApplication | None]:
    """Return a check of the first request, which returns an app that rejects requests, or None.

    The arguments are those of :func:`facts_of_environ`.
    """

    def check(environ: WSGIEnvironment) -> WSGIApplication | None:
        facts = facts_of_environ(environ, keeps_slashes=keeps_slashes, changed=changed)
        refused = log_findings(findings(facts), mode)
        return Problem(503, "The gateway refuses to serve under this server.") if refused else None

    return check


def _is_gunicorns_own(environ: WSGIEnvironment) -> bool:
    """Return whether a slow client can block the worker: it is neither gevent's nor GateWorker."""
    client = environ.get("gunicorn.socket")
    module = type(client).__module__
    return LEND_THREAD not in environ and not module.startswith(("gevent", "eventlet"))


def _listed(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def _installed(package: str) -> tuple[int, ...] | None:
    try:
        return _version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
