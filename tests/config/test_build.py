"""From a file to a gateway, and requests through it; no network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.config.build import assemble, build, check, load_gateway
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load, parse, read
from wsgigate.gateway import Gateway
from wsgigate.tokens import mint

SECRET = "a-secret-of-at-least-thirty-two-bytes"
MEMORY = '[store]\nurl = "memory:"\n'
APP = '[[routes]]\npath = "/echo"\napp = "full_site:echo"\n'
ORDERS = '[services.orders]\ninstances = ["http://127.0.0.1:8000"]\n'


@pytest.fixture
def gateway(full: Path) -> Any:
    made = load_gateway(str(full))
    yield made
    made.close()


def small(text: str, path: str = "") -> Gateway:
    return build(parse(MEMORY + text, environ={}), path=path)


def wrong(text: str, path: str = "") -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        assemble(parse(MEMORY + text, environ={}), path=path)
    return caught.value.errors


def test_a_request_passes_the_middlewares_of_the_gateway_and_of_its_route(
    gateway: Gateway,
) -> None:
    response = Client(gateway).get("/echo/x")
    assert response.text == "GET /echo/x"
    assert response.headers.getlist("X-Stamp") == ["inside", "outside"]
    assert response.headers["X-Request-ID"]
    assert response.headers["RateLimit-Policy"] == '"everybody";q=1000;w=3600, "echo";q=3;w=60'


def test_both_paths_of_a_route_are_counted_together(gateway: Gateway) -> None:
    client = Client(gateway)
    codes = [client.get(path).status_code for path in ("/echo", "/say", "/echo", "/say")]
    assert codes == [200, 200, 200, 429]


def test_a_token_that_the_route_asks_for_lets_pass(gateway: Gateway) -> None:
    client = Client(gateway)
    assert client.get("/private").status_code == 401
    token = mint(SECRET, "HS256", "7")
    response = client.get("/private", headers={"Authorization": f"Bearer {token}"})
    assert response.headers["X-User"] == "7"
    assert client.get("/private/x").text == "the old site"


def test_what_no_route_matches_is_the_fallbacks(gateway: Gateway) -> None:
    assert Client(gateway).get("/elsewhere").text == "the old site"


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
    assert client.delete("/echo").status_code == 405


def test_a_failing_app_is_answered_for_inside_of_the_middlewares(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, "wsgigate"):
        response = Client(gateway).get("/broken")
    assert response.status_code == 500
    assert response.json is not None
    assert response.json["message"] == "Gateway error occurred"
    assert response.headers["X-Stamp"] == "outside"
    assert response.headers["X-Request-ID"]


def test_closing_the_gateway_closes_what_its_middlewares_opened(
    full: Path, site: ModuleType
) -> None:
    made: list[Any] = []
    stamp: Any = site.Stamp
    site.Stamp = lambda app, text: made.append(stamp(app, text=text)) or made[-1]  # type: ignore[attr-defined]
    load_gateway(str(full)).close()
    assert [one.closed for one in made] == [True, True]


def test_the_gateway_says_what_it_is(gateway: Gateway) -> None:
    assert (gateway.name, gateway.version) == ("shop", "1.2.3")
    pool = gateway.pools["orders"]
    assert [(one.url, one.weight) for one in pool.instances] == [
        ("http://127.0.0.1:9", 1),
        ("http://127.0.0.2:9", 2),
    ]


def test_the_404_lists_the_routes_and_which_need_a_token(site: ModuleType) -> None:
    gateway = small(
        APP
        + 'methods = ["GET"]\nmiddleware = [{ use = "cors", origins = ["*"] },'
        + f' {{ use = "authenticator", algorithms = ["HS256"], secret = "{SECRET}" }}]\n'
        + '[[routes]]\npath = "/say"\napp = "full_site:echo"\nlisted = ["GET /say/*"]\n'
        + '[[routes]]\npath = "/hidden"\napp = "full_site:echo"\nlisted = []\n'
    )
    response = Client(gateway).get("/nowhere")
    assert response.status_code == 404
    assert response.json is not None
    assert response.json["availableRoutes"] == ["GET /echo (auth required)", "GET /say/*"]
    gateway.close()


def test_every_request_gets_an_id_unless_that_is_switched_off(site: ModuleType) -> None:
    assert "X-Request-ID" in Client(small(APP)).get("/echo").headers
    off = "[gateway]\nrequest_id = false\n"
    assert "X-Request-ID" not in Client(small(off + APP)).get("/echo").headers


def test_an_id_is_given_once_when_the_file_names_the_middleware(site: ModuleType) -> None:
    named = '[[middleware]]\nuse = "request-id"\nheader = "X-Trace"\n'
    headers = Client(small(named + APP)).get("/echo").headers
    assert "X-Trace" in headers
    assert "X-Request-ID" not in headers


def test_identity_fields_of_clients_never_reach_an_app(site: ModuleType) -> None:
    seen: dict[str, Any] = {}
    site.spy = lambda environ, start: seen.update(environ) or site.echo(environ, start)  # type: ignore[attr-defined]
    gateway = small(
        '[gateway]\nidentity = { X-User-Id = "sub" }\n'
        + APP.replace("full_site:echo", "full_site:spy")
    )
    Client(gateway).get("/echo", headers={"X-User-Id": "admin", "X-Other": "1"})
    assert "HTTP_X_OTHER" in seen
    assert "HTTP_X_USER_ID" not in seen


def test_unnamed_limiters_have_names_of_their_own(site: ModuleType) -> None:
    limiter = '{ use = "limiter", quota = "5/s" }'
    gateway = small(
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


def test_a_breaker_stands_where_the_file_puts_it(site: ModuleType) -> None:
    breaker = '{ use = "breaker", consecutive_failures = 2, failure_rate = 0 }'
    gateway = small(
        f"[[routes]]\npath = '/a'\napp = 'full_site:broken'\nmiddleware = [{breaker}]\n"
        + f"[[routes]]\npath = '/b'\napp = 'full_site:broken'\nmiddleware = [{breaker}]\n"
    )
    client = Client(gateway)
    assert [client.get("/a", buffered=True).status_code for _ in range(3)] == [500, 500, 503]
    assert [client.get("/b", buffered=True).status_code for _ in range(3)] == [500, 500, 503]


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        (APP + APP, "routes[1]", "/echo and /echo match the same requests"),
        (APP + APP, "routes[1]", "the other is routes[0]"),
        (
            "[[routes]]\npaths = ['/a', '/b']\napp = 'full_site:echo'\n"
            "[[routes]]\npaths = ['/c', '/{b}', '/b']\napp = 'full_site:echo'\n",
            "routes[1].paths[2]",
            "the other is routes[0].paths[1]",
        ),
        (APP.replace("echo'", "x").replace(":echo", ":nope"), "routes[0].app", "has no nope"),
        (APP.replace(":echo", ":number"), "routes[0].app", "it can not be called"),
        (APP.replace("full_site", "not_there"), "routes[0].app", "can not be imported: Module"),
        ("[gateway]\nfallback = 'full_site:nope'", "gateway.fallback", "has no nope"),
        ("[gateway]\nidentity = { Host = 'sub' }", "gateway.identity", "Host"),
        ("[[middleware]]\nuse = 'full_site:Stamp'", "middleware[0]", "failed: TypeError"),
        (
            "[[middleware]]\nuse = 'full_site:Stamp'\ntext = ''",
            "middleware[0]",
            "failed: RuntimeError: no text",
        ),
        ("[[middleware]]\nuse = 'full_site:nothing'", "middleware[0]", "made no WSGI application"),
        ("[[middleware]]\nuse = 'limiter'\nquota='1/s'\nname='a b'", "middleware[0]", "name is 1"),
        (
            "[[middleware]]\nuse = 'authenticator'\nalgorithms = ['HS256']\nsecret = 'hunter2'",
            "middleware[0].secret",
            "7 bytes; HS256 needs at least 32",
        ),
        (
            "[[middleware]]\nuse = 'authenticator'\nalgorithms = ['HS256', 'RS256']",
            "middleware[0].algorithms",
            "cannot be mixed",
        ),
        (
            APP + "middleware = [{ use = 'cors', origins = ['*'], credentials = true }]",
            "routes[0].middleware[0]",
            "credentials",
        ),
        (
            "[services.a]\ninstances = ['http://a', 'http://A:80']",
            "services.a.instances",
            "has an instance twice",
        ),
        (
            "[services.a]\ninstances = ['http://a']\nhealth = { path = '//a' }",
            "services.a.health",
            "path",
        ),
        (
            "[services.a]\ninstances = ['https://a']\ntls = { ca = 'nowhere.pem' }",
            "services.a.tls.ca",
            "there is no ",
        ),
        (
            ORDERS + "[[routes]]\npath = '/a'\nservice = 'orders'\n"
            "request_fields = { set = { Content-Length = '0' } }",
            "routes[0].request_fields.set",
            "Content-Length",
        ),
        ("[admin]\ntoken = 'hunter2'", "admin.token", "an admin token is 32 to 1024 visible"),
        (
            "[admin]\nprefix = ''\n"
            + APP.replace("/echo", "/health").replace(
                "app", "exact = true\nmethods = ['GET']\napp"
            ),
            "routes[0]",
            "the other is admin.prefix",
        ),
        (
            "[[middleware]]\nuse = 'limiter'\nquota = '1/s'\nname = 'a'\n"
            "[[middleware]]\nuse = 'limiter'\nquota = '2/s'\nname = 'a'\n",
            "middleware[1]",
            "counts together with the one at middleware[0]",
        ),
        (
            "[[middleware]]\nuse = 'breaker'\nprobes = 1\nname = 'a'\n"
            "[[middleware]]\nuse = 'breaker'\nprobes = 2\nname = 'a'\n",
            "middleware[1]",
            "opens together with the one at middleware[0]",
        ),
        (
            "[[middleware]]\nuse = 'breaker'\nopen_for = '1m'\nopen_at_most = '1s'\n",
            "middleware[0]",
            "open_at_most is not less than open_for",
        ),
    ],
)
def test_what_a_constructor_refuses_is_told_at_its_key_path(
    site: ModuleType, text: str, path: str, said: str
) -> None:
    errors = wrong(text)
    assert any(key == path and said in told for key, told in errors), errors
    assert {key for key, _ in errors} == {path}


def test_what_can_be_built_is_tried_though_other_parts_are_wrong(site: ModuleType) -> None:
    reading = read(
        '[gateway]\nworkers = 0\n[store]\nurl = "memory"\n'
        + APP * 2
        + "timeout = '1s'\nmiddleware = [{ use = 'full_site:Stamp' }]\n"
        + "[[routes]]\npath = '/a'\napp = 'full_site:nope'\n"
        + APP,
        environ={},
    )
    with pytest.raises(ConfigError) as caught:
        assemble(reading.config, errors=reading.errors)
    assert [path for path, _ in caught.value.errors] == [
        "gateway.workers",
        "routes[1].timeout",
        "store.url",
        "routes[1].middleware[0]",
        "routes[2].app",
        "routes[3]",
    ]


def test_a_secret_can_be_in_a_file_beside(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text(SECRET + "\n")
    text = APP + (
        "middleware = [{ use = 'authenticator', algorithms = ['HS256'], secret_file = 'jwt' }]\n"
    )
    client = Client(small(text, str(tmp_path / "gateway.toml")))
    token = mint(SECRET, "HS256", "7")
    assert client.get("/echo", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    (tmp_path / "jwt").write_text("\n")
    ((path, said),) = wrong(text, str(tmp_path / "gateway.toml"))
    assert path == "routes[0].middleware[0].secret_file"
    assert "is empty" in said
    (tmp_path / "jwt").unlink()
    ((_, said),) = wrong(text, str(tmp_path / "gateway.toml"))
    assert "can not be read: No such file" in said


def test_a_folder_of_the_store_starts_where_the_file_is(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.toml")
    gateway = build(parse('[store]\nurl = "lmdb:data"\n'), path=path)
    assert gateway.store.path == str(tmp_path / "data")  # type: ignore[attr-defined]
    assert not (tmp_path / "data").exists()


def test_the_check_says_whether_the_store_can_be_used_here(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.toml")
    check(parse('[store]\nurl = "lmdb:data"\n'), path=path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        check(parse('[store]\nurl = "lmdb:file"\n'), path=path)
    ((key, _),) = caught.value.errors
    assert key == "store.url"


def test_two_files_never_share_a_store_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths = {
        build(parse(f'[gateway]\nname = "{name}"'), path=str(tmp_path / file)).store.path  # type: ignore[attr-defined]
        for name in ("a", "b")
        for file in ("one.toml", "two.toml")
    }
    assert len(paths) == 4


def test_the_file_to_load_is_named_by_the_environment(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGIGATE_CONFIG", str(full))
    load_gateway().close()
    monkeypatch.delenv("WSGIGATE_CONFIG")
    with pytest.raises(ConfigError, match="WSGIGATE_CONFIG names no file"):
        load_gateway()


def test_building_a_config_twice_makes_two_gateways_that_share_nothing_opened(full: Path) -> None:
    config = load(str(full))
    first, second = build(config, path=str(full)), build(config, path=str(full))
    first.close()
    assert Client(second).get("/echo").status_code == 200
    second.close()


def test_the_gateway_has_endpoints_of_its_own_where_the_file_says(gateway: Gateway) -> None:
    client = Client(gateway)
    assert client.get("/health").text == "the old site"
    info = client.get("/_gateway/info").json
    assert info is not None
    assert info["gateway"] == {"name": "shop", "version": "1.2.3", "port": 3000}
    assert info["services"] == ["orders"]
    assert info["features"] == ["Rate limiting"]
    assert info["routes"]["GET /health"] == "Health"
    services = client.get("/_gateway/services").json
    assert services is not None
    assert services["services"][0]["routes"] == ["/orders"]
    assert client.get("/_gateway/health").status_code == 200
    assert client.get("/_gateway/discover/nobody").status_code == 404


def test_without_an_admin_table_there_are_none(site: ModuleType) -> None:
    gateway = small(APP)
    assert Client(gateway).get("/_gateway/info").status_code == 404
    assert [route.path for route in gateway.routes] == ["/echo"]


def test_a_problem_is_json(site: ModuleType) -> None:
    response = Client(small(APP)).get("/nowhere")
    assert response.mimetype == "application/problem+json"
    assert json.loads(response.data)["status"] == 404


def test_only_the_hosts_of_the_file_are_served(site: ModuleType) -> None:
    client = Client(small('[gateway]\nallowed_hosts = ["A.test", "*.b.test"]\n' + APP))
    assert client.get("/echo", headers={"Host": "a.test:3000"}).status_code == 200
    assert client.get("/echo", headers={"Host": "c.b.test"}).status_code == 200
    assert client.get("/echo").status_code == 421
