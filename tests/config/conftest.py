"""A file with every key, and the apps and middlewares that it names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wsgigate
from tests.config.files import close_all
from tests.support.ports import refused_port
from wsgigate.testing.backend import Backend, reply

SECRET = "a-secret-of-at-least-thirty-two-bytes"

FULL = """\
[gateway]
name = "shop"
version = "1.2.3"
bind = "[::1]:3000"
workers = 2
threads = 8
tls = { cert = "gateway.pem", key = "gateway.key" }
http2 = true
keep_alive = "60s"
trusted_proxies = ["10.0.0.0/8", "unix"]
forwarded = "forwarded"
request_id = true
identity = { X-User-Id = "sub" }
via = "shop-1"
allowed_hosts = ["localhost", "*.example.com"]
encoded_slash = "reject"
list_routes = true
fallback = "full_site:fallback"

[store]
url = "memory:"

[admin]
prefix = "/_gateway"
token = "a-token-of-32-or-more-characters"
routes = { "GET /health" = "Health" }
features = ["Rate limiting"]

[[middleware]]
use = "request-id"
header = "X-Request-ID"
accept = "trusted"

[[middleware]]
use = "logger"
format = "json"
stream = "stderr"
queue_size = 100

[[middleware]]
use = "limiter"
quota = "1000 per hour"
algorithm = "fixed-window"
key = "address"
cost = 2
plans = { free = "100 per hour", pro = ["50/s", "10_000 per calendar month"] }
plan = "header:X-Plan"
observe = false
name = "everybody"
fields = ["ratelimit"]
on_store_error = "refuse"

[middleware.exempt]
addresses = ["10.9.0.0/16"]
paths = ["/health", "/static/*"]
methods = ["TRACE"]
rule = "full_site:exempted"

[[middleware]]
use = "concurrency-limiter"
limit = 10
key = "address"
exempt = { paths = ["/health"] }
lease = "15s"
observe = false
name = "at-once"
fields = ["ratelimit"]
on_store_error = "allow"

[[middleware]]
use = "body-limit"
limit = "1MiB"

[[middleware]]
use = "full_site:Stamp"
text = "outside"

[services.orders]
instances = ["http://127.0.0.1:9", { url = "http://127.0.0.2:9", weight = 2 }]
routes = ["/orders"]
health = { path = "/health", interval = "30s", timeout = "5s", unhealthy_after = 5 }
timeout = "5s"
connect_timeout = "1s"
read_timeout = "2s"
tls = { verify = true }
preserve_host = false
balance = { use = "consistent-hash", key = "header:X-Tenant", slow_start = "9s" }
retry = { attempts = 3, backoff = "1s", methods = ["GET"], buffer = "1KiB", budget = 0.1 }
outlier = { consecutive_failures = 0, eject_for = "9s", success_rate = true, deviations = 2.5 }
breaker = { consecutive_failures = 0, connect_failures = 9, statuses = [500], open_for = "9s" }

[[routes]]
path = "/api/orders/{id}"
host = "*.example.com"
methods = ["GET", "POST"]
exact = false
priority = 1
name = "orders"
summary = "The orders."
listed = ["GET /api/orders"]
service = "orders"
strip_prefix = "/api"
add_prefix = "/v1"
encoded_slash = "keep"
request_fields = { set = { X-From = "gateway" }, add = { X-More = "1" }, remove = ["X-Less"] }
response_fields = { remove = ["X-Powered-By"] }
preserve_host = true
rewrite_location = false
forward_authorization = true

[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = ["${SHOP_SECRET}", "another-secret-of-thirty-two-bytes"]
issuer = "https://id.example.com"
audience = ["shop"]
required = true
scopes = ["orders"]
invalid_token_status = 403
leeway = "0s"
max_lifetime = "1d"
typ = "at+jwt"
realm = "shop"
cache_size = 10
deny_list = true
on_store_error = "refuse"

[[routes.middleware]]
use = "limiter"
quota = "2/m"
key = ["subject", "path:id"]

[[routes]]
paths = ["/echo", "/say"]
app = "full_site:echo"
methods = ["GET", "PUT"]

[[routes.middleware]]
use = "cors"
origins = ["https://shop.example"]
methods = ["GET", "PUT"]
headers = ["X-Thing"]
expose = ["X-Other"]
credentials = true
max_age = "10m"

[[routes.middleware]]
use = "limiter"
quota = "3 per minute"

[[routes.middleware]]
use = "full_site:Stamp"
text = "inside"

[[routes]]
path = "/private"
exact = true
app = "full_site:echo"
middleware = [{ use = "authenticator", algorithms = ["HS256"], secret = "${SHOP_SECRET}" }]

[[routes]]
path = "/broken"
app = "full_site:broken"
"""


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Respond with the method and path of the request, and the subject of its token."""
    claims = environ.get("wsgigate.claims") or {}
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-User", claims.get("sub", "-"))])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode()]


def fallback(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Respond to requests that no route matches."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the old site"]


def broken(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Fail."""
    raise RuntimeError("hush")


class Stamp:
    """A custom middleware that adds a field to each response."""

    def __init__(self, app: Any, *, text: str) -> None:
        if not text:
            raise RuntimeError("no text")
        self.app = app
        self.text = text
        self.closed = False

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            fields = [*headers, ("X-Stamp", self.text)]
            return start_response(status, fields, exc_info)

        result: Iterable[bytes] = self.app(environ, start)
        return result

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def gateways_are_closed() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def site() -> Iterator[ModuleType]:
    """Yield the module that files name ``full_site``."""
    module: Any = ModuleType("full_site")
    vars(module).update(echo=echo, fallback=fallback, broken=broken, Stamp=Stamp, number=3)
    module.nothing = lambda app: None
    module.exempted = lambda environ: "HTTP_X_FREE" in environ
    module.cost = lambda environ: int(environ.get("HTTP_X_COST", 1))
    module.plan = lambda environ: environ.get("HTTP_X_PLAN")
    module.caller = lambda environ: environ["PATH_INFO"]
    sys.modules["full_site"] = module
    yield module
    del sys.modules["full_site"]


@pytest.fixture
def full(site: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of a file with every key in it."""
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    file = tmp_path / "gateway.toml"
    file.write_text(FULL)
    return file


@pytest.fixture
def gateway(full: Path) -> Any:
    made = wsgigate.load(str(full))
    yield made
    made.close()


@pytest.fixture
def first() -> Iterator[Backend]:
    with Backend(reply(b"first")) as backend:
        yield backend


@pytest.fixture
def second() -> Iterator[Backend]:
    with Backend(reply(b"second")) as backend:
        yield backend


@pytest.fixture
def nobody() -> Iterator[str]:
    """Yield the URL of a port that accepts no connections."""
    with refused_port() as port:
        yield f"http://127.0.0.1:{port}"
