"""The facts of the server at hand, and what is done about what they show.

Under GateWorker gunicorn's settings are looked at before anything is served. Elsewhere a gateway
learns of its server by the first request.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, Literal
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate import process
from wsgigate.problem import Problem
from wsgigate.rules.serving import Finding, ServerFacts, findings

__all__ = ["checked_at_first_request", "facts_of_environ", "facts_of_gunicorn", "tell"]

Mode = Literal["refuse", "warn"]

_log = logging.getLogger("wsgigate")
_SOFTWARE = re.compile(r"([A-Za-z_]+)/([0-9]+(?:\.[0-9]+)*)")


def facts_of_gunicorn(cfg: Any, *, worker: str, tested: Any = None) -> ServerFacts:
    """Return what gunicorn's settings *cfg* say.

    :param worker: What serves: ``GateWorker``, ``gthread``.
    :param tested: The releases that the worker was tested with.
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
    )


def facts_of_environ(environ: WSGIEnvironment, *, keeps_slashes: bool = False) -> ServerFacts:
    """Return what a request tells of its server.

    :param keeps_slashes: Whether a route of the gateway tells ``%2F`` from ``/``.
    """
    software = environ.get("SERVER_SOFTWARE", "")
    name, version = "", tuple[int, ...]()
    found = _SOFTWARE.search(software)
    if found is not None:
        name, version = found[1].lower(), _version(found[2])
    elif software == "Granian":  # which does not name its version
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
        unseen_fork=process.unseen,
        no_threads=name == "uwsgi" and not _uwsgi_runs_threads(),
    )


def _settings_of_waitress(environ: WSGIEnvironment) -> Any:
    """Return the settings of the waitress that serves, if it shows them; there is no other way."""
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    return getattr(getattr(channel, "server", None), "adj", None)


def _waitress_takes_both_framings() -> bool:
    """Return whether the waitress at hand does, by what it does: a later one may not."""
    try:
        parser = import_module("waitress.parser").HTTPRequestParser(
            import_module("waitress.adjustments").Adjustments()
        )
        parser.received(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
    except Exception:  # it is another one than this was written for
        return False
    return not parser.error and not parser.connection_close


def _uwsgi_runs_threads() -> bool:
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", {})
    return any(name in options for name in ("enable-threads", "threads", "gevent"))


def tell(found: list[Finding], mode: Mode, log: Any = _log) -> bool:
    """Write what was *found* to the log; return whether serving is to be refused for it."""
    for finding in found:
        (log.error if finding.severity == "error" else log.warning)("Self-check: %s", finding)
    refused = mode == "refuse" and any(finding.severity == "error" for finding in found)
    if refused:
        log.error('Nothing is served until that is put right, or gateway.self_check is "warn"')
    return refused


def checked_at_first_request(
    mode: Mode, *, keeps_slashes: bool = False
) -> Callable[[WSGIEnvironment], WSGIApplication | None]:
    """Return what looks at the first request, and says what answers instead if it must not pass."""

    def check(environ: WSGIEnvironment) -> WSGIApplication | None:
        process.notice_fork()
        refused = tell(findings(facts_of_environ(environ, keeps_slashes=keeps_slashes)), mode)
        return Problem(503, "The gateway refuses to serve under this server.") if refused else None

    return check


def _is_gunicorns_own(environ: WSGIEnvironment) -> bool:
    """Return whether the worker is one that a client can hold: neither gevent's nor ours."""
    client = environ.get("gunicorn.socket")
    return not type(client).__module__.startswith(("gevent", "eventlet", "wsgigate"))


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
