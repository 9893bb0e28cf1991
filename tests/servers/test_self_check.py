"""The facts of a server, from its settings and from a request."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from werkzeug.test import Client, EnvironBuilder

import wsgigate
from tests.support.interpreter import run_alone
from wsgigate.config.model import GatewayTable, ServerTls
from wsgigate.gateway import Gateway
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import LEND_THREAD
from wsgigate.runtime import fork
from wsgigate.server_check import (
    SERVER_KEYS,
    Finding,
    ServerFacts,
    changed_keys,
    facts_of_environ,
    facts_of_gunicorn,
    findings,
    first_request_check,
    log_findings,
)
from wsgigate.servers.gunicorn_boot import TESTED
from wsgigate.servers.gunicorn_worker import GateWorker
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

SAFE = {
    "http_parser": "python",
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "header_map": "refuse",
}


def config(**settings: Any) -> Config:
    made = Config()
    for name, value in {**SAFE, **settings}.items():
        made.set(name, value)
    return made


def settings_of(cfg: Config) -> list[str]:
    facts = facts_of_gunicorn(cfg, worker="GateWorker", tested=TESTED)
    return [f"{found.severity} {found.setting}" for found in findings(facts)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"preload_app": True}, ["warning preload_app"]),
        ({"header_map": "dangerous"}, ["error header_map"]),
        ({"forwarded_allow_ips": "*"}, ["error forwarded_allow_ips"]),
        ({"bind": "unix:/tmp/a", "forwarder_headers": "script_name"}, ["error forwarder_headers"]),
    ],
)
def test_facts_are_read_from_the_settings_of_gunicorn(
    settings: dict[str, Any], expected: list[str]
) -> None:
    assert settings_of(config(**settings)) == expected


def test_gunicorns_defaults_are_not_those_of_a_gateway() -> None:
    assert "error forwarder_headers" in settings_of(Config())


def test_a_worker_class_without_changes_is_the_class_itself() -> None:
    assert GateWorker.having(head_timeout=None, idle_timeout=30.0) is GateWorker
    assert GateWorker.having(head_timeout=1.0).head_timeout == 1.0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"SERVER_SOFTWARE": "gunicorn/27.0.1", "RAW_URI": "/"}, ["warning worker_class"]),
        (
            {"SERVER_SOFTWARE": "WSGIServer/0.2 CPython/3.11.7"},
            ["warning wsgiref", "warning wsgiref"],
        ),
        ({"SERVER_SOFTWARE": "Werkzeug/3.1.9", "REQUEST_URI": "/"}, ["warning werkzeug"]),
        (
            {
                "SERVER_SOFTWARE": "Werkzeug/3.1.9",
                "REQUEST_URI": "/",
                "werkzeug.debug.preserve_context": None,
            },
            ["error werkzeug", "warning werkzeug"],
        ),
        (
            {
                "SERVER_SOFTWARE": "Werkzeug/3.1.9",
                "REQUEST_URI": "/",
                "REMOTE_ADDR": "127.0.0.1",
                "werkzeug.debug.preserve_context": None,
            },
            ["warning werkzeug"],
        ),
        (EnvironBuilder().get_environ(), []),
    ],
)
def test_facts_are_read_from_a_request(environ: dict[str, Any], expected: list[str]) -> None:
    found = findings(facts_of_environ({**new_environ(), **environ}))
    assert [f"{each.severity} {each.setting}" for each in found] == expected


VALUES: dict[str, Any] = {"tls": ServerTls(cert="a.pem"), "http2": True}


def test_each_key_that_a_server_does_not_apply_is_reported_by_name() -> None:
    defaults = {each.name: each.default for each in fields(GatewayTable)}
    for name, servers in SERVER_KEYS.items():
        table = GatewayTable(**{name: VALUES.get(name, 5)})
        assert changed_keys(table) == {name}
        assert changed_keys(GatewayTable(**{name: defaults[name]})) == set()
        for server in ("gthread", "granian", "other"):
            found = findings(ServerFacts(started_by=server, changed=changed_keys(table)))
            expected = [f"gateway.{name}"] if server in servers else []
            assert [each.setting for each in found] == expected
        assert findings(ServerFacts(changed=changed_keys(table))) == []


def test_a_server_that_wsgigate_did_not_start_applies_no_key_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gateway.toml").write_text(
        "store.url = 'memory:'\n[gateway]\nmax_connections_per_client = 5\n"
    )
    gateway = wsgigate.load(str(tmp_path / "gateway.toml"))
    Client(gateway).get("/").close()
    gateway.close()
    assert "Self-check: gateway.max_connections_per_client: " in caplog.text
    assert "gateway.idle_timeout" not in caplog.text


def test_gate_worker_under_gunicorns_own_command_is_not_taken_for_gthread() -> None:
    environ = {"SERVER_SOFTWARE": "gunicorn/27.0.1", "RAW_URI": "/", LEND_THREAD: print}
    assert findings(facts_of_environ({**new_environ(), **environ})) == []


def test_warnings_never_refuse(caplog: pytest.LogCaptureFixture) -> None:
    assert not log_findings([Finding("warning", "worker_class", "is slow")], "refuse")
    assert caplog.text.count("Self-check: worker_class: is slow") == 1


@pytest.mark.parametrize(("mode", "status"), [("refuse", 503), ("warn", 404)])
def test_a_gateway_checks_the_first_request_and_logs_once(
    mode: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(
        Problem(404),
        name="test",
        store=MemoryStore(),
        pools={},
        first=first_request_check(mode),
    )
    unsafe = {"SERVER_SOFTWARE": "Werkzeug/3.1.9", "werkzeug.debug.preserve_context": None}
    for _ in range(2):
        answer = Server().serve(gateway, {**new_environ(), **unsafe})
        assert answer.status.startswith(str(status))
    assert caplog.text.count("lets clients run code") == 1
    gateway.close()


FORKED = """
import ctypes, os, signal, sys
from wsgigate.gateway import Gateway
from wsgigate.runtime import fork
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

store = MemoryStore()

def app(environ, start_response):
    store.get("a")
    start_response("200 OK", [])
    return [b"ok"]

gateway = Gateway(app, name="test", store=store, pools={})
with store.lock:  # as a thread of the parent may have it
    child = ctypes.PyDLL(None).fork()
    if not child:
        signal.alarm(30)  # ends a child that waits for the lock
        served = Server().serve(gateway, new_environ()).status == "200 OK"
        os._exit(not (served and fork.unseen))
assert not fork.unseen
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


def test_the_first_request_after_a_fork_without_hooks_renews_the_locks() -> None:
    run_alone(FORKED)


def test_what_uwsgi_and_mod_wsgi_hide_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**environ: Any) -> list[str]:
        request = {"REQUEST_URI": "/", **environ}
        return [found.setting for found in findings(facts_of_environ(request))]

    uwsgi = SimpleNamespace(opt={"master": b"true"})
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    environ = {"uwsgi.version": b"2.0.21"}
    assert of(**environ) == ["enable-threads"]
    uwsgi.opt["threads"] = b"4"
    assert of(**environ) == []
    monkeypatch.setattr(fork, "unseen", True)
    assert of(**environ) == ["py-call-osafterfork"]
    monkeypatch.undo()
    apache = {"mod_wsgi.version": (4, 9, 4), "SERVER_SOFTWARE": "Apache/2.4.58 (Debian)"}
    assert of(**apache) == ["WSGIPassAuthorization"]
    assert of(**apache, HTTP_AUTHORIZATION="Bearer x") == []


WAITRESS = """
import sys, wsgigate
with open("gateway.toml", "w") as file:
    file.write('[store]\\nurl = "memory:"\\n')
import threading, urllib.error, urllib.request
from waitress import create_server
server = create_server(wsgigate.load("gateway.toml"), listen="127.0.0.1:0", **eval(sys.argv[1]))
threading.Thread(target=server.run, daemon=True).start()
try:
    urllib.request.urlopen(f"http://127.0.0.1:{server.effective_port}/")
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.parametrize(
    ("options", "status", "found", "missing"),
    [
        ({}, 404, "clear_untrusted_proxy_headers=False", "trusted_proxy:"),
        ({"clear_untrusted_proxy_headers": False}, 404, "Content-Length", "clear_untrusted"),
        (
            {"trusted_proxy": "*", "trusted_proxy_headers": "x-forwarded-for"},
            404,
            "trusted_proxy: every client",
            "clear_untrusted",
        ),
    ],
)
def test_what_waitress_does_is_found(
    options: dict[str, Any], status: int, found: str, missing: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITRESS, repr(options)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == f"{status}\n", done.stderr
    assert found in done.stderr
    assert missing not in done.stderr
    # until a waitress is out that closes such a connection, or rejects the request
    takes_both = "Content-Length and Transfer-Encoding" in done.stderr
    assert takes_both == (keeps_both_framings() is True)


def keeps_both_framings() -> bool:
    from waitress.adjustments import Adjustments
    from waitress.parser import HTTPRequestParser

    parser = HTTPRequestParser(Adjustments())
    parser.received(
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    return not (parser.error or parser.connection_close)
