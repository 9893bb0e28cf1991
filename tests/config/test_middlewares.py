"""Middlewares of a file: their order, names and arguments."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from tests.config.files import APP, SECRET, built, errors_of
from wsgigate.auth.jwt import mint
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.gateway import Gateway


def test_a_request_passes_the_middlewares_of_the_gateway_and_of_its_route(
    gateway: Gateway,
) -> None:
    response = Client(gateway).get("/echo/x")
    assert response.text == "GET /echo/x"
    assert response.headers.getlist("X-Stamp") == ["inside", "outside"]
    assert response.headers["X-Request-ID"]
    assert response.headers["RateLimit-Policy"] == (
        '"everybody";q=1000;w=3600, "at-once";q=10;qu="concurrent-requests", "echo";q=3;w=60'
    )


def test_both_paths_of_a_route_are_counted_together(gateway: Gateway) -> None:
    client = Client(gateway)
    codes = [client.get(path).status_code for path in ("/echo", "/say", "/echo", "/say")]
    assert codes == [200, 200, 200, 429]


def test_a_route_accepts_the_token_that_it_requires(gateway: Gateway) -> None:
    client = Client(gateway)
    assert client.get("/private").status_code == 401
    token = mint(SECRET, "HS256", "7")
    response = client.get("/private", headers={"Authorization": f"Bearer {token}"})
    assert response.headers["X-User"] == "7"
    assert client.get("/private/x").text == "the old site"


TRUSTING = '[gateway]\ntrusted_proxies = ["127.0.0.1"]\n' + APP

LOGGER = '[[middleware]]\nuse = "logger"\nformat = "json"\n'

IDS = '[[middleware]]\nuse = "request-id"\nheader = "X-Name"\n'

LOOSE = '[[middleware]]\nuse = "limiter"\nquota = "1000 per second"\n'

TOO_MANY = ",".join(["192.0.2.9"] * 33)


def by_proxy(gateway: Gateway, forwarded_for: str) -> Any:
    fields, peer = {"X-Forwarded-For": forwarded_for}, {"REMOTE_ADDR": "127.0.0.1"}
    return Client(gateway).get("/echo", headers=fields, environ_base=peer, buffered=True)


@pytest.mark.parametrize(
    ("middleware", "header"),
    [(LOGGER, "X-Request-ID"), (IDS + LOGGER, "X-Name"), (LOGGER + IDS + LOOSE, "X-Name")],
)
@pytest.mark.usefixtures("full")
def test_a_rejected_forwarding_field_is_logged_with_its_peer(
    middleware: str, header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = built(TRUSTING + middleware)
    refused, passed = by_proxy(made, TOO_MANY), by_proxy(made, "192.0.2.9")
    made.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (refused.status_code, passed.status_code) == (400, 200)
    assert [(line["status"], line["client"]) for line in lines] == [
        (400, "127.0.0.1"),
        (200, "192.0.2.9"),
    ]
    assert "more than 32 entries" in lines[0]["reason"]
    for line, answer in zip(lines, (refused, passed), strict=True):
        assert line["request_id"] == answer.headers[header] != ""


@pytest.mark.usefixtures("full")
def test_a_logger_behind_another_middleware_stays_inside_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = built(TRUSTING + LOOSE + LOGGER)
    assert by_proxy(made, TOO_MANY).status_code == 400
    made.close()
    assert capsys.readouterr().out == ""


def test_a_route_with_limited_methods_lets_preflights_through_to_its_cors(
    gateway: Gateway,
) -> None:
    client = Client(gateway)
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "PUT"}
    response = client.options("/echo", headers=preflight)
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert response.headers["Access-Control-Max-Age"] == "600"
    refused = client.options("/echo")
    assert refused.status_code == 405
    assert refused.headers["Allow"] == "GET, HEAD, PUT"
    assert client.head("/echo").status_code == 200
    assert client.delete("/echo").status_code == 200  # by the fallback, which has its own methods


def test_the_500_of_a_failing_app_passes_the_middlewares(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, "wsgigate"):
        response = Client(gateway).get("/broken")
    assert response.status_code == 500
    assert response.json is not None
    assert response.json["message"] == "Gateway error occurred"
    assert response.headers["X-Stamp"] == "outside"
    assert response.headers["X-Request-ID"]


def test_closing_the_gateway_closes_its_middlewares(full: Path, site: Any) -> None:
    made: list[Any] = []
    stamp: Any = site.Stamp
    site.Stamp = lambda app, text: made.append(stamp(app, text=text)) or made[-1]
    wsgigate.load(str(full)).close()
    assert [one.closed for one in made] == [True, True]


def test_every_request_gets_an_id_unless_that_is_switched_off(site: ModuleType) -> None:
    assert "X-Request-ID" in Client(built(APP)).get("/echo").headers
    off = "[gateway]\nrequest_id = false\n"
    assert "X-Request-ID" not in Client(built(off + APP)).get("/echo").headers


def test_an_id_is_given_once_when_the_file_names_the_middleware(site: ModuleType) -> None:
    named = '[[middleware]]\nuse = "request-id"\nheader = "X-Trace"\n'
    headers = Client(built(named + APP)).get("/echo").headers
    assert "X-Trace" in headers
    assert "X-Request-ID" not in headers


def test_identity_fields_of_clients_never_reach_an_app(site: Any) -> None:
    seen: dict[str, Any] = {}
    site.spy = lambda environ, start: seen.update(environ) or site.echo(environ, start)
    gateway = built(
        '[gateway]\nidentity = { X-User-Id = "sub" }\n'
        + APP.replace("full_site:echo", "full_site:spy")
    )
    Client(gateway).get("/echo", headers={"X-User-Id": "admin", "X-Other": "1"})
    assert "HTTP_X_OTHER" in seen
    assert "HTTP_X_USER_ID" not in seen


def test_identity_fields_of_clients_are_removed_before_anything_is_decided(
    site: ModuleType,
) -> None:
    """A limiter of the whole gateway, which trusts the field, sees no forged plan."""
    gateway = built(
        '[gateway]\nidentity = { X-Plan = "plan" }\n[[middleware]]\nuse = "limiter"\n'
        'quota = "5/s"\nplans = { gold = "99/s" }\nplan = "header:X-Plan"\n' + APP
    )
    answer = Client(gateway).get("/echo", headers={"X-Plan": "gold"})
    assert ";q=5;" in answer.headers["RateLimit-Policy"]


def test_unnamed_limiters_get_unique_names(site: ModuleType) -> None:
    limiter = '{ use = "limiter", quota = "5/s" }'
    gateway = built(
        f"[[routes]]\npath = '/a'\napp = 'full_site:echo'\nmiddleware = [{limiter}, {limiter}]\n"
        + f"[[routes]]\npath = '/'\napp = 'full_site:echo'\nmiddleware = [{limiter}]\n"
        + f"[[routes]]\npath = '/b'\nname = 'a'\napp = 'full_site:echo'\nmiddleware = [{limiter}]\n"
    )

    def names(path: str) -> list[str]:
        policies = Client(gateway).get(path).headers["RateLimit-Policy"]
        return [policy.partition(";")[0].strip('"') for policy in policies.split(", ")]

    assert names("/a") == ["a", "a-2"]
    assert names("/x") == ["root"]
    assert names("/b") == ["a-3"]


def test_a_breaker_is_at_its_position_in_the_list(site: ModuleType) -> None:
    breaker = '{ use = "breaker", consecutive_failures = 2, failure_rate = 0 }'
    gateway = built(
        f"[[routes]]\npath = '/a'\napp = 'full_site:broken'\nmiddleware = [{breaker}]\n"
        + f"[[routes]]\npath = '/b'\napp = 'full_site:broken'\nmiddleware = [{breaker}]\n"
    )
    client = Client(gateway)
    assert [client.get("/a", buffered=True).status_code for _ in range(3)] == [500, 500, 503]
    assert [client.get("/b", buffered=True).status_code for _ in range(3)] == [500, 500, 503]


def test_a_secret_can_be_read_from_a_file_beside_the_configuration(
    site: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "jwt").write_text(SECRET + "\n")
    text = APP + (
        "middleware = [{ use = 'authenticator', algorithms = ['HS256'], secret_file = 'jwt' }]\n"
    )
    client = Client(built(text, str(tmp_path / "gateway.toml")))
    token = mint(SECRET, "HS256", "7")
    assert client.get("/echo", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    (tmp_path / "jwt").write_text("\n")
    ((path, said),) = errors_of(text, str(tmp_path / "gateway.toml"))
    assert path == "routes[0].middleware[0].secret_file"
    assert "is empty" in said
    (tmp_path / "jwt").unlink()
    ((_, said),) = errors_of(text, str(tmp_path / "gateway.toml"))
    assert "cannot be read: No such file" in said


LIMITED = """
store.url = "memory:"

[[middleware]]
use = "limiter"
quota = ["9/m", "90/h"]
key = "full_site:caller"
cost = "full_site:cost"
plans = { big = "12/m" }
plan = "full_site:plan"

[middleware.exempt]
rule = "full_site:exempted"

[[middleware]]
use = "concurrency-limiter"
limit = 3

[[routes]]
path = "/"
app = "full_site:echo"
"""


def test_a_limiter_takes_its_key_cost_and_plan_from_functions(
    site: ModuleType,
) -> None:
    client = Client(build(parse(LIMITED, environ={})))

    def left(path: str, **fields: str) -> list[str]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        answer = client.get(path, headers=headers, buffered=True)
        return [part.partition(";t=")[0] for part in answer.headers["RateLimit"].split(", ")]

    places = '"default-2";r=2'
    assert left("/a") == ['"default-1m";r=8', '"default-1h";r=89', places]
    assert left("/a", X_Cost="3") == ['"default-1m";r=5', '"default-1h";r=86', places]
    assert left("/b") == ['"default-1m";r=8', '"default-1h";r=89', places]
    assert left("/a", X_Plan="big") == ['"default";r=11', places]
    assert left("/a", X_Free="1") == [places]
