"""What the metrics have of the decisions of middlewares: each request once, by a bounded label."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response
from werkzeug.test import Client

from tests.support.authenticators import AUTHENTICATORS, Row
from tests.support.metrics import Measured
from tests.support.waiting import until
from wsgigate import (
    AllOf,
    AnyOf,
    ApiKeyAuthenticator,
    ApiKeys,
    Authenticator,
    AuthorizationRule,
    Authorizer,
    ConcurrencyLimiter,
    Limiter,
    MemoryStore,
    Mirror,
    Splitter,
)
from wsgigate.auth.jwt import mint
from wsgigate.http.wsgi import REJECTED_BY
from wsgigate.store import StoreError
from wsgigate.testing.fakes import Server, new_environ

DECISIONS, AUTHENTICATION = "wsgigate_limiter_decisions", "wsgigate_authentication"
SESSIONS = ("django-session", "flask-session")
SECRET = "a secret of the tests, thirty-two bytes or more"

OK = Response("hello")

each = pytest.mark.parametrize(
    "row",
    [row for name, row in AUTHENTICATORS.items() if name not in SESSIONS],
    ids=[name for name in AUTHENTICATORS if name not in SESSIONS],
)


class FailingStore(MemoryStore):
    def update(self, key: str, change: Any) -> Any:
        raise StoreError("down")


# Limiters.


def test_a_limiter_counts_what_it_allows_and_rejects(measured: Measured) -> None:
    client = Client(Limiter(OK, "2/h", store=MemoryStore(), name="few"))
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
    assert measured.series(DECISIONS) == {("few", "allowed"): 2.0, ("few", "rejected"): 1.0}


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({"observe": True}, "observed"),
        ({"exempt": lambda environ: True}, "exempt"),
        ({"only": lambda environ: False}, "exempt"),
        ({"key": lambda environ: None}, "exempt"),
        ({"store": FailingStore()}, "store_failed"),
    ],
    ids=["observe", "exempt", "only", "no key", "store"],
)
def test_each_request_is_one_decision(
    options: dict[str, Any], decision: str, measured: Measured
) -> None:
    limiter = Limiter(OK, "1/h", **{"store": MemoryStore(), "name": "one", **options})
    client = Client(limiter)
    for _ in range(2):
        assert client.get("/").status_code == 200
    found = measured.series(DECISIONS)
    assert sum(found.values()) == 2
    assert found["one", decision] == (1.0 if decision == "observed" else 2.0)


def test_limits_of_requests_and_of_concurrency_are_policies_by_their_names(
    measured: Measured,
) -> None:
    inner = Limiter(OK, "9/h", store=MemoryStore())
    Client(ConcurrencyLimiter(inner, 1, store=MemoryStore())).get("/", buffered=True)
    assert measured.series(DECISIONS) == {
        ("default", "allowed"): 1.0,
        ("concurrency", "allowed"): 1.0,
    }


# Authenticators.


@each
def test_an_authenticator_counts_each_request_once(
    row: Row, tmp_path: Path, measured: Measured
) -> None:
    way = row(tmp_path)
    client = Client(way.factory(OK), use_cookies=False)
    client.get("/", **way.valid)
    scheme = "bearer" if way.scheme == "dpop" else way.scheme
    assert measured.series(AUTHENTICATION) == {(scheme, "accepted", ""): 1.0}
    client.get("/", **way.invalid)
    client.get("/")
    found = measured.series(AUTHENTICATION)
    assert sum(found.values()) == 3
    assert {result for _, result, _ in found} == {"accepted", "rejected"}
    assert {reason for _, _, reason in found} <= {"", "invalid", "missing"}


def test_an_optional_credential_that_is_missing_is_anonymous(measured: Measured) -> None:
    app = Authenticator(OK, algorithms=["HS256"], secret=SECRET, required=False)
    assert Client(app).get("/").status_code == 200
    assert measured.series(AUTHENTICATION) == {("bearer", "anonymous", ""): 1.0}


@pytest.fixture
def key() -> tuple[Any, str]:
    keys = ApiKeys(MemoryStore())
    return partial(ApiKeyAuthenticator, keys=keys), keys.create("acme")[0]


BEARER = partial(Authenticator, algorithms=["HS256"], secret=SECRET)
TOKEN = {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}
BAD = {"Authorization": "Bearer bad"}


@pytest.mark.parametrize("nested", [False, True], ids=["one", "nested"])
def test_alternatives_count_the_one_that_decided(
    nested: bool, key: tuple[Any, str], measured: Measured
) -> None:
    factory, text = key
    of: list[Any] = [BEARER, factory]
    app = AnyOf(OK, [partial(AnyOf, of=of), BEARER] if nested else of)
    client = Client(app)
    assert client.get("/", headers={"X-API-Key": text}).status_code == 200
    assert measured.series(AUTHENTICATION) == {("api-key", "accepted", ""): 1.0}
    assert client.get("/", headers=TOKEN).status_code == 200
    assert client.get("/", headers=BAD).status_code == 401
    assert client.get("/").status_code == 401
    assert measured.series(AUTHENTICATION) == {
        ("api-key", "accepted", ""): 1.0,
        ("bearer", "accepted", ""): 1.0,
        ("bearer", "rejected", "invalid"): 1.0,
        ("bearer", "rejected", "missing"): 1.0,
    }


@pytest.mark.parametrize("outer", [False, True], ids=["alone", "in AnyOf"])
def test_several_at_once_count_the_primary_one_or_the_one_that_rejected(
    outer: bool, key: tuple[Any, str], measured: Measured
) -> None:
    factory, text = key
    both = partial(AllOf, of=[BEARER, factory], primary=1)
    client = Client(AnyOf(OK, [both]) if outer else both(OK))
    assert client.get("/", headers={"X-API-Key": text, **TOKEN}).status_code == 200
    assert measured.series(AUTHENTICATION) == {("api-key", "accepted", ""): 1.0}
    assert client.get("/", headers=TOKEN).status_code == 401
    assert measured.series(AUTHENTICATION) == {
        ("api-key", "accepted", ""): 1.0,
        ("api-key", "rejected", "missing"): 1.0,
    }


# Others.


def test_an_authorizer_counts_by_the_rule_that_decided(measured: Measured) -> None:
    rules = [AuthorizationRule(name="read", methods=["GET"], scopes=["r"])]
    token = {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann', scope='r')}"}
    client = Client(BEARER(Authorizer(OK, rules=rules)))
    assert client.get("/", headers=token).status_code == 200
    assert client.get("/", headers=TOKEN).status_code == 403
    assert measured.series("wsgigate_authorization") == {
        ("read", "allowed"): 1.0,
        ("read", "denied"): 1.0,
    }


def test_a_split_counts_by_the_app_whatever_the_client_asks_for(measured: Measured) -> None:
    client = Client(Splitter({"stable": (OK, 1), "beta": (OK, 0)}, override="X-Version"))
    for wanted in ("beta", "nonsense"):
        client.get("/", headers={"X-Version": wanted})
    assert measured.series("wsgigate_shaping") == {
        ("split", "beta"): 1.0,
        ("split", "stable"): 1.0,
    }


def test_a_mirror_counts_its_copies(measured: Measured) -> None:
    def other(environ: Any, start_response: Any) -> Iterable[bytes]:
        return OK(environ, start_response)

    mirror = Mirror(OK, other)
    Client(mirror).get("/")
    until(lambda: measured.value("wsgigate_mirrored") == 1)
    mirror.close()
    assert measured.series("wsgigate_mirrored") == {("sent",): 1.0}


def test_the_environ_of_a_rejected_request_has_what_rejected_it() -> None:
    environ = new_environ()
    Server().serve(BEARER(OK), environ)
    assert environ[REJECTED_BY] == "Authenticator"
