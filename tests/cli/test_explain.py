"""The commands routes and explain."""

from __future__ import annotations

import pytest

from tests.cli.files import BROKEN, SHOP, Cli


def test_routes_prints_a_table_of_all_routes(cli: Cli) -> None:
    code, out, err = cli("routes", cli.file(SHOP))
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["METHODS", "HOST", "PATH", "MIDDLEWARES", "TO"]
    assert ["GET", "any", "/_gateway/health", "-", "the", "gateway", "itself"] in rows
    assert [
        *("GET,PUT", "any", "/api/users/{id}/...", "authenticator", "users", "->"),
        *("http://127.0.0.1:3001,", "http://127.0.0.1:3002", "(/api", "becomes", "/v1)"),
    ] in rows
    app = "wsgiref.simple_server:demo_app"
    assert ["any", "old.example.com", "/old", "-", app] in rows
    assert ["any", "any", "all", "else", "-", app] in rows
    assert out.endswith("\nbefore all of them: limiter\n")


@pytest.mark.parametrize(
    ("method", "url", "code", "lines"),
    [
        (
            "get",
            "http://shop.example:3000//api/%75sers/a%20b?x=%31",
            0,
            [
                "target       GET /api/users/a%20b?x=%31",
                "host         shop.example",
                "route        /api/users/{id}   (routes[0])",
                "parameter    id = a b",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes), "
                "authenticator",
                "requires     scopes users",
                "service      users",
                "upstream     GET http://127.0.0.1:3001/v1/users/a%20b?x=%31",
                "upstream     GET http://127.0.0.1:3002/v1/users/a%20b?x=%31",
            ],
        ),
        (
            "DELETE",
            "/api/users/7",
            0,
            [
                "target       DELETE /api/users/7",
                "host         localhost",
                "route        none matches",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app (the fallback)",
            ],
        ),
        ("GET", "/a/../b", 1, ["refused      400: a dot segment in the path"]),
        ("GET", "/api%2Fusers/7", 1, ["refused      400: an encoded slash in the path"]),
        ("TRACE", "/", 1, ["refused      405: TRACE is never forwarded"]),
        (
            "GET",
            "http://old.example.com/old",
            0,
            [
                "target       GET /old",
                "host         old.example.com",
                "route        /old   (routes[1])",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app",
            ],
        ),
        (
            "GET",
            "/elsewhere",
            0,
            [
                "target       GET /elsewhere",
                "host         localhost",
                "route        none matches",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app (the fallback)",
            ],
        ),
        (
            "GET",
            "/_gateway/discover/users",
            0,
            [
                "target       GET /_gateway/discover/users",
                "host         localhost",
                "route        /_gateway/discover/{name}",
                "parameter    name = users",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          the gateway itself",
            ],
        ),
    ],
)
def test_explain_prints_how_a_request_is_handled(
    cli: Cli, method: str, url: str, code: int, lines: list[str]
) -> None:
    found, out, err = cli("explain", cli.file(SHOP), method, url)
    assert (found, err) == (code, "")
    assert out.splitlines() == lines


def test_explain_reports_that_no_route_matches(cli: Cli) -> None:
    text = SHOP.replace('fallback = "wsgiref.simple_server:demo_app"', "")
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 1
    assert out.endswith("refused      404: no route matches\n")


def test_a_discovered_service_is_listed_with_its_source(cli: Cli) -> None:
    file = cli.file(
        '[services.users]\ndiscover = "file:users.json"\n'
        '[[routes]]\npath = "/api"\nservice = "users"\nstrip_prefix = true\n'
    )
    assert "users -> file:users.json (/api becomes /)" in cli("routes", file)[1]
    lines = cli("explain", file, "GET", "/api/7")[1].splitlines()
    assert lines[-3:] == [
        "service      users",
        "found by     file:users.json",
        "upstream     GET http://instance/7",
    ]


def test_explain_prints_all_limits(cli: Cli) -> None:
    limits = (
        'quota = ["9/s", "90/h"]\nplans = { big = ["99/s", "1 per calendar day"] }\n'
        'plan = "header:X-Plan"\nobserve = true\n'
        '[[middleware]]\nuse = "concurrency-limiter"\nlimit = 7'
    )
    text = SHOP.replace('quota = "100 per 15 minutes"', limits)
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 0
    assert (
        "limiter (9 per second, 90 per hour; big: 99 per second, 1 per calendar day; "
        "only observed), concurrency-limiter (7 at a time)"
    ) in out


AUTHORIZER = """
[services.orders]
instances = ["http://127.0.0.1:3001"]

[[routes]]
path = "/orders"
service = "orders"

[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "a secret that is long enough for HS256"
scopes = ["api"]

[[routes.middleware]]
use = "authorizer"
roles = ["clerk", "manager"]
rules = [
  { name = "read", methods = ["GET"], scopes = ["orders:read"] },
  { paths = ["/orders/refunds/*"], methods = ["GET", "POST"], claims = { "org.id" = 7 } },
]
"""


@pytest.mark.parametrize(
    ("method", "url", "code", "required"),
    [
        ("HEAD", "/orders/7", 0, ["scopes orders:read   (rule read)"]),
        (
            "GET",
            "/orders/refunds/7",
            0,
            ["scopes orders:read   (rule read)", "claims org.id   (a rule)"],
        ),
        ("POST", "/orders/refunds", 0, ["claims org.id   (a rule)"]),
        ("PUT", "/orders/7", 1, []),
    ],
)
def test_explain_prints_what_the_caller_needs(
    cli: Cli, method: str, url: str, code: int, required: list[str]
) -> None:
    found, out, _ = cli("explain", cli.file(AUTHORIZER), method, url)
    assert found == code
    lines = [line[13:] for line in out.splitlines() if line.startswith("requires")]
    assert lines == ["scopes api", "one of the roles clerk, manager", *required]
    assert ("403: no rule of the authorizer allows PUT here" in out) == bool(code)


def test_explain_prints_the_scopes_of_opaque_tokens(cli: Cli) -> None:
    text = """
[[routes]]
path = "/"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
use = "introspection"
endpoint = "https://id.example.com/introspect"
bearer_token = "token"
scopes = ["orders:read"]
"""
    _, out, _ = cli("explain", cli.file(text), "GET", "/")
    assert "requires     scopes orders:read" in out


_KEY = '{ use = "api-key", scopes = ["read", "list"] }'
_TOKEN = '{ use = "introspection", endpoint = "https://id.example.com/", bearer_token = "token" }'
_USER = '{ use = "basic", users_file = "users" }'


@pytest.mark.parametrize(
    ("use", "of", "more", "printed"),
    [
        ("any-of", [_KEY, _TOKEN], "", ["api-key (scopes read, list) or introspection"]),
        ("any-of", [_TOKEN], "anonymous = true", ["introspection or no credential"]),
        (
            "any-of",
            [_TOKEN, f'{{ use = "all-of", of = [{_KEY}, {_USER}] }}'],
            "",
            ["introspection or (api-key (scopes read, list) and basic)"],
        ),
        (
            "all-of",
            [_KEY, f'{{ use = "any-of", of = [{_TOKEN}, {_USER}] }}'],
            "",
            ["api-key (scopes read, list) and (introspection or basic)"],
        ),
    ],
)
def test_explain_prints_what_combined_authenticators_require(
    cli: Cli, use: str, of: list[str], more: str, printed: list[str]
) -> None:
    text = f"""
[[routes]]
path = "/"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
use = "{use}"
of = [{", ".join(of)}]
{more}
"""
    code, out, _ = cli("explain", cli.file(text), "GET", "/")
    assert code == 0
    lines = [line[13:] for line in out.splitlines() if line.startswith("requires")]
    assert lines == printed
    assert "token" not in out.replace("introspection", "")


def test_explain_reports_hosts_that_are_not_served(cli: Cli) -> None:
    text = SHOP.replace("[gateway]", '[gateway]\nallowed_hosts = ["a.test"]', 1)
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 1
    assert out.endswith("refused      421: the host is not in gateway.allowed_hosts\n")


def test_explain_requires_a_valid_file(cli: Cli) -> None:
    code, _, err = cli("explain", cli.file(BROKEN), "GET", "/")
    assert code == 2
    assert "services.users.timeout" in err
