"""The keys by which a limiter distinguishes callers, and callers without one."""

from __future__ import annotations

import logging
from uuid import UUID

import pytest

from tests.middleware.limits import begun, hello, statuses
from wsgigate import Identity
from wsgigate.http.caller import claim
from wsgigate.http.wsgi import CLAIMS, IDENTITY, PARAMS, REASON, ROUTE, subject
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

REFUSALS = "wsgigate.refusals"


@pytest.fixture
def clock():
    return FakeClock(1_750_000_000.0)


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def caller(subject="u1", scheme="bearer", **values):
    return {IDENTITY: Identity(subject, scheme, **values)}


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("subject", caller("u1"), caller("u2")),
        ("client", caller(client="shop"), caller(client="app")),
        ("issuer", caller(issuer="https://a"), caller(issuer="https://b")),
        (["issuer", "subject"], caller(issuer="https://a"), caller(issuer="https://b")),
        ("plan", caller("u1", claims={"plan": "pro"}), caller("u1", claims={"plan": "free"})),
        ("claim:org.id", caller(claims={"org": {"id": 7}}), caller(claims={"org": {"id": 8}})),
        ("claim:org.id", {CLAIMS: {"org": {"id": 7}}}, caller(claims={"org": {"id": 8}})),
        ('claim:"a|b"|address', caller(claims={"a|b": "x"}), caller(claims={"a|b": "y"})),
        ("address", {}, {"REMOTE_ADDR": "192.0.2.2"}),
        ("subject", {CLAIMS: {"sub": "u1"}}, {CLAIMS: {"sub": "u2"}}),
        ("api-key", {"HTTP_X_API_KEY": "k1"}, {"HTTP_X_API_KEY": "k2"}),
        ("header:X-Team", {"HTTP_X_TEAM": "a"}, {"HTTP_X_TEAM": "b"}),
        ("cookie:session", {"HTTP_COOKIE": "a=1; session=x"}, {"HTTP_COOKIE": "session=y"}),
        ("claim:team", {CLAIMS: {"team": 7}}, {CLAIMS: {"team": 8}}),
        ("path:id", {PARAMS: {"id": "7"}}, {PARAMS: {"id": "8"}}),
        ("route", {ROUTE: "orders"}, {ROUTE: "users"}),
        (["address", "route"], {ROUTE: "a"}, {ROUTE: "b"}),
        ("subject|address", {CLAIMS: {"sub": "u1"}}, {}),
        ("subject | address", {}, {CLAIMS: {"sub": "192.0.2.1"}}),
        (lambda environ: environ["PATH_INFO"], {"PATH_INFO": "/a"}, {"PATH_INFO": "/b"}),
    ],
)  # fmt: skip
def test_each_key_tells_callers_apart_by_its_own_part_of_the_request(store, key, same, other):
    app = Limiter(hello, "1/m", store=store, key=key)
    assert statuses(app, 2, **same) == [200, 429]
    assert statuses(app, 2, **other) == [200, 429]


KEYS = [
    "subject",
    "client",
    "plan",
    "subject|exempt",
    "api-key",
    "cookie:a",
    "claim:a",
    "path:a",
    "route",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_caller_without_the_key_is_exempt(store, key):
    app = Limiter(hello, "1/m", store=store, key=key)
    assert statuses(app, 3, HTTP_COOKIE="ba=1; a=; a") == [200] * 3
    assert list(store.items("")) == []


SIMPLEJWT = {"token_type": "access", "exp": 1, "jti": "x", "user_id": "7"}


@pytest.mark.parametrize("key", ["subject", subject, ["subject"]])
@pytest.mark.parametrize("make", [Limiter, ConcurrencyLimiter])
def test_a_token_without_a_subject_is_counted_by_address_with_a_warning(store, key, make, caplog):
    quota = "1/m" if make is Limiter else 1
    app = make(hello, quota, store=store, key=key, name="user")
    held = []

    claims = {CLAIMS: SIMPLEJWT}
    with caplog.at_level(logging.INFO, "wsgigate"):
        assert begun(app, held, 3, **claims) == [200, 429, 429]
        assert begun(app, held, 2, REMOTE_ADDR="192.0.2.7", **claims) == [200, 429]
        assert begun(app, held, 2, **{CLAIMS: {"sub": ""}}) == [429, 429]
        assert begun(app, held, 2, **{CLAIMS: {"sub": "address 192.0.2.1"}}) == [200, 429]
    [text] = [each.getMessage() for each in caplog.records if each.name != REFUSALS]
    assert text.startswith("the limit 'user' counts callers by \"subject\", and a token has no sub")
    assert 'key="claim:user_id"' in text


@pytest.mark.parametrize("key", ["claim:org", ["claim:org"], claim("org")])
@pytest.mark.parametrize("make", [Limiter, ConcurrencyLimiter])
def test_a_token_without_the_claim_is_counted_by_address_with_a_warning(store, key, make, caplog):
    app = make(hello, "1/m" if make is Limiter else 1, store=store, key=key, name="org")
    held = []
    with caplog.at_level(logging.INFO, "wsgigate"):
        assert begun(app, held, 2, **{CLAIMS: {"org": "a"}}) == [200, 429]
        assert begun(app, held, 2, **{CLAIMS: SIMPLEJWT}) == [200, 429]
        assert begun(app, held, 2, **{CLAIMS: {"org": ["a"]}}) == [429, 429]
    [text] = [each.getMessage() for each in caplog.records if each.name != REFUSALS]
    assert text.startswith(
        "the limit 'org' counts callers by \"claim:org\", and a token has no org"
    )
    assert '"claim:org|exempt"' in text
    assert (
        begun(make(hello, "1/m" if make is Limiter else 1, store=store, key=key), held, 3)
        == [200] * 3
    )


@pytest.mark.parametrize("key", ["subject", "client", "issuer", "plan", "claim:org.id"])
@pytest.mark.parametrize(
    "values", [{}, {"claims": {"plan": ["a"], "org": {"id": {}}}}, {"claims": {"org": "id"}}]
)
def test_a_caller_without_the_value_is_counted_by_address_with_a_warning(
    store, key, values, caplog
):
    """It neither passes unlimited nor shares a count with all the others."""
    app = Limiter(hello, "1/m", store=store, key=key, name="user")
    with caplog.at_level(logging.INFO, "wsgigate"):
        assert statuses(app, 2, **caller(None, "api-key", **values)) == [200, 429]
        found = statuses(app, 2, REMOTE_ADDR="192.0.2.7", **caller(None, "api-key", **values))
    assert found == [200, 429]
    [text] = [each.getMessage() for each in caplog.records if each.name != REFUSALS]
    assert "such callers are counted by address" in text


@pytest.mark.parametrize("key", ["subject", "claim:org"])
def test_a_claim_does_not_pass_for_the_address_of_another_caller(store, key):
    """Nor uses up the quota of callers who are counted by that address."""
    app = Limiter(hello, "1/m", store=store, key=key)
    forged = "\x1faddress 192.0.2.1"
    attacker = caller(forged, claims={"org": forged})
    assert statuses(app, 2, REMOTE_ADDR="192.0.2.9", **attacker) == [200, 429]
    assert statuses(app, 2, **caller(None)) == [200, 429]


@pytest.mark.parametrize("key", ["claim:org|address", "claim:org|exempt"])
def test_a_claim_with_an_alternative_falls_back_to_that(store, key):
    app = Limiter(hello, "1/m", store=store, key=key)
    found = statuses(app, 2, **{CLAIMS: SIMPLEJWT})
    assert found == ([200, 200] if "exempt" in key else [200, 429])


@pytest.mark.parametrize("key", ["subject|address", "subject|exempt", "claim:user_id"])
def test_another_key_falls_back_without_a_warning(store, key, caplog):
    app = Limiter(hello, "1/m", store=store, key=key)
    with caplog.at_level(logging.INFO, "wsgigate"):
        found = statuses(app, 2, **{CLAIMS: SIMPLEJWT})
    assert found == ([200, 200] if key == "subject|exempt" else [200, 429])
    assert [each for each in caplog.records if each.name != REFUSALS] == []


def test_a_rejection_by_a_fallback_key_names_the_address(store):
    app = Limiter(hello, "1/m", store=store, key="subject")
    reasons = []

    def noting(environ, start_response):
        answer = app(environ, start_response)
        reasons.append(environ.get(REASON))
        return answer

    statuses(noting, 2, **{CLAIMS: SIMPLEJWT})
    assert reasons[1].startswith("address 192.0.2.1 is over the quota")


def test_a_limit_by_subject_outside_of_the_authenticator_is_named(store, caplog):
    def authenticator(environ, start_response):
        environ[CLAIMS] = {"sub": "ann"}
        return hello(environ, start_response)

    app = Limiter(authenticator, "1/m", store=store, key="subject", name="user")
    with caplog.at_level(logging.INFO, "wsgigate"):
        assert statuses(app, 3) == [200, 200, 200]
    [text] = [record.getMessage() for record in caplog.records]
    assert text == (
        "the limit 'user' counts callers by \"subject\" outside of the Authenticator, where no "
        "request has one, so it limits nothing: put it inside"
    )


ID = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize("said", [7, 0, -1, 10**40, ID])
@pytest.mark.parametrize("kind", ["alone", "with others"])
@pytest.mark.parametrize("make", [Limiter, ConcurrencyLimiter])
def test_a_whole_number_or_a_uuid_is_a_key(store, said, kind, make):
    def key(environ):
        return said if environ["PATH_INFO"] == "/" else str(said)

    quota = "1/m" if make is Limiter else 1
    app = make(hello, quota, store=store, key=key if kind == "alone" else [key, "address"])
    held = []

    assert begun(app, held, 2) == [200, 429]
    assert begun(app, held, 1, PATH_INFO="/text") == [429]


@pytest.mark.parametrize("said", [True, 1.5, b"a", object()])
def test_a_key_of_another_type_raises_an_error_that_lists_the_types(store, said):
    app = Limiter(hello, "1/m", store=store, key=lambda environ: said)
    with pytest.raises(TypeError, match="returns a text, a whole number, a UUID or None, not"):
        statuses(app, 1)


@pytest.mark.parametrize("key", ["api-key", "header:X-Api-Key", "cookie:token"])
def test_secrets_of_a_client_are_neither_stored_nor_logged(store, key, caplog):
    secrets = {"HTTP_X_API_KEY": "hunter2-hunter2", "HTTP_COOKIE": "token=hunter2-hunter2"}
    app = Limiter(hello, "1/m", store=store, key=key)
    reasons = []

    def noting(environ, start_response):
        answer = app(environ, start_response)
        reasons.append(environ.get(REASON))
        return answer

    with caplog.at_level(logging.DEBUG):
        assert statuses(noting, 2, **secrets) == [200, 429]
    told = str([*store.items("")]) + str(reasons) + caplog.text
    assert "over the quota" in told
    assert "hunter2" not in told
