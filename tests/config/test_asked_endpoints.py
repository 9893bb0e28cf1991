"""Middlewares of the file that ask an endpoint: their keys, ``check``, and ``/health``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from tests.config.files import errors_of
from tests.support.dpop import Prover
from wsgigate.config.build import check_file
from wsgigate.config.load import read_file
from wsgigate.testing import Backend, reply

MEMORY = 'store.url = "memory:"\n'

ROUTE = """
[admin]
[[routes]]
path = "/"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
"""

INTROSPECTION = """
use = "introspection"
endpoint = "{url}/introspect"
client_id = "gate"
client_secret_file = "secret"
cache = "30s"
"""

ACTIVE = reply(
    json.dumps({"active": True, "sub": "ann"}).encode(),
    fields=[("Content-Type", "application/json")],
)


def written(tmp_path: Path, options: str) -> str:
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "gateway.toml").write_text(MEMORY + ROUTE + options)
    return str(tmp_path / "gateway.toml")


def checked(file: str, **options: bool) -> list[tuple[str, str]]:
    parsed = read_file(file)
    check_file(parsed, file, **options).gateway.close()
    return parsed.warnings


def health(gateway: Any) -> Any:
    document = Client(gateway).get("/_gateway/health").json
    assert document is not None
    return document.get("endpoints")


def test_a_gateway_asks_the_endpoint_and_shows_its_state(tmp_path: Path) -> None:
    with Backend(ACTIVE) as backend:
        gateway = wsgigate.load(written(tmp_path, INTROSPECTION.format(url=backend.url)))
        name = f"{backend.url}/introspect"
        idle = {"circuit": "CLOSED", "in_flight": 0, "waiting": 0}
        assert health(gateway) == {name: idle}
        fields = {"Authorization": "Bearer good"}
        assert Client(gateway).get("/", headers=fields).status_code == 200
        assert backend.requests[0].value("Authorization") == "Basic Z2F0ZTpzM2NyZXQ="
        backend.answers = [reply(status="503 Busy")]
        assert Client(gateway).get("/", headers={"Authorization": "Bearer b"}).status_code == 503
        assert health(gateway) == {name: {**idle, "error": "it answered 503"}}
        gateway.close()


def test_a_token_that_is_bound_to_a_key_is_no_bearer_token(tmp_path: Path) -> None:
    client = Prover()
    bound = {"active": True, "sub": "ann", "cnf": {"jkt": client.key}}
    answer = reply(json.dumps(bound).encode(), fields=[("Content-Type", "application/json")])
    with Backend(answer) as backend:
        options = INTROSPECTION.format(url=backend.url) + 'dpop = "optional"\n'
        gateway = wsgigate.load(written(tmp_path, options))
        sent = {"Authorization": "Bearer opaque"}
        assert Client(gateway).get("/", headers=sent).status_code == 401
        proof = client.proof("opaque", url="http://localhost/", iat=int(time.time()))
        sent = {"Authorization": "DPoP opaque", "DPoP": proof}
        statuses = [Client(gateway).get("/", headers=sent).status_code for _ in range(2)]
        assert statuses == [200, 401]
        gateway.close()


def test_routes_share_the_bounds_of_one_endpoint(tmp_path: Path, nobody: str) -> None:
    second = '\n[[routes]]\npath = "/b"\napp = "wsgiref.simple_server:demo_app"\n'
    options = INTROSPECTION.format(url=nobody)
    file = written(tmp_path, f"{options}{second}[[routes.middleware]]{options}")
    gateway = wsgigate.load(file)
    for number in range(20):
        fields = {"Authorization": f"Bearer token-{number}"}
        assert Client(gateway).get("/", headers=fields).status_code == 503
    assert list(health(gateway)) == [f"{nobody}/introspect"]
    assert health(gateway)[f"{nobody}/introspect"]["circuit"] == "OPEN"
    gateway.close()


def test_check_warns_of_an_endpoint_that_cannot_be_asked(tmp_path: Path) -> None:
    with Backend(ACTIVE) as backend:
        file = written(tmp_path, INTROSPECTION.format(url=backend.url))
        assert checked(file, asks=True) == []
        backend.answers = [reply(status="401 Unauthorized")]
        ((path, text),) = checked(file, asks=True)
        assert path == "routes[0].middleware[0]"
        assert text.startswith(f"{backend.url}/introspect cannot be asked: the endpoint failed: ")
        assert "it answered 401" in text
        asked = len(backend.requests)
        assert checked(file, asks=True, offline=True) == checked(file) == []
        assert len(backend.requests) == asked


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ('endpoint = "http://id.example.com/"', "endpoint", "must begin with https://"),
        ('endpoint = "https://a.test"', "client_id", "required, with client_secret"),
        (
            'endpoint = "https://a.test"\nclient_id = "a"\nclient_secret_file = "gone"',
            "client_secret_file",
            "cannot be read",
        ),
        ('endpoint = "https://a.test"\nbearer_token = "b"\nca = "gone"', "ca", "cannot load"),
        ('endpoint = "https://a.test"\ntimout = "1s"', "timout", 'did you mean "timeout"'),
        ('endpoint = "https://a.test"\nbearer_token = "b"\ntimeout = "2m"', "timeout", "60"),
        ('endpoint = "https://a.test"\nbearer_token = "b"\ncache = "-1s"', "cache", ""),
        ('endpoint = "https://a.test"\nbearer_token = "b"\ndpop = "always"', "dpop", "required"),
        (
            'endpoint = "https://a.test"\nbearer_token = "b"\non_store_error = "allow"',
            "on_store_error",
            "requires dpop",
        ),
    ],
)
def test_an_error_names_its_key_and_the_cure(options: str, key: str, said: str) -> None:
    [(path, text)] = errors_of(f'{ROUTE}use = "introspection"\n{options}')
    assert path == f"routes[0].middleware[0].{key}"
    assert said in text


def test_a_secret_is_not_shown() -> None:
    options = 'endpoint = "https://a.test"\nbearer_token = "hunter two"'
    [(_, text)] = errors_of(f'{ROUTE}use = "introspection"\n{options}')
    assert "hunter" not in text


FORWARD_AUTH = """
use = "forward-auth"
address = "{url}/verify"
auth_response_headers = ["Remote-User"]
header_field = "Remote-User"
claim_headers = {{ email = "Remote-Email" }}
max_response_body_size = "64KiB"
cache = "30s"
cache_key_headers = ["Cookie"]
exempt = {{ paths = ["/public/*"] }}
"""


def test_forward_authentication_has_its_keys(tmp_path: Path) -> None:
    allowed = reply(fields=[("Remote-User", "ann"), ("Remote-Email", "ann@example.com")])
    denied = reply(b"no", status="403 Forbidden")
    with Backend(allowed, denied) as backend:
        gateway = wsgigate.load(written(tmp_path, FORWARD_AUTH.format(url=backend.url)))
        client = Client(gateway, use_cookies=False)
        response = client.get("/", headers={"Cookie": "a=1", "Remote-Email": "root@example.com"})
        assert "HTTP_REMOTE_USER = 'ann'" in response.text
        assert "root" not in response.text
        assert client.get("/", headers={"Cookie": "a=1"}).status_code == 200
        assert client.get("/", headers={"Cookie": "a=2"}).status_code == 403
        assert client.get("/public/x").status_code == 200
        assert len(backend.requests) == 2
        assert list(health(gateway)) == [f"{backend.url}/verify"]
        gateway.close()


def test_check_warns_of_a_service_that_cannot_be_asked(tmp_path: Path) -> None:
    with Backend(reply(b"no", status="401 Unauthorized")) as backend:
        file = written(tmp_path, FORWARD_AUTH.format(url=backend.url))
        assert checked(file, asks=True) == []
        backend.answers = [reply(status="404 Not Found")]
        ((path, text),) = checked(file, asks=True)
        assert path == "routes[0].middleware[0]"
        assert text.startswith(f"{backend.url}/verify cannot be asked: it answered 404; ")
        assert checked(file, asks=True, offline=True) == []


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ("", "address", "is required"),
        ('address = "http//auth"', "address", "expected a URL such as"),
        ('address = "https://a.test"\nforward_body = true', "forward_body", "requires preserve_"),
        ('address = "https://a.test"\ncache = "1s"', "cache_key_headers", "required with cache"),
        (
            'address = "https://a.test"\nauth_response_headers = ["Host"]',
            "auth_response_headers",
            "cannot be set",
        ),
        ('address = "https://a.test"\non_error = "pass"', "on_error", "allow"),
        ('address = "https://a.test"\ntrust_forward_header = true', "trust_forward_header", ""),
    ],
)
def test_an_error_of_forward_authentication_names_its_key(
    options: str, key: str, said: str
) -> None:
    [(path, text)] = errors_of(f'{ROUTE}use = "forward-auth"\n{options}')
    assert path == f"routes[0].middleware[0].{key}"
    assert said in text
