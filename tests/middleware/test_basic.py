"""HTTP Basic: who passes, what an attacker learns, and what the backend sees."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from werkzeug.test import Client

from wsgigate import ApiKeyAuthenticator, ApiKeys, BasicAuthenticator, Logger
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")


def fields(user: str = "ann", password: str = "secret") -> dict[str, str]:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


class Backend:
    """An app that keeps the environ of the last request that reached it."""

    seen: dict[str, Any] | None = None

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen = environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"ann:{HASH}\nbob:{HASH}\n")
    return path


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(backend: Backend, file: Path, store: MemoryStore) -> Callable[..., Client]:
    def make(**options: Any) -> Client:
        return Client(BasicAuthenticator(backend, str(file), **{"store": store, **options}))

    return make


def test_the_caller_is_the_user(client: Callable[..., Client], backend: Backend) -> None:
    assert client().get("/", headers=fields()).status_code == 200
    assert backend.seen is not None
    identity = backend.seen[IDENTITY]
    assert (identity.subject, identity.scheme) == ("ann", "basic")
    assert "HTTP_AUTHORIZATION" not in backend.seen
    client(hide_credentials=False).get("/", headers=fields())
    assert "HTTP_AUTHORIZATION" in backend.seen


def test_a_wrong_password_and_an_unknown_user_get_the_same_response(
    client: Callable[..., Client], backend: Backend
) -> None:
    malformed = {"Authorization": "Basic !!!"}
    wrong = [fields(password="wrong"), fields(user="eve"), fields(user="eve"), malformed]
    answers = [client().get("/", headers=each) for each in wrong]
    assert len({(each.status_code, each.data) for each in answers}) == 1
    assert answers[0].status_code == 401
    assert answers[0].headers["WWW-Authenticate"] == 'Basic realm="api", charset="UTF-8"'
    assert backend.seen is None


def test_without_credentials_a_request_is_asked_for_them(client: Callable[..., Client]) -> None:
    for headers in ({}, {"Authorization": "Bearer abc"}):
        answer = client(realm="shop").get("/", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="shop", charset="UTF-8"'


def test_optional_credentials_may_be_absent_and_not_wrong(
    client: Callable[..., Client], backend: Backend
) -> None:
    optional = client(required=False)
    assert optional.get("/").status_code == 200
    assert optional.get("/", headers={"Authorization": "Bearer abc"}).status_code == 200
    assert backend.seen is not None
    assert IDENTITY not in backend.seen
    assert optional.get("/", headers=fields(password="wrong")).status_code == 401


def test_exempt_requests_and_preflights_pass(client: Callable[..., Client]) -> None:
    guarded = client(exempt={"paths": ["/health"]})
    assert guarded.get("/health").status_code == 200
    preflight = {"Origin": "https://a.test", "Access-Control-Request-Method": "GET"}
    assert guarded.options("/", headers=preflight).status_code == 200
    assert client(preflights=True).options("/", headers=preflight).status_code == 401


@pytest.mark.parametrize("put", ["admin", {"sub": "admin"}, Identity("admin", "bearer")])
def test_an_identity_that_was_there_before_does_not_pass_for_the_callers(
    client: Callable[..., Client], backend: Backend, put: object
) -> None:
    guarded = client(exempt={"paths": ["/health"]})
    guarded.get("/health", environ_overrides={IDENTITY: put})
    assert backend.seen is not None
    assert IDENTITY not in backend.seen


def test_an_outer_key_and_an_inner_password_are_alternatives(
    client: Callable[..., Client], backend: Backend, file: Path, store: MemoryStore
) -> None:
    keys = ApiKeys(store)
    inner = BasicAuthenticator(backend, str(file), store=store, required=False)
    both = Client(ApiKeyAuthenticator(inner, keys, required=False))
    assert both.get("/", headers={"X-API-Key": keys.create("acme").key}).status_code == 200
    assert backend.seen is not None
    assert backend.seen[IDENTITY].subject == "acme"
    assert both.get("/", headers=fields()).status_code == 200
    assert backend.seen[IDENTITY].subject == "ann"


# Guessing.


def test_an_address_with_too_many_wrong_passwords_waits_in_every_worker(
    client: Callable[..., Client], backend: Backend
) -> None:
    one, other = client(max_failures=3), client(max_failures=3)
    for number in range(3):
        assert one.get("/", headers=fields(password=f"{number}")).status_code == 401
    for guarded in (one, other):
        answer = guarded.get("/", headers=fields())
        assert answer.status_code == 429, "also for the right one, which it must not learn"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    elsewhere = {"REMOTE_ADDR": "198.51.100.1"}
    assert one.get("/", headers=fields(), environ_overrides=elsewhere).status_code == 200


def test_a_throttled_address_cannot_guess_the_password_of_a_user_who_is_active_elsewhere(
    client: Callable[..., Client],
) -> None:
    guarded = client(max_failures=3)
    elsewhere = {"REMOTE_ADDR": "198.51.100.1"}
    assert guarded.get("/", headers=fields(), environ_overrides=elsewhere).status_code == 200
    for number in range(3):
        assert guarded.get("/", headers=fields(password=f"{number}")).status_code == 401
    assert guarded.get("/", headers=fields(password="3")).status_code == 429
    assert guarded.get("/", headers=fields()).status_code == 429
    assert guarded.get("/", headers=fields(), environ_overrides=elsewhere).status_code == 200


def test_users_of_an_address_who_have_logged_in_are_not_locked_out(
    client: Callable[..., Client],
) -> None:
    clock = FakeClock(0.0)
    guarded = client(max_failures=3, clock=clock)
    assert guarded.get("/", headers=fields()).status_code == 200
    for number in range(5):
        guarded.get("/", headers=fields(password=f"{number}"))
    clock.advance(61)  # it is no longer remembered, but was valid for this address
    assert guarded.get("/", headers=fields()).status_code == 200
    assert guarded.get("/", headers=fields(user="bob")).status_code == 429


def test_a_program_that_repeats_one_wrong_password_locks_nobody_out(
    client: Callable[..., Client],
) -> None:
    guarded = client(max_failures=3)
    answers = {guarded.get("/", headers=fields(password="old")).status_code for _ in range(20)}
    assert answers == {401}
    assert guarded.get("/", headers=fields()).status_code == 200


def test_the_limit_holds_in_each_worker_while_the_store_fails(
    client: Callable[..., Client],
) -> None:
    guarded = client(store=BrokenStore(), max_failures=3)
    answers = [guarded.get("/", headers=fields(password=f"{n}")).status_code for n in range(5)]
    assert answers == [401, 401, 401, 429, 429]


def test_the_store_has_nothing_that_depends_on_a_password(
    client: Callable[..., Client], store: MemoryStore
) -> None:
    client().get("/", headers=fields())
    marks = []
    for _ in range(2):
        client().get("/", headers=fields(password="wrong"))
        marks.append([value[-4:] for _, value in store.items("")])
    [first], [second] = marks
    assert first != second


# Other sites, files, logs.


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Origin": "https://evil.test"}, 200),
        ("POST", {"Origin": "https://evil.test"}, 403),
        ("DELETE", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {"Origin": "http://localhost"}, 200),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", {}, 200),
    ],
)
def test_a_page_of_another_site_cannot_use_the_login_of_the_browser(
    client: Callable[..., Client], method: str, headers: dict[str, str], status: int
) -> None:
    given = {**fields(), **headers}
    assert client().open("/", method=method, headers=given).status_code == status
    assert client(cross_site=True).open("/", method=method, headers=given).status_code == 200


def test_a_file_that_cannot_be_read_is_503(client: Callable[..., Client], file: Path) -> None:
    file.unlink()
    answer = client().get("/", headers=fields())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert str(file) not in answer.text


def test_no_password_is_in_a_log(
    client: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stream = io.StringIO()
    guarded = client().application
    for app in (guarded, Logger(guarded, stream=stream)):
        for given in (fields(), fields(password="hunter2"), {"Authorization": "Basic aHVudGVyMg"}):
            Client(app).get("/", headers=given).close()
        if isinstance(app, Logger):
            app.flush(30)
    for text in (stream.getvalue(), caplog.text):
        assert "password is wrong" in text
        for secret in ("hunter2", "aHVudGVyMg", fields()["Authorization"][6:], HASH):
            assert secret not in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"users_file": ""}, "users_file: "),
        ({"realm": 'a"b'}, "realm: "),
        ({"most_hashes": 0}, "most_hashes: "),
        ({"remember": -1}, "remember: "),
        ({"max_failures": 65}, "max_failures: "),
    ],
)
def test_an_invalid_option_is_named(backend: Backend, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        BasicAuthenticator(backend, **{"users_file": "users", "store": "memory:", **options})
