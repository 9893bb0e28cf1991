"""The metadata of protected resources: alone around an app, and derived from a gateway's file."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug import Response
from werkzeug.test import Client

from tests.config.files import built
from wsgigate import Authenticator, ProtectedResource, ResourceMetadata
from wsgigate.auth.dpop import DEFAULT_ALGORITHMS
from wsgigate.testing import check_middleware

SECRET = "0123456789abcdef0123456789abcdef"
WELL_KNOWN = "/.well-known/oauth-protected-resource"

ORDERS = ProtectedResource(
    "https://api.example.com/orders",
    authorization_servers=("https://id.example.com/realms/shop",),
    scopes=frozenset({"orders:write", "orders:read"}),
    name="Orders",
    documentation="https://example.com/docs",
)


def test_it_is_a_middleware() -> None:
    check_middleware(lambda app: ResourceMetadata(app, resources=[ORDERS]))


def test_the_document_has_what_is_known() -> None:
    assert ORDERS.document() == {
        "resource": "https://api.example.com/orders",
        "resource_name": "Orders",
        "authorization_servers": ["https://id.example.com/realms/shop"],
        "scopes_supported": ["orders:read", "orders:write"],
        "bearer_methods_supported": ["header"],
        "resource_documentation": "https://example.com/docs",
    }
    bare = ProtectedResource("https://api.example.com/")
    assert bare.document() == {
        "resource": "https://api.example.com",
        "bearer_methods_supported": ["header"],
    }
    assert bare.metadata_url == f"https://api.example.com{WELL_KNOWN}"
    assert ORDERS.metadata_url == f"https://api.example.com{WELL_KNOWN}/orders"


def test_the_document_says_how_tokens_are_bound_to_their_client() -> None:
    bound = ProtectedResource(
        "https://api.example.com",
        dpop_algorithms=("ES256", "EdDSA"),
        dpop_required=True,
        certificate_bound=True,
    )
    assert bound.document() == {
        "resource": "https://api.example.com",
        "bearer_methods_supported": ["header"],
        "tls_client_certificate_bound_access_tokens": True,
        "dpop_signing_alg_values_supported": ["ES256", "EdDSA"],
        "dpop_bound_access_tokens_required": True,
    }


@pytest.mark.parametrize("algorithm", ["none", "HS256", "", "es256", None])
def test_proofs_are_signed_by_a_key_pair(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"dpop_algorithms: expected .* such as \"ES256\", not "):
        ProtectedResource("https://api.example.com", dpop_algorithms=(algorithm,))
    with pytest.raises(ValueError, match="dpop_required: requires dpop_algorithms"):
        ProtectedResource("https://api.example.com", dpop_required=True)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            None,
            "api.example.com",
            "/orders",
            "http://api.example.com",
            "ftp://api.example.com",
        ),
        *(
            "https://",
            "https://a/?b=c",
            "https://a/#b",
            "https://u:p@a",
            'https://a/"',
            "https://a b",
        ),
        *("https://a/\n", "https://a:99999", "https://\u00e4.example"),
    ],
)
def test_a_url_of_no_resource_is_rejected(url: Any) -> None:
    with pytest.raises(ValueError, match="url: expected an https URL"):
        ProtectedResource(url)
    with pytest.raises(ValueError, match="authorization_servers: expected an https URL"):
        ProtectedResource("https://a", authorization_servers=(url,))


def test_a_client_without_a_token_finds_the_document_by_the_challenge() -> None:
    inner = Authenticator(
        Response("ok"),
        algorithms=["HS256"],
        secret=SECRET,
        resource_metadata=ORDERS.metadata_url,
    )
    client = Client(ResourceMetadata(inner, resources=[ORDERS]))
    challenge = client.get("/orders").headers["WWW-Authenticate"]
    assert challenge == f'Bearer realm="api", resource_metadata="{ORDERS.metadata_url}"'
    found = client.get(f"{WELL_KNOWN}/orders")
    assert (found.status_code, found.json) == (200, ORDERS.document())
    assert found.headers["Access-Control-Allow-Origin"] == "*"
    assert client.head(f"{WELL_KNOWN}/orders").data == b""
    assert client.get(f"{WELL_KNOWN}/orders/").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", WELL_KNOWN, 404),
        ("GET", f"{WELL_KNOWN}/other", 404),
        ("GET", f"{WELL_KNOWN}/orders/7", 404),
        ("GET", f"{WELL_KNOWN}s", 200),
        ("GET", "/.well-known/other", 200),
        ("POST", f"{WELL_KNOWN}/orders", 405),
    ],
)
def test_only_known_documents_are_served(method: str, path: str, status: int) -> None:
    app = ResourceMetadata(Response("app"), resources=[ORDERS])
    assert Client(app).open(path, method=method).status_code == status


def test_two_resources_of_one_path_are_rejected() -> None:
    with pytest.raises(ValueError, match="resources: two of them have the same path"):
        ResourceMetadata(Response(), resources=[ORDERS, ORDERS])


# Derived from the file.

TOKENS = f'use = "authenticator"\nalgorithms = ["HS256"]\nsecret = "{SECRET}"\n'

FILE = f"""
[gateway]
name = "shop"
resource = "https://api.example.com/v1/"
[services.orders]
instances = ["http://127.0.0.1:1"]

[[routes]]
path = "/orders/{{id}}"
service = "orders"
[[routes.middleware]]
{TOKENS}issuer = "https://id.example.com"
scopes = ["orders:read"]
[[routes.middleware]]
use = "authorizer"
scopes = ["openid"]
rules = [{{ methods = ["POST"], scopes = ["orders:write"] }}]

[[routes]]
path = "/reports"
service = "orders"
[[routes.middleware]]
{TOKENS}issuer = "not a URL"

[[routes]]
path = "/public"
service = "orders"
"""

BASE = f"https://api.example.com{WELL_KNOWN}/v1"


def test_the_resources_of_a_gateway_are_those_of_its_routes() -> None:
    client = Client(built(FILE))
    challenge = client.get("/orders/7").headers["WWW-Authenticate"]
    assert challenge == f'Bearer realm="api", resource_metadata="{BASE}/orders"'
    assert client.get(f"{WELL_KNOWN}/v1/orders").json == {
        "resource": "https://api.example.com/v1/orders",
        "resource_name": "shop",
        "authorization_servers": ["https://id.example.com"],
        "scopes_supported": ["openid", "orders:read", "orders:write"],
        "bearer_methods_supported": ["header"],
    }
    reports: Any = client.get(f"{WELL_KNOWN}/v1/reports").json
    assert "authorization_servers" not in reports
    assert client.get(f"{WELL_KNOWN}/v1/public").status_code == 404
    whole = client.get(f"{WELL_KNOWN}/v1").json
    assert whole["authorization_servers"] == ["https://id.example.com"]


def test_the_metadata_is_served_without_the_authentication_of_the_whole_gateway() -> None:
    everywhere = f'[[middleware]]\n{TOKENS}issuer = "https://sso.example.com"\n'
    client = Client(built(FILE + everywhere))
    assert client.get("/public").status_code == 401
    assert BASE in client.get("/public").headers["WWW-Authenticate"]
    whole = client.get(f"{WELL_KNOWN}/v1")
    assert whole.json["authorization_servers"] == ["https://sso.example.com"]
    assert "X-Request-ID" in whole.headers
    route = client.get(f"{WELL_KNOWN}/v1/orders").json
    assert route["authorization_servers"] == ["https://sso.example.com", "https://id.example.com"]


def test_each_of_several_issuers_is_an_authorization_server() -> None:
    issuers = ", ".join(
        f'{{ issuer = "https://{name}.example.com", algorithms = ["HS256"], secret = "{SECRET}" }}'
        for name in ("a", "b")
    )
    text = FILE.partition("[[routes]]")[0] + (
        f"[[routes]]\npath = '/orders'\nservice = 'orders'\n"
        f"middleware = [{{ use = 'authenticator', issuers = [{issuers}] }}]\n"
    )
    found: Any = Client(built(text)).get(f"{WELL_KNOWN}/v1/orders").json
    assert found["authorization_servers"] == ["https://a.example.com", "https://b.example.com"]


BOUND = [
    ("", None, None, None),
    ('dpop = "optional"', [*DEFAULT_ALGORITHMS], None, None),
    ('dpop = "required"', [*DEFAULT_ALGORITHMS], True, None),
    ('dpop = "required"\ndpop_algorithms = ["ES256"]', ["ES256"], True, None),
    ('certificate_bound = "optional"', None, None, True),
]


@pytest.mark.parametrize(("options", "algorithms", "required", "certificate"), BOUND)
def test_the_resources_name_the_bound_tokens_that_their_authenticators_accept(
    options: str, algorithms: list[str] | None, required: bool | None, certificate: bool | None
) -> None:
    text = FILE.replace('issuer = "not a URL"', f'issuer = "not a URL"\n{options}')
    client = Client(built(text))
    reports: Any = client.get(f"{WELL_KNOWN}/v1/reports").json
    assert reports.get("dpop_signing_alg_values_supported") == algorithms
    assert reports.get("dpop_bound_access_tokens_required") == required
    assert reports.get("tls_client_certificate_bound_access_tokens") == certificate
    whole: Any = client.get(f"{WELL_KNOWN}/v1").json  # of which /orders needs no proof
    assert whole.get("dpop_signing_alg_values_supported") == algorithms
    assert "dpop_bound_access_tokens_required" not in whole
    orders: Any = client.get(f"{WELL_KNOWN}/v1/orders").json
    assert not any("bound" in name or "dpop" in name for name in orders)


def test_without_a_resource_nothing_is_served() -> None:
    client = Client(built(FILE.replace('resource = "https://api.example.com/v1/"', "")))
    assert client.get("/reports").headers["WWW-Authenticate"] == 'Bearer realm="api"'
    assert client.get(f"{WELL_KNOWN}/v1").status_code == 404
