"""From a file to a gateway, and requests through it; no network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

import wsgigate
from wsgigate.auth.jwt import mint
from wsgigate.config.build import assemble, build, check, check_reading
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load, parse, read
from wsgigate.gateway import Gateway

SECRET = "a-secret-of-at-least-thirty-two-bytes"
MEMORY = '[store]\nurl = "memory:"\n'
LIMITER = "[[middleware]]\nuse = 'limiter'\nquota = '5/s'\n"
AT_ONCE = "[[middleware]]\nuse = 'concurrency-limiter'\n"
APP = '[[routes]]\npath = "/echo"\napp = "full_site:echo"\n'
ORDERS = '[services.orders]\ninstances = ["http://127.0.0.1:8000"]\n'


@pytest.fixture
def gateway(full: Path) -> Any:
    made = wsgigate.load(str(full))
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
    assert response.headers["RateLimit-Policy"] == (
        '"everybody";q=1000;w=3600, "at-once";q=10;qu="concurrent-requests", "echo";q=3;w=60'
    )


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
def test_what_a_proxy_may_not_send_is_logged_with_who_sent_it(
    middleware: str, header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small(TRUSTING + middleware)
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
def test_a_logger_behind_another_middleware_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    made = small(TRUSTING + LOOSE + LOGGER)
    assert by_proxy(made, TOO_MANY).status_code == 400
    made.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("keep", "raw", "status"), [("reject", False, 200), ("keep", False, 503), ("keep", True, 200)]
)
@pytest.mark.usefixtures("full")
def test_a_server_that_hides_the_target_can_keep_no_encoded_slash(
    keep: str, raw: bool, status: int
) -> None:
    """E35: the routes would take %2F for a slash there."""
    made = small(APP + f'encoded_slash = "{keep}"\n')
    environ = EnvironBuilder("/echo").get_environ()
    environ["SERVER_SOFTWARE"] = "WSGIServer/0.2"
    if not raw:
        del environ["RAW_URI"], environ["REQUEST_URI"]
    _, answered, _ = run_wsgi_app(made, environ)
    assert int(answered[:3]) == status
    made.close()


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
    assert client.delete("/echo").status_code == 200  # by the fallback, which has its own methods


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
    wsgigate.load(str(full)).close()
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
        (APP + APP, "routes[1]", "the other route is routes[0]"),
        (
            "[[routes]]\npaths = ['/a', '/b']\napp = 'full_site:echo'\n"
            "[[routes]]\npaths = ['/c', '/{b}', '/b']\napp = 'full_site:echo'\n",
            "routes[1].paths[2]",
            "the other route is routes[0].paths[1]",
        ),
        (APP.replace("echo'", "x").replace(":echo", ":nope"), "routes[0].app", "has no nope"),
        (APP.replace(":echo", ":number"), "routes[0].app", "it is not callable"),
        (APP.replace("full_site", "not_there"), "routes[0].app", "cannot be imported: Module"),
        ("[gateway]\nfallback = 'full_site:nope'", "gateway.fallback", "has no nope"),
        ("[gateway]\nidentity = { Host = 'sub' }", "gateway.identity", "Host"),
        ("[[middleware]]\nuse = 'full_site:Stamp'", "middleware[0]", "failed: TypeError"),
        (
            "[[middleware]]\nuse = 'full_site:Stamp'\ntext = ''",
            "middleware[0]",
            "failed: RuntimeError: no text",
        ),
        (
            "[[middleware]]\nuse = 'full_site:nothing'",
            "middleware[0]",
            "returned no WSGI application",
        ),
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
            "does not exist",
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
            "the other route is admin.prefix",
        ),
        (
            "[[middleware]]\nuse = 'limiter'\nquota = '1/s'\nname = 'a'\n"
            "[[middleware]]\nuse = 'limiter'\nquota = '2/s'\nname = 'a'\n",
            "middleware[1]",
            "shares its counts with the one at middleware[0]",
        ),
        (
            "[[middleware]]\nuse = 'limiter'\nquota = '1/s'\nname = 'a'\n"
            "[[middleware]]\nuse = 'concurrency-limiter'\nlimit = 2\nname = 'a'\n",
            "middleware[1]",
            "shares its counts with the one at middleware[0]",
        ),
        (LIMITER + "key = 'full_site:nobody'", "middleware[0].key", "full_site has no nobody"),
        (LIMITER + "key = 'full_site:number'", "middleware[0].key", "is not a function"),
        (LIMITER + "cost = 'full_site:number'", "middleware[0].cost", "is not a function"),
        (LIMITER + "cost = 6", "middleware[0].cost", "more than a quota of 5 ever allows"),
        (LIMITER + "cost = 0", "middleware[0].cost", "a whole number, at least 1"),
        (LIMITER + "cost = 'many'", "middleware[0].cost", "package.module:name"),
        (LIMITER + "plans = { a = 'many' }", "middleware[0].plans.a", "a quota is written"),
        (LIMITER + "plans = { a = '1/s' }", "middleware[0].plan", "required with plans"),
        (LIMITER + "plan = 'header:X-Plan'", "middleware[0].plans", "required with plan"),
        (LIMITER + "plan = 'cookie:a'", "middleware[0].plan", "cookie cannot be imported"),
        (
            LIMITER + "plan = 'claim:plan'\nplans = { a = '1/s' }",
            "middleware[0].plan",
            "requires a verified token",
        ),
        (LIMITER + "key = 'claim:team'", "middleware[0].key", "add an authenticator"),
        (LIMITER + "key = 'address|subject'", "middleware[0].key", "add an authenticator"),
        (LIMITER + "key = 'address|who'", "middleware[0].key", "expected"),
        (LIMITER + "observe = 1", "middleware[0].observe", "true or false"),
        (LIMITER + "exempt = { paths = ['health'] }", "middleware[0].exempt.paths[0]", "/health"),
        (LIMITER + "exempt = { paths = ['/a/../b'] }", "middleware[0].exempt", "a dot segment"),
        (LIMITER + "exempt = { addresses = ['here'] }", "middleware[0].exempt", "'here'"),
        (LIMITER + "exempt = { methods = ['get'] }", "middleware[0].exempt.methods[0]", "OPTIONS"),
        (LIMITER + "exempt = { rule = 'full_site:no' }", "middleware[0].exempt", "has no no"),
        (LIMITER + "exempt = { path = [] }", "middleware[0].exempt.path", "is not a known key"),
        (LIMITER + "only = {}", "middleware[0].only", "paths, methods or a rule is required"),
        (LIMITER + "only = { paths = [] }", "middleware[0].only.paths", "at least one"),
        (LIMITER + "only = { paths = ['login'] }", "middleware[0].only.paths[0]", "/login"),
        (LIMITER + "only = { paths = ['/a*'] }", "middleware[0].only", "a whole segment"),
        (LIMITER + "only = { methods = ['post'] }", "middleware[0].only.methods[0]", "POST"),
        (LIMITER + "only = { ignore_case = 1 }", "middleware[0].only.ignore_case", "true or false"),
        (LIMITER + "only = { rule = 'full_site:no' }", "middleware[0].only", "has no no"),
        (LIMITER + "only = { path = [] }", "middleware[0].only.path", "is not a known key"),
        (
            "[[middleware]]\nuse = 'limiter'\nquota = ['5/s', '6/s']",
            "middleware[0].quota",
            "two of one name",
        ),
        ("[[middleware]]\nuse = 'limiter'\nquota = []", "middleware[0].quota", "at least one"),
        ("[[middleware]]\nuse = 'limiter'\nquota = ['1/s', 'x']", "middleware[0].quota[1]", "'x'"),
        (AT_ONCE + "limit = 0", "middleware[0].limit", "from 1 to 4000"),
        (AT_ONCE + "limit = 4001", "middleware[0].limit", "from 1 to 4000"),
        (AT_ONCE + "limit = 1\nlease = '10ms'", "middleware[0].lease", "0.1 to 3600"),
        (AT_ONCE + "limit = 1\nfields = ['x-ratelimit']", "middleware[0].fields[0]", "ratelimit"),
        (AT_ONCE + "limit = 1\nkey = 'route'", "middleware[0].key", "of a route only"),
        (
            "[[middleware]]\nuse = 'breaker'\nprobes = 1\nname = 'a'\n"
            "[[middleware]]\nuse = 'breaker'\nprobes = 2\nname = 'a'\n",
            "middleware[1]",
            "shares its circuit with the one at middleware[0]",
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
    assert "cannot be read: No such file" in said


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


def test_a_gateway_is_known_by_its_name_in_a_redis_wherever_its_file_is(tmp_path: Path) -> None:
    text = '[gateway]\nname = "shop"\n[store]\nurl = "redis://h"\n'
    prefixes = {
        build(parse(text), path=str(tmp_path / file)).store.prefix  # type: ignore[attr-defined]
        for file in ("one.toml", "two.toml")
    }
    assert prefixes == {"wsgigate:shop:"}


def test_the_check_warns_when_a_redis_cannot_be_reached() -> None:
    text = '[store]\nurl = "redis://name:secret-word@127.0.0.1:1/0?prefix=x"\n'
    check(parse(text))
    reading = read(text)
    check_reading(reading, "").gateway.close()
    key, said = reading.warnings[-1]
    assert key == "store.url"
    assert said.startswith("the store redis://127.0.0.1:1/0 fails: ")
    assert "refused" in said
    assert "secret-word" not in said


@pytest.mark.parametrize("url", ["redis://:secret-word@h/x", "redis://:secret/word@h", "redis:h"])
def test_a_url_of_a_redis_that_is_none_is_an_error_of_the_file(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(parse(f'[store]\nurl = "{url}"\n'))
    ((key, said),) = caught.value.errors
    assert key == "store.url"
    assert "secret" not in said
    assert "word" not in said.replace("password", "")


def test_two_files_never_share_a_store_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: None
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
    wsgigate.load().close()
    monkeypatch.delenv("WSGIGATE_CONFIG")
    with pytest.raises(ConfigError, match="WSGIGATE_CONFIG is not set"):
        wsgigate.load()


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


def test_functions_of_the_site_say_who_is_counted_as_how_many_and_by_which_plan(
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
