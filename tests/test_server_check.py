"""Faults of servers that the check detects, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.server_check import ServerFacts, findings

GOOD: dict[str, Any] = {
    "server": "gunicorn",
    "version": (27, 0, 1),
    "tested": ((27, 0), (28, 0)),
}

TABLE: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"parser": "auto"}, []),
    ({"other_parser": (0, 6, 9)}, []),
    ({"parser": "auto", "other_parser": (0, 6, 9)}, ["error http_parser"]),
    ({"parser": "fast", "other_parser": (0, 6, 9)}, ["error http_parser"]),
    ({"parser": "auto", "other_parser": (0, 6, 14)}, ["warning http_parser"]),
    ({"trusts": ("127.0.0.1", "::1")}, ["warning forwarded_allow_ips"]),
    ({"trusts": ("*",)}, ["error forwarded_allow_ips"]),
    ({"forwarders_set": ("SCRIPT_NAME", "PATH_INFO")}, []),
    (
        {"trusts": ("10.0.0.1",), "forwarders_set": ("SCRIPT_NAME", "PATH_INFO")},
        ["error forwarder_headers", "warning forwarded_allow_ips"],
    ),
    ({"trusts": ("10.0.0.1",), "forwarders_set": ("X_Y",)}, ["warning forwarded_allow_ips"]),
    ({"unix_socket": True}, []),
    ({"unix_socket": True, "forwarders_set": ("SCRIPT_NAME",)}, ["error forwarder_headers"]),
    ({"header_map": "drop"}, []),
    ({"header_map": "dangerous"}, ["error header_map"]),
    ({"http2": (True, True)}, []),
    ({"http2": (False, False)}, []),
    ({"http2": (True, False)}, ["error http_protocols"]),
    ({"preload": True}, ["warning preload_app"]),
    ({"worker": "sync"}, ["warning worker_class"]),
    ({"worker": "gthread"}, ["warning worker_class"]),
    ({"worker": "gevent"}, []),
    ({"version": (26, 1)}, ["warning gunicorn"]),
    ({"version": (28, 0, 0)}, ["warning gunicorn"]),
    ({"version": (28, 0, 0), "tested": None}, []),
    ({"server": "werkzeug", "tested": None}, ["warning werkzeug"]),
    (
        {"server": "werkzeug", "tested": None, "debugger": True},
        ["error werkzeug", "warning werkzeug"],
    ),
    (
        {"server": "wsgiref", "tested": None, "raw_target": False},
        ["warning wsgiref", "warning wsgiref"],
    ),
    (  # E35
        {"server": "granian", "tested": None, "raw_target": False, "keeps_slashes": True},
        ["error granian"],
    ),
    ({"keeps_slashes": True}, []),
    (
        {"server": "waitress", "tested": None, "strips_forwarded": True, "both_framings": True},
        ["warning waitress", "warning waitress"],
    ),
    ({"server": "waitress", "tested": None, "believes_all": True}, ["warning trusted_proxy"]),
    (
        {"server": "mod_wsgi", "tested": None, "hides_authorization": True},
        ["warning WSGIPassAuthorization"],
    ),
    (
        {"server": "uwsgi", "tested": None, "unseen_fork": True, "no_threads": True},
        ["warning py-call-osafterfork", "warning enable-threads"],
    ),
    ({"server": "granian", "version": (2, 8, 7), "tested": None}, ["warning granian"]),
    ({"server": "granian", "version": (2, 8, 9), "tested": None}, []),
    ({"server": "granian", "version": (), "tested": None}, []),
    (
        {"server": "granian", "started_by": "granian", "changed": {"http2", "keep_alive"}},
        ["error gateway.http2", "warning gateway.keep_alive"],
    ),
]


@pytest.mark.parametrize(("facts", "expected"), TABLE)
def test_findings_follow_from_the_facts(facts: dict[str, Any], expected: list[str]) -> None:
    found = findings(ServerFacts(**{**GOOD, **facts}))
    assert [f"{each.severity} {each.setting}" for each in found] == expected


def test_an_unknown_server_has_no_findings() -> None:
    assert findings(ServerFacts()) == []


def test_a_finding_says_what_to_do() -> None:
    [found] = findings(ServerFacts(**GOOD, parser="auto", other_parser=(0, 6, 9)))
    assert str(found).startswith("http_parser: 'auto' selects gunicorn_h1c 0.6.9")
    assert str(found).endswith('set it to "python"')
