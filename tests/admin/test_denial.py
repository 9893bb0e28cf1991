"""The endpoint that denies tokens: the admin token is required, an invalid member is named."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from tests.support.admin import admin_routes
from wsgigate.admin.operations import LARGEST_DENIAL, deny_group
from wsgigate.auth.jwt import mint, read_compact
from wsgigate.coordination.denylist import LONGEST, DenyList, identity
from wsgigate.http.wsgi import REASON, BodyError
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

NOW = 1_764_547_200.0
ADMIN = "k" * 32
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = mint(SECRET, "HS256", "ann", 3600, NOW, jti="j-1")
ANN = identity(read_compact(TOKEN).signed, {"sub": "ann", "jti": "j-1", "iat": NOW})


@pytest.fixture
def denied() -> DenyList:
    return DenyList(MemoryStore(clock=FakeClock(NOW)))


def send(
    denied: DenyList,
    body: object,
    *,
    token: str | None = ADMIN,
    fields: dict[str, str] | None = None,
    **environ: Any,
) -> TestResponse:
    group = deny_group(denied, now=lambda: NOW + 1)
    routes = admin_routes(group, prefix="/_gateway", token=token)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    return Client(Dispatcher(routes)).post(
        "/_gateway/tokens/deny",
        data=data,
        headers={**headers, **(fields or {})},
        environ_overrides=environ,
    )


@pytest.mark.parametrize(
    ("body", "kind", "until"),
    [
        ({"token": TOKEN}, "token", NOW + 3600),
        ({"token": TOKEN, "until": NOW + 60}, "token", NOW + 60),
        ({"jti": "j-1", "until": NOW + 60}, "jti", NOW + 60),
        ({"sub": "ann", "until": NOW + 60}, "sub", NOW + 60),
        ({"sub": "ann", "before": NOW + 0.5, "until": NOW + 60}, "sub", NOW + 60),
    ],
)
def test_a_token_a_jti_or_a_subject_is_denied(
    denied: DenyList, body: object, kind: str, until: float
) -> None:
    assert denied.why_denied(ANN) == ""
    response = send(denied, body)
    assert response.status_code == 200
    assert response.json == {"success": True, "message": "Denied.", "denied": kind, "until": until}
    assert denied.why_denied(ANN)


def test_tokens_issued_later_are_not_denied(denied: DenyList) -> None:
    assert send(denied, {"sub": "ann", "before": NOW, "until": NOW + 60}).status_code == 200
    assert denied.why_denied(ANN) == ""


@pytest.mark.parametrize(
    "fields",
    [{"Authorization": ""}, {"Authorization": f"Bearer {'K' * 32}"}, {"Authorization": TOKEN}],
)
def test_a_request_without_the_admin_token_is_rejected(
    denied: DenyList, fields: dict[str, str]
) -> None:
    response = send(denied, {"token": TOKEN}, fields=fields, **{"wsgi.input": Untouchable()})
    assert response.status_code == 401
    assert denied.why_denied(ANN) == ""


def test_a_page_of_another_site_is_rejected(denied: DenyList) -> None:
    assert send(denied, {"token": TOKEN}, fields={"Origin": "https://evil"}).status_code == 403
    assert denied.why_denied(ANN) == ""


@pytest.mark.parametrize("presented", ["", "Bearer ", "Bearer None", f"Bearer {ADMIN}"])
def test_every_request_is_rejected_without_an_admin_token(denied: DenyList, presented: str) -> None:
    response = send(denied, {"token": TOKEN}, token=None, fields={"Authorization": presented})
    assert response.status_code == 403
    assert "no admin token" in response.get_json()["detail"]
    assert denied.why_denied(ANN) == ""


class Untouchable:
    """A body that must not be read before the client is authorized."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("read before it was known who asks")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_answered_with_405(denied: DenyList, method: str) -> None:
    routes = admin_routes(deny_group(denied))
    response = Client(Dispatcher(routes)).open("/tokens/deny", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "words", "field"),
    [
        ({}, "exactly one of token, jti and sub", None),
        ({"jti": "a", "sub": "b", "until": 1}, "exactly one of token, jti and sub", None),
        ({"jti": "a"}, "until: is required", "until"),
        ({"sub": "a", "before": 1}, "until: is required", "until"),
        ({"jti": "a", "until": "1"}, "until: a Unix time in seconds, not '1'", "until"),
        ({"jti": "a", "until": True}, "until: a Unix time", "until"),
        ({"jti": "a", "until": None}, "until: a Unix time", "until"),
        ({"jti": "a", "until": -1}, "until: a Unix time", "until"),
        ({"jti": "a", "until": NOW + 2 * LONGEST}, "until: a Unix time at most ten years", "until"),
        ({"jti": "a", "until": 10**400}, "until: a Unix time", "until"),
        ({"jti": "", "until": 1}, "jti: a text of 1 to 1024", "jti"),
        ({"jti": 7, "until": 1}, "jti: must be a string", "jti"),
        ({"sub": ["ann"], "until": 1}, "sub: must be a string", "sub"),
        ({"sub": "ann", "before": "now", "until": 1}, "before: a Unix time", "before"),
        ({"token": "abc"}, "token: not three parts", "token"),
        ({"token": TOKEN, "until": "x"}, "until: a Unix time", "until"),
        ({"token": TOKEN, "before": 1}, "'before': not allowed together with token", "before"),
        ({"jti": "a", "untill": 1}, "'untill': not allowed together with jti", "untill"),
        ([], "a body that is not an object", None),
        (b" ", "a body that is not strict JSON", None),
        (b"{", "a body that is not strict JSON", None),
        (b'{"jti": "a", "jti": "b", "until": 1}', "a duplicate member", None),
        (b'{"jti": "a", "until": NaN}', "NaN is not a JSON number", None),
        (b'{"jti": "a", "until": 1e999}', "a number that is not finite", None),
        (b'{"jti": "\xff"}', "a body that is not strict JSON", None),
        (b"[" * 9000, "a body", None),
    ],
)
def test_an_invalid_member_is_rejected_by_name(
    denied: DenyList, body: object, words: str, field: str | None
) -> None:
    response = send(denied, body)
    told = response.get_json()
    assert (response.status_code, told["success"]) == (400, False)
    assert words in told["detail"]
    assert told.get("field") == field
    assert TOKEN not in response.text
    assert list(denied.store.items("")) == []


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_rejected(denied: DenyList, kind: str) -> None:
    assert send(denied, {"token": TOKEN}, fields={"Content-Type": kind}).status_code == 415


def test_the_content_type_may_have_a_charset(denied: DenyList) -> None:
    fields = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert send(denied, {"token": TOKEN}, fields=fields).status_code == 200


def test_a_body_that_is_too_large_is_not_read(denied: DenyList) -> None:
    fits = b'{"jti": "a", "until": 1}'.ljust(LARGEST_DENIAL)
    assert send(denied, fits).status_code == 200
    assert send(denied, fits + b" ").status_code == 413
    large = {"wsgi.input": Untouchable(), "CONTENT_LENGTH": "9" * 5000}
    assert send(denied, b"", **large).status_code == 413
    chunks = {"wsgi.input": Slow(fits + b" " * 10), "CONTENT_LENGTH": ""}
    assert send(denied, b"", **chunks, **{"wsgi.input_terminated": True}).status_code == 413


class Slow(io.BytesIO):
    """Gives one byte at a time, as sockets do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(1, LARGEST_DENIAL if size is None else size))


def test_a_body_is_read_in_pieces_with_or_without_a_length(denied: DenyList) -> None:
    body = b'{"jti": "j-1", "until": 1}'
    assert (
        send(denied, b"", **{"wsgi.input": Slow(body), "CONTENT_LENGTH": "26"}).status_code == 200
    )
    chunks = {"wsgi.input": Slow(body), "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert send(denied, b"", **chunks).status_code == 200


@pytest.mark.parametrize(
    ("length", "status"), [("27", 400), ("-1", 400), ("+26", 400), ("²", 400), ("", 411)]
)
def test_a_body_with_a_wrong_length_is_rejected(denied: DenyList, length: str, status: int) -> None:
    body = Slow(b'{"jti": "j-1", "until": 1}')
    assert send(denied, b"", **{"wsgi.input": body, "CONTENT_LENGTH": length}).status_code == status
    assert list(denied.store.items("")) == []


@pytest.mark.parametrize("error", [BodyError("cut"), OSError("cut")])
def test_an_incomplete_body_denies_nothing(denied: DenyList, error: Exception) -> None:
    class Cut:
        def read(self, size: int = -1) -> bytes:
            raise error

    response = send(denied, b"", **{"wsgi.input": Cut(), "CONTENT_LENGTH": "26"})
    assert response.status_code == 400


def test_a_failing_store_is_answered_with_503_and_its_cause_is_logged() -> None:
    environ: dict[str, Any] = {}
    gateway = Dispatcher(admin_routes(deny_group(DenyList(BrokenStore()))))

    def noting(given: dict[str, Any], start_response: Any) -> Any:
        body = gateway(given, start_response)
        environ.update(given)
        return body

    response = Client(noting).post(
        "/tokens/deny", json={"token": TOKEN}, headers={"Authorization": f"Bearer {ADMIN}"}
    )
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "the store is down" not in response.text
    assert environ[REASON] == "the deny list cannot be written: the store is down"
