"""Build a gateway from a file and send requests through it; no network."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

import wsgigate
from tests.config.files import APP, SECRET, built, errors_of
from wsgigate.config.build import assemble, build
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load, read
from wsgigate.gateway import Gateway

TOKENS = (
    "[[middleware]]\nuse = 'authenticator'\nalgorithms = ['HS256']\n"
    "secret = '0123456789abcdef0123456789abcdef'\n[[middleware]]\nuse = 'authorizer'\n"
)
LIMITER = "[[middleware]]\nuse = 'limiter'\nquota = '5/s'\n"
AT_ONCE = "[[middleware]]\nuse = 'concurrency-limiter'\n"
ORDERS = '[services.orders]\ninstances = ["http://127.0.0.1:8000"]\n'


@pytest.mark.parametrize(
    ("keep", "raw", "status"), [("reject", False, 200), ("keep", False, 503), ("keep", True, 200)]
)
@pytest.mark.usefixtures("full")
def test_keeping_encoded_slashes_requires_a_server_that_passes_the_raw_target(
    keep: str, raw: bool, status: int
) -> None:
    """Without the raw target, the routes would treat %2F as a slash (error E35)."""
    made = built(APP + f'encoded_slash = "{keep}"\n')
    environ = EnvironBuilder("/echo").get_environ()
    environ["SERVER_SOFTWARE"] = "WSGIServer/0.2"
    if not raw:
        del environ["RAW_URI"], environ["REQUEST_URI"]
    _, answered, _ = run_wsgi_app(made, environ)
    assert int(answered[:3]) == status
    made.close()


def test_requests_without_a_route_go_to_the_fallback_app(gateway: Gateway) -> None:
    assert Client(gateway).get("/elsewhere").text == "the old site"


def test_info_shows_the_name_and_version(gateway: Gateway) -> None:
    assert (gateway.name, gateway.version) == ("shop", "1.2.3")
    pool = gateway.pools["orders"]
    assert [(one.url, one.weight) for one in pool.instances] == [
        ("http://127.0.0.1:9", 1),
        ("http://127.0.0.2:9", 2),
    ]


def test_the_404_lists_the_routes_and_which_need_a_token(site: ModuleType) -> None:
    gateway = built(
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
        (
            "[[middleware]]\nuse = 'authorizer'\nroles = ['a']",
            "middleware[0]",
            "add an authenticator before this authorizer",
        ),
        ("[gateway]\nresource = 'api.example.com'", "gateway.resource", "expected an https URL"),
        ("[gateway]\nresource = 'https://a/?b'", "gateway.resource", "expected an https URL"),
        (TOKENS + "scopes = ['a b']", "middleware[1].scopes", "'a b' is not a scope name"),
        (TOKENS + "roles = 'clerk'", "middleware[1].roles", "expected a list"),
        (TOKENS + "claims = { 'a..b' = 'c' }", "middleware[1].claims", "a name is empty"),
        (TOKENS + "claims = { a.b = 'c' }", "middleware[1].claims.a", "expected"),
        (TOKENS + "policy = 'full_site:number'", "middleware[1].policy", "is not a function"),
        (TOKENS + "policy = 'full_site:nobody'", "middleware[1].policy", "full_site has no nobody"),
        (TOKENS + "rules = [{ methods = ['get'] }]", "middleware[1].rules[0].methods[0]", "GET"),
        (TOKENS + "rules = [{ scope = ['a'] }]", "middleware[1].rules[0].scope", '"scopes"'),
        (TOKENS + "rules = [{ scopes = ['a b'] }]", "middleware[1].rules[0].scopes", "'a b'"),
        (TOKENS + "rules = [{ policy = 'full_site:no' }]", "middleware[1].rules", "has no no"),
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
        (LIMITER + "key = 'client'", "middleware[0].key", "add an authenticator"),
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
def test_errors_of_constructors_are_reported_at_their_key_path(
    site: ModuleType, text: str, path: str, said: str
) -> None:
    errors = errors_of(text)
    assert any(key == path and said in told for key, told in errors), errors
    assert {key for key, _ in errors} == {path}


def test_errors_of_all_parts_are_reported_at_once(site: ModuleType) -> None:
    parsed = read(
        '[gateway]\nworkers = 0\n[store]\nurl = "memory"\n'
        + APP * 2
        + "timeout = '1s'\nmiddleware = [{ use = 'full_site:Stamp' }]\n"
        + "[[routes]]\npath = '/a'\napp = 'full_site:nope'\n"
        + APP,
        environ={},
    )
    with pytest.raises(ConfigError) as caught:
        assemble(parsed.config, errors=parsed.errors)
    assert [path for path, _ in caught.value.errors] == [
        "gateway.workers",
        "routes[1].timeout",
        "store.url",
        "routes[1].middleware[0]",
        "routes[2].app",
        "routes[3]",
    ]


def test_the_file_to_load_defaults_to_an_environment_variable(
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


def test_the_admin_endpoints_are_below_the_prefix_of_the_file(gateway: Gateway) -> None:
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


def test_there_are_no_admin_endpoints_without_an_admin_table(site: ModuleType) -> None:
    gateway = built(APP)
    assert Client(gateway).get("/_gateway/info").status_code == 404
    assert [route.path for route in gateway.routes] == ["/echo"]


def test_a_problem_is_json(site: ModuleType) -> None:
    response = Client(built(APP)).get("/nowhere")
    assert response.mimetype == "application/problem+json"
    assert json.loads(response.data)["status"] == 404


def test_only_the_hosts_of_the_file_are_served(site: ModuleType) -> None:
    client = Client(built('[gateway]\nallowed_hosts = ["A.test", "*.b.test"]\n' + APP))
    assert client.get("/echo", headers={"Host": "a.test:3000"}).status_code == 200
    assert client.get("/echo", headers={"Host": "c.b.test"}).status_code == 200
    assert client.get("/echo").status_code == 421
