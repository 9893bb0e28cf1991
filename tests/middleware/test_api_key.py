"""API keys in requests: where they may be, what is refused and how, and what the backend sees."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate import AnyOf, ApiKeyAuthenticator, ApiKeys, Authenticator, Logger
from wsgigate.auth.api_keys import new_key
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.jwt import mint
from wsgigate.http.target import target_of
from wsgigate.middleware.api_key import without_parameter
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

SECRET = "a secret of the tests, thirty-two bytes or more"
UNKNOWN = new_key("wg")


class Backend:
    """An app that keeps the environ of the last request that reached it."""

    seen: dict[str, Any] | None = None

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen = environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]


def texts(environ: dict[str, Any] | None) -> str:
    """Return all texts of *environ*; the test client keeps its own request in it."""
    assert environ is not None
    return str([value for value in environ.values() if isinstance(value, (str, tuple))])


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys(MemoryStore())


@pytest.fixture
def key(keys: ApiKeys) -> str:
    return keys.create("acme", plan="gold", scopes=["orders:read"]).key


@pytest.fixture
def client(backend: Backend, keys: ApiKeys) -> Callable[..., Client]:
    return lambda **options: Client(ApiKeyAuthenticator(backend, keys, **options))


def test_the_caller_is_the_owner_of_the_key(
    client: Callable[..., Client], backend: Backend, key: str
) -> None:
    assert client().get("/", headers={"X-API-Key": key}).status_code == 200
    assert backend.seen is not None
    identity = backend.seen[IDENTITY]
    assert (identity.subject, identity.scheme) == ("acme", "api-key")
    assert (identity.claims["plan"], identity.claims["key_id"]) == ("gold", identity.client)
    assert identity.scopes == {"orders:read"}


def rejected(client: Client, **request: Any) -> tuple[Any, ...]:
    answer = client.get("/", **request)
    return answer.status_code, answer.data, answer.headers["WWW-Authenticate"]


def test_every_invalid_key_gets_the_same_response(
    client: Callable[..., Client], backend: Backend, keys: ApiKeys
) -> None:
    now = FakeClock()
    timed = ApiKeys(MemoryStore(), now=now)
    expired, _ = timed.create("acme", lasts=5)
    revoked, record = timed.create("acme")
    replaced, rotated = timed.create("acme")
    timed.revoke(record.id)
    timed.rotate(rotated.id, overlap=0)
    now.advance(5)
    guarded = Client(ApiKeyAuthenticator(backend, timed))
    wrong = [expired, revoked, replaced, UNKNOWN, "junk", f"{revoked},{revoked}", "x" * 9000]
    answers = {rejected(guarded, headers={"X-API-Key": each}) for each in wrong}
    [(status, body, challenge)] = answers
    assert (status, challenge) == (401, 'ApiKey realm="api", error="invalid_token"')
    assert b"Invalid API key!" in body
    assert backend.seen is None


def test_a_request_without_a_key_is_rejected(client: Callable[..., Client]) -> None:
    for headers in ({}, {"X-API-Key": ""}):
        status, body, challenge = rejected(client(realm="shop"), headers=headers)
        assert (status, challenge) == (401, 'ApiKey realm="shop"')
        assert b"API key required!" in body


def test_the_backend_does_not_see_the_key(
    client: Callable[..., Client], backend: Backend, key: str
) -> None:
    client(authorization="ApiKey", query="api_key").get("/", headers={"X-API-Key": key})
    assert key not in texts(backend.seen)
    client(hide_credentials=False).get("/", headers={"X-API-Key": key})
    assert backend.seen is not None
    assert backend.seen["HTTP_X_API_KEY"] == key


@pytest.mark.parametrize(
    ("options", "fields", "passes"),
    [
        ({}, {"X-API-Key": "KEY"}, True),
        ({}, {"Authorization": "ApiKey KEY"}, False),
        ({}, {"Authorization": "Bearer KEY"}, False),
        ({}, {"Api-Key": "KEY"}, False),
        ({"header": "Api-Key"}, {"Api-Key": "KEY"}, True),
        ({"header": "Api-Key"}, {"X-API-Key": "KEY"}, False),
        ({"authorization": "ApiKey"}, {"Authorization": "ApiKey KEY"}, True),
        ({"authorization": "ApiKey"}, {"Authorization": "apikey KEY"}, True),
        ({"authorization": "ApiKey"}, {"Authorization": "Bearer KEY"}, False),
        ({"authorization": "ApiKey"}, {"X-API-Key": "KEY"}, True),
        ({"authorization": "Bearer"}, {"Authorization": "Bearer KEY"}, True),
        ({"authorization": "Bearer"}, {"Authorization": "ApiKey KEY"}, False),
        ({"authorization": "Bearer"}, {"Authorization": "Bearer KEY,Bearer KEY"}, False),
        ({"authorization": "ApiKey"}, {"Authorization": "ApiKey KEY", "X-API-Key": "KEY"}, False),
        ({}, {"X-API-Key": "KEY,KEY"}, False),
        ({}, {"X-API-Key": "KEY, KEY"}, False),
        ({}, {"X-API-Key": " KEY"}, False),
    ],
)
def test_a_key_is_accepted_in_the_given_places_only(
    client: Callable[..., Client],
    key: str,
    options: dict[str, Any],
    fields: dict[str, str],
    passes: bool,
) -> None:
    headers = {name: value.replace("KEY", key) for name, value in fields.items()}
    answer = client(**options).get("/", headers=headers)
    assert answer.status_code == (200 if passes else 401)
    assert "Bearer" in answer.headers.get("WWW-Authenticate", "Bearer") or (
        options.get("authorization") != "Bearer"
    )


# The query.


@pytest.mark.parametrize(
    ("query", "rest", "values"),
    [
        ("", "", []),
        ("a=1&b=%20", "a=1&b=%20", []),
        ("api_key=K", "", ["K"]),
        ("a=1&api_key=K&b=2", "a=1&b=2", ["K"]),
        ("a=%2f&api_key=K", "a=%2f", ["K"]),
        ("api%5Fkey=K%31", "", ["K1"]),
        ("api_key=K&api_key=L", "", ["K", "L"]),
        ("api_key", "", [""]),
        ("api_keys=K&x_api_key=L", "api_keys=K&x_api_key=L", []),
        ("a=api_key=K", "a=api_key=K", []),
        ("&&api_key=K&&", "&&&", ["K"]),
    ],
)
def test_a_parameter_is_removed_and_the_rest_stays_byte_for_byte(
    query: str, rest: str, values: list[str]
) -> None:
    assert without_parameter(query, "api_key") == (rest, values)


def test_a_key_in_the_query_is_refused_by_default(
    client: Callable[..., Client], backend: Backend, key: str
) -> None:
    assert client().get(f"/?api_key={key}").status_code == 401
    assert backend.seen is None


@pytest.mark.parametrize("raw", ["RAW_URI", "REQUEST_URI"])
def test_a_key_in_the_query_is_removed_from_every_form_of_the_url(
    client: Callable[..., Client], backend: Backend, key: str, raw: str
) -> None:
    target = f"/orders?a=1&api%5Fkey={key}&b=%20"
    guarded = client(query="api_key")
    other = {"RAW_URI": "REQUEST_URI", "REQUEST_URI": "RAW_URI"}[raw]
    answer = guarded.get(target, environ_overrides={raw: target, other: ""})
    assert answer.status_code == 200
    assert backend.seen is not None
    assert backend.seen["QUERY_STRING"] == "a=1&b=%20"
    assert backend.seen[raw] == "/orders?a=1&b=%20"
    assert target_of(backend.seen).text == "/orders?a=1&b=%20"
    assert key not in texts(backend.seen)


@pytest.mark.parametrize("target", ["/orders?", "/orders?a=1&&b", "/orders"])
def test_a_url_without_a_key_stays_as_it_is(
    client: Callable[..., Client], backend: Backend, key: str, target: str
) -> None:
    raw = {"RAW_URI": target}
    client(query="api_key").get(target, headers={"X-API-Key": key}, environ_overrides=raw)
    assert backend.seen is not None
    assert backend.seen["RAW_URI"] == target


def test_two_keys_in_the_query_are_refused(client: Callable[..., Client], key: str) -> None:
    answer = client(query="api_key").get(f"/?api_key={key}&api_key={key}")
    assert answer.status_code == 401


def test_the_url_is_cleaned_for_exempt_requests_and_rejected_ones(
    client: Callable[..., Client], backend: Backend, key: str
) -> None:
    guarded = client(query="api_key", exempt={"paths": ["/health"]})
    assert guarded.get(f"/health?api_key={key}").status_code == 200
    assert key not in texts(backend.seen)


# Optional, exempt, preflights.


def test_a_request_without_a_key_passes_if_it_is_optional_and_a_wrong_key_never(
    client: Callable[..., Client], backend: Backend
) -> None:
    optional = client(required=False)
    assert optional.get("/").status_code == 200
    assert backend.seen is not None
    assert IDENTITY not in backend.seen
    assert optional.get("/", headers={"X-API-Key": UNKNOWN}).status_code == 401


def test_exempt_requests_and_preflights_pass_without_an_identity(
    client: Callable[..., Client], backend: Backend, key: str
) -> None:
    guarded = client(exempt={"paths": ["/health"]})
    assert guarded.get("/health", headers={"X-API-Key": key}).status_code == 200
    assert backend.seen is not None
    assert IDENTITY not in backend.seen
    assert "HTTP_X_API_KEY" not in backend.seen
    preflight = {"Origin": "https://a.test", "Access-Control-Request-Method": "GET"}
    assert guarded.options("/", headers=preflight).status_code == 200
    assert guarded.options("/").status_code == 401
    assert client(preflights=True).options("/", headers=preflight).status_code == 401


@pytest.mark.parametrize("put", [{"sub": "admin"}, "admin", Identity("admin", "bearer")])
def test_an_identity_that_was_there_before_does_not_pass_for_the_callers(
    client: Callable[..., Client], backend: Backend, key: str, put: object
) -> None:
    there = {IDENTITY: put}
    guarded = client(exempt={"paths": ["/health"]})
    guarded.get("/health", environ_overrides=there)
    assert backend.seen is not None
    assert IDENTITY not in backend.seen
    guarded.get("/", headers={"X-API-Key": key}, environ_overrides=there)
    assert backend.seen[IDENTITY].subject == "acme"


@pytest.mark.parametrize("put", [{"sub": "admin"}, "admin"])
def test_an_optional_one_keeps_nothing_but_identities(
    client: Callable[..., Client], backend: Backend, put: object
) -> None:
    client(required=False).get("/", environ_overrides={IDENTITY: put})
    assert backend.seen is not None
    assert IDENTITY not in backend.seen


def test_tokens_and_keys_can_be_used_side_by_side(
    backend: Backend, keys: ApiKeys, key: str
) -> None:
    inner = ApiKeyAuthenticator(backend, keys, authorization="Bearer", required=False)
    both = Client(Authenticator(inner, algorithms=["HS256"], secret=SECRET, required=False))
    token = mint(SECRET, "HS256", "ann")
    assert both.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert backend.seen is not None
    assert backend.seen["HTTP_AUTHORIZATION"] == f"Bearer {token}"
    assert both.get("/", headers={"X-API-Key": key}).status_code == 200
    assert backend.seen[IDENTITY].subject == "acme"


def test_a_bearer_token_may_be_a_token_or_a_key(backend: Backend, keys: ApiKeys, key: str) -> None:
    tokens = partial(Authenticator, algorithms=["HS256"], secret=SECRET)
    both = Client(
        AnyOf(backend, [tokens, partial(ApiKeyAuthenticator, keys=keys, authorization="Bearer")])
    )
    for bearer, caller in ((mint(SECRET, "HS256", "ann"), "ann"), (key, "acme")):
        answer = both.get("/", headers={"Authorization": f"Bearer {bearer}"})
        assert answer.status_code == 200
        assert backend.seen is not None
        assert backend.seen[IDENTITY].subject == caller
    for headers in ({}, {"Authorization": f"Bearer {UNKNOWN}"}, {"Authorization": "Bearer junk"}):
        assert both.get("/", headers=headers).status_code == 401


def test_an_optional_authenticator_inside_keeps_the_caller_of_a_key(
    backend: Backend, keys: ApiKeys, key: str
) -> None:
    inner = Authenticator(backend, algorithms=["HS256"], secret=SECRET, required=False)
    both = Client(ApiKeyAuthenticator(inner, keys, required=False))
    assert both.get("/", headers={"X-API-Key": key}).status_code == 200
    assert backend.seen is not None
    assert backend.seen[IDENTITY].subject == "acme"
    token = {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}
    assert both.get("/", headers={"X-API-Key": key, **token}).status_code == 200
    assert backend.seen[IDENTITY].subject == "ann"
    inner = Authenticator(backend, algorithms=["HS256"], secret=SECRET)
    both = Client(ApiKeyAuthenticator(inner, keys))
    assert both.get("/", headers={"X-API-Key": key}).status_code == 401, "both are required"


def test_scopes_are_required(client: Callable[..., Client], key: str) -> None:
    headers = {"X-API-Key": key}
    assert client(scopes=["orders:read"]).get("/", headers=headers).status_code == 200
    answer = client(scopes=["orders:write", "orders:read"]).get("/", headers=headers)
    assert answer.status_code == 403
    assert answer.headers["WWW-Authenticate"] == (
        'ApiKey realm="api", error="insufficient_scope", scope="orders:read orders:write"'
    )


# Floods, outages, logs.


def test_a_flood_of_unknown_keys_gets_429_and_a_known_key_passes(
    client: Callable[..., Client], key: str
) -> None:
    guarded = client()
    assert guarded.get("/", headers={"X-API-Key": key}).status_code == 200
    for _ in range(60):
        guarded.get("/", headers={"X-API-Key": new_key("wg")})
    answer = guarded.get("/", headers={"X-API-Key": new_key("wg")})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert guarded.get("/", headers={"X-API-Key": key}).status_code == 200


class Outage(MemoryStore):
    down = False

    def get(self, key: str) -> tuple[bytes | None, float]:
        if self.down:
            raise StoreError("the store is down")
        return super().get(key)


@pytest.mark.parametrize(
    ("option", "known", "unknown"), [("refuse", 503, 503), ("allow", 200, 503)]
)
def test_during_an_outage_keys_are_refused_or_those_seen_before_pass(
    backend: Backend, caplog: pytest.LogCaptureFixture, option: str, known: int, unknown: int
) -> None:
    store, clock = Outage(), FakeClock()
    keys = ApiKeys(store, clock=clock)
    key, _ = keys.create("acme")
    guarded = ApiKeyAuthenticator(backend, keys, on_store_error=option)
    client = Client(guarded)
    assert client.get("/", headers={"X-API-Key": key}).status_code == 200
    store.down = True
    clock.advance(1)
    answers = [client.get("/", headers={"X-API-Key": each}) for each in (key, UNKNOWN)]
    assert [answer.status_code for answer in answers] == [known, unknown]
    assert answers[1].headers["Retry-After"] == "5"
    assert guarded.store_errors == 2
    assert "API keys cannot be read" in caplog.text
    store.down = False
    assert client.get("/", headers={"X-API-Key": key}).status_code == 200
    assert "API keys can be read again" in caplog.text
    assert key not in caplog.text


def test_a_broken_store_refuses_everything(backend: Backend) -> None:
    guarded = Client(ApiKeyAuthenticator(backend, ApiKeys(BrokenStore())))
    assert guarded.get("/", headers={"X-API-Key": UNKNOWN}).status_code == 503
    assert guarded.get("/", headers={"X-API-Key": "junk"}).status_code == 503
    assert backend.seen is None


def test_a_key_is_in_no_log(
    backend: Backend, keys: ApiKeys, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stream = io.StringIO()
    guarded = ApiKeyAuthenticator(backend, keys, query="api_key", scopes=["orders:read"])
    logger = Logger(guarded, stream=stream)
    for given in (key, UNKNOWN, key[:-1] + "?"):
        for app in (logger, guarded):
            Client(app).get("/", headers={"X-API-Key": given}).close()
            target = f"/?api_key={given}"
            Client(app).get(target, environ_overrides={"RAW_URI": target}).close()
    logger.flush(30)
    for text in (stream.getvalue(), caplog.text):
        assert "/" in text
        for given in (key, UNKNOWN):
            assert given[3:] not in text


def test_the_reason_names_the_key_by_its_id(backend: Backend, keys: ApiKeys, key: str) -> None:
    [record] = keys.records()
    keys.revoke(record.id)
    stream = io.StringIO()
    logger = Logger(ApiKeyAuthenticator(backend, keys), stream=stream)
    Client(logger).get("/", headers={"X-API-Key": key}).close()
    logger.flush(30)
    assert f"bad API key: key {record.id} was revoked" in stream.getvalue()


def test_the_access_log_has_the_owner_of_a_key_without_the_scope(
    backend: Backend, keys: ApiKeys, key: str
) -> None:
    stream = io.StringIO()
    guarded = ApiKeyAuthenticator(backend, keys, scopes=["orders:write"])
    logger = Logger(guarded, stream=stream, format="json")
    assert Client(logger).get("/", headers={"X-API-Key": key}).status_code == 403
    logger.flush(30)
    record = json.loads(stream.getvalue())
    assert (record["status"], record["subject"]) == (403, "acme")
    assert backend.seen is None


# Options.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"header": "X API"}, "header: "),
        ({"header": "Authorization"}, 'header: .*use authorization = "ApiKey"'),
        ({"header": "cookie"}, "header: "),
        ({"authorization": "Basic"}, 'authorization is "ApiKey" or "Bearer"'),
        ({"query": "a&b"}, "query: "),
        ({"query": ""}, "query: "),
        ({"scopes": ["a"], "required": False}, "scopes: "),
        ({"scopes": "a"}, "scopes: "),
        ({"scopes": ["a b"]}, "scopes: "),
        ({"realm": 'a"b'}, "realm: "),
        ({"on_store_error": "pass"}, 'on_store_error is "allow" or "refuse"'),
        ({"keys": "memory:"}, "keys: expected ApiKeys"),
    ],
)
def test_an_invalid_option_is_named(
    backend: Backend, keys: ApiKeys, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        ApiKeyAuthenticator(backend, **{"keys": keys, **options})
