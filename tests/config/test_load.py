"""Load whole files: the values of valid ones, and the errors of invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgigate.config.errors import ConfigError
from wsgigate.config.load import MAX_SIZE, load, parse, read
from wsgigate.config.model import Config, GatewayTable
from wsgigate.rules.quota import Quota

ORDERS = '[services.orders]\ninstances = ["http://127.0.0.1:8000"]\n'
ROUTE = '[[routes]]\npath = "/orders"\nservice = "orders"\n'

WRONG = """\
[gateway]
name = 3
bind = "unix:/run/gateway.sock"
worker = 4
trusted_proxies = ["10.0.0.1/8"]

[store]
urls = "lmdb:"

[admin]
token = 33333

[[middleware]]
use = "limitr"

[[middleware]]
use = "limiter"
quota = "100 per fortnight"
key = "path:id"

[[middleware]]
quota = "1/s"

[services.orders]
instances = ["ftp://user:hunter2@orders", "http://orders:99999"]
timeout = "30 parsecs"
discover = "registry"
health = { interval = 30 }

[services.empty]
instances = []

[[routes]]
path = "api"
service = "order"
stripPrefix = true

[[routes]]
service = "orders"
app = "shop.wsgi:app"

[[routes]]
path = "/a"
app = "shop.wsgi:app"
add_prefix = "/b"
middleware = [{ use = "authenticator", algorithms = ["none"], secret = "${NOPE}" }]

[[routes]]
path = "/users/{id}"
service = "empty"
strip_prefix = "/user"
"""

SAID = {
    "gateway.name": "expected a name of one line, got the number 3",
    "gateway.bind": 'add "unix" to gateway.trusted_proxies',
    "gateway.worker": 'is not a known key; did you mean "workers"?',
    "gateway.trusted_proxies[0]": "the network is '10.0.0.0/8'",
    "store.urls": 'did you mean "url"?',
    "admin.token": "expected text (a secret), got something else",
    "middleware[0].use": '"limitr" is not a middleware; did you mean "limiter"?',
    "middleware[1].quota": "counts in 'fortnight'",
    "middleware[1].key": '"path:id" is available to the middlewares of a route only',
    "middleware[2].use": "is required: the middleware's name",
    "services.orders.instances[0]": "an instance's URL must not carry credentials",
    "services.orders.instances[1]": "has no valid port",
    "services.orders.timeout": 'expected a duration such as "30s", got "30 parsecs"',
    "services.orders": "instances and discover are mutually exclusive; give one of them",
    "services.orders.health.path": "is required: the path to probe",
    "services.empty.instances": "expected a list with at least one item, got an empty list",
    "routes[0].path": "a route's path starts with /",
    "routes[0].service": 'there is no service "order"; did you mean "orders"?',
    "routes[0].stripPrefix": 'did you mean "strip_prefix"?',
    "routes[1]": "requires path or paths",
    "routes[2].add_prefix": "applies to routes with a service only, not with an app",
    "routes[2].middleware[0].algorithms[0]": 'got "none"',
    "routes[2].middleware[0].secret": "the environment variable NOPE is not set",
    "routes[3].strip_prefix": 'the path "/users/{id}" does not begin with "/user"',
}


def wrong(text: str, path: str = "gateway.toml", **environ: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, path, environ=environ)
    return caught.value.errors


def test_all_errors_of_a_file_are_reported_at_once_with_their_key_paths() -> None:
    errors = wrong(WRONG)
    told = dict(reversed(errors))
    for path, said in SAID.items():
        assert said in told[path], path
    assert ("routes[1]", "service and app are mutually exclusive; give one of them") in errors
    assert told.keys() == SAID.keys()


def test_the_text_of_an_error_has_one_line_per_error_that_begins_with_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(WRONG, "shop/gateway.toml", environ={})
    lines = str(caught.value).splitlines()
    assert len(lines) == len(SAID) + 1
    assert all(line.startswith("shop/gateway.toml: ") for line in lines)
    assert "hunter2" not in str(caught.value)
    assert "33333" not in str(caught.value)


def test_an_empty_file_is_a_gateway_with_all_defaults() -> None:
    assert parse("") == Config()
    assert parse("").gateway == GatewayTable(bind="127.0.0.1:3000", name="wsgigate")
    assert parse("").admin is None


def test_a_full_file_is_read_key_by_key(full: Path) -> None:
    config = load(str(full))
    assert config.gateway.trusted_proxies == ("10.0.0.0/8", "unix")
    assert config.gateway.identity == {"X-User-Id": "sub"}
    limiter = config.middleware[2].options
    assert limiter is not None
    assert limiter["quota"] == Quota(1000, 3600)
    assert config.middleware[5].options == {"text": "outside"}
    orders = config.services["orders"]
    assert orders.timeout == 5.0
    assert orders.health is not None
    assert orders.health["interval"] == 30.0
    assert config.routes[0].strip_prefix == "/api"
    assert config.routes[1].paths == ("/echo", "/say")


def test_secrets_are_in_no_representation_of_a_config(full: Path) -> None:
    shown = repr(load(str(full)))
    assert "thirty-two" not in shown
    assert "of-32-or-more" not in shown


def test_secrets_of_a_service_are_in_no_representation_of_a_config() -> None:
    service = """
        [services.a]
        instances = ["http://a"]
        sticky = { secret = "hunter2-hunter2-hunter2" }
        health = { path = "/", fields = { Authorization = "hunter2" } }
        """
    assert "hunter2" not in repr(parse(service))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway\n", "line 1, column 9"),
        ('a = 1\nb = "x\n', "line 2, column 7"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ("[x]\n[x]\n", "line 2, column 3"),
    ],
)
def test_an_error_of_toml_syntax_has_line_and_column(text: str, said: str) -> None:
    ((path, told),) = wrong(text)
    assert path == ""
    assert said in told


def test_a_file_that_is_not_utf_8_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigError, match="is not UTF-8 text: line 2"):
        load(str(file))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_bytes(b'\xef\xbb\xbf[gateway]\nname = "shop"\n')
    assert load(str(file)).gateway.name == "shop"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("#" * (MAX_SIZE + 1))
    with pytest.raises(ConfigError, match="is larger than 1024 KiB"):
        load(str(file))


@pytest.mark.parametrize("name", ["missing.toml", ""])
def test_an_unreadable_file_is_one_error(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_a_file_that_is_nested_too_deeply_is_rejected() -> None:
    assert wrong("a = " + "[" * 5000 + "]" * 5000) == [("", "is nested too deeply")]


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        (ORDERS, "services.orders", "no route leads to it"),
        ("", "routes", "every request gets a 404"),
        (
            ORDERS + "tls = { verify = false }\n" + ROUTE,
            "services.orders.tls",
            "none of its instances is https://",
        ),
        (
            ORDERS.replace("http:", "https:") + "tls = { verify = false }\n" + ROUTE,
            "services.orders.tls.verify",
            "certificates are not verified, so any server can impersonate this service",
        ),
        (
            ORDERS.replace('["', '["http://other", "', 1) + "breaker = {}\n" + ROUTE,
            "services.orders.breaker",
            "add outlier = {}",
        ),
        (
            ORDERS.replace("instances", "discover = 'file:a.json' #", 1) + "breaker = {}\n" + ROUTE,
            "services.orders.breaker",
            "add outlier = {}",
        ),
        (
            '[gateway]\nidentity = { X-User = "sub" }\n' + ORDERS + ROUTE,
            "gateway.identity",
            "never sent",
        ),
    ],
)
def test_a_probable_mistake_is_a_warning(text: str, path: str, said: str) -> None:
    parsed = read(text, environ={})
    assert not parsed.errors
    found = dict(parsed.warnings)
    assert said in found[path]


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("routes = 3", "routes", "expected a list, got the number 3"),
        ("routes = [3]", "routes[0]", "expected a table, got the number 3"),
        ("routes = [{}]", "routes[0]", "requires service, services or app"),
        ("middleware = ['logger']", "middleware[0]", 'a table such as { use = "logger" }'),
        ("[[middleware]]\nuse = 3", "middleware[0].use", "expected a middleware's name"),
        ("[[middleware]]\nuse = 'a b:c'", "middleware[0].use", "expected a factory such as"),
        ("[service.orders]", "service", 'did you mean "services"?'),
        ("[services.'a b']\ninstances = ['http://a']", 'services."a b"', "is not a service's name"),
        ("[services.a]\ndiscover = 'etcd:a'", "services.a.discover", 'must be one of "registry"'),
        ("[gateway]\nworkers = 1979-05-27", "gateway.workers", "got a date or time"),
        (
            "[[middleware]]\nuse = 'limiter'\nquota = '1/s'\nkey = 'subject'",
            "middleware[0].key",
            "requires a verified token; add an authenticator before this limiter",
        ),
        (
            "[services.a]\ninstances = ['https://a']\ntls = { verify = false, ca = 'x' }",
            "services.a.tls",
            "verify = false ignores ca",
        ),
        (
            "[[routes]]\npath = '/a'\npaths = ['/b']\napp = 'a:b'",
            "routes[0]",
            "path and paths are mutually exclusive",
        ),
    ],
)
def test_an_error_is_reported_at_its_key_path(text: str, path: str, said: str) -> None:
    assert said in dict(wrong(text))[path]


OPTIONAL = (
    "[[middleware]]\nuse = 'authenticator'\nalgorithms = ['HS256']\n"
    "secret = '0123456789abcdef0123456789abcdef'\nrequired = false\n"
)


@pytest.mark.parametrize("key", ["subject", "client", "issuer", "plan", "claim:org.id"])
def test_a_limit_that_anonymous_requests_evade_is_a_warning(key: str) -> None:
    limiter = f"[[middleware]]\nuse = 'limiter'\nquota = '1/s'\nkey = '{key}'\n"
    said = dict(read(OPTIONAL + limiter, environ={}).warnings)["middleware[1].key"]
    assert f'such as "{key}|address"' in said
    for allowed in (
        OPTIONAL.replace("required = false\n", "") + limiter,
        OPTIONAL + limiter.replace(key, f"{key}|address"),
        OPTIONAL + limiter.replace(key, f"{key}|exempt"),
    ):
        assert "middleware[1].key" not in dict(read(allowed, environ={}).warnings)


def test_a_limiter_may_count_subjects_behind_a_custom_middleware() -> None:
    limiter = '[[middleware]]\nuse = "limiter"\nquota = "1/s"\nkey = "subject"\n'
    parse('[[middleware]]\nuse = "somebody.elses:Tokens"\n' + limiter)


def test_numbers_booleans_and_lists_may_come_from_the_environment() -> None:
    text = (
        '[gateway]\nworkers = "${W}"\nlist_routes = "${L}"\ntrusted_proxies = "${P:-}"\n'
        '[services.orders]\ninstances = "${ORDERS}"\ntimeout = "${T:-5s}"\n'
    )
    config = parse(text, environ={"W": "3", "L": "false", "ORDERS": "http://a:1,http://b:2"})
    assert config.gateway.workers == 3
    assert config.gateway.list_routes is False
    assert config.gateway.trusted_proxies == ()
    assert config.services["orders"].instances == ("http://a:1", "http://b:2")
    assert config.services["orders"].timeout == 5.0


def test_an_invalid_item_does_not_shift_the_positions_of_the_others() -> None:
    text = 'middleware = [{ use = "nothing" }, { use = "limiter", quota = "1/s", key = "route" }]'
    assert [path for path, _ in wrong(text)] == ["middleware[0].use", "middleware[1].key"]
