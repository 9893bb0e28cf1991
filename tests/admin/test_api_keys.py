"""The endpoints for API keys: the admin token is required, and a key is shown once."""

from __future__ import annotations

import json

import pytest
from werkzeug.test import Client, TestResponse

from tests.support.admin import admin_routes
from tests.support.waiting import until
from wsgigate.admin.api_keys import LARGEST, api_key_group
from wsgigate.coordination.api_keys import ApiKeys, KeyRejected
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

NOW = 1_764_547_200.0
ADMIN = "k" * 32
CLIENT = {"REMOTE_ADDR": "192.0.2.7"}


@pytest.fixture
def keys() -> ApiKeys:
    now = FakeClock(NOW)
    return ApiKeys(MemoryStore(clock=now), now=now)


def send(
    keys: ApiKeys,
    method: str,
    path: str = "",
    body: object = None,
    *,
    token: str | None = ADMIN,
    fields: dict[str, str] | None = None,
) -> TestResponse:
    app = Dispatcher(admin_routes(api_key_group(keys), prefix="/_gateway", token=token))
    headers = {"Authorization": f"Bearer {ADMIN}", **(fields or {})}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    return Client(app).open(
        f"/_gateway/api-keys{path}",
        method=method,
        data=data,
        headers=headers,
        environ_overrides={"REMOTE_ADDR": "192.0.2.9"},
    )


def valid(keys: ApiKeys, key: str) -> bool:
    try:
        keys.find(key, CLIENT)
    except KeyRejected:
        return False
    return True


CALLS: list[tuple[str, str, object]] = [
    ("GET", "", None),
    ("POST", "", {"owner": "acme"}),
    ("POST", "/ID/rotate", None),
    ("POST", "/ID/revoke", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize(
    ("token", "fields", "status"),
    [
        (None, {}, 403),
        (ADMIN, {"Authorization": ""}, 401),
        (ADMIN, {"Authorization": f"Bearer {ADMIN}x"}, 401),
        (ADMIN, {"Origin": "https://evil.test"}, 403),
    ],
)
def test_nothing_is_shown_or_changed_without_the_admin_token(
    keys: ApiKeys,
    method: str,
    path: str,
    body: object,
    token: str | None,
    fields: dict[str, str],
    status: int,
) -> None:
    key, record = keys.create("acme")
    answer = send(keys, method, path.replace("ID", record.id), body, token=token, fields=fields)
    assert answer.status_code == status
    assert b"acme" not in answer.data
    assert keys.records() == [record]
    assert valid(keys, key)


def test_a_key_is_created_and_shown_once(keys: ApiKeys, caplog: pytest.LogCaptureFixture) -> None:
    body = {
        "owner": "acme",
        "plan": "gold",
        "scopes": ["orders:read"],
        "name": "nightly",
        "expires": "90d",
    }
    answer = send(keys, "POST", "", body)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    assert answer.json is not None
    key, record = answer.json["key"], answer.json["apiKey"]
    assert valid(keys, key)
    assert record == {
        **body,
        "id": record["id"],
        "created": "2025-12-01T00:00:00Z",
        "expires": "2026-03-01T00:00:00Z",
    }
    assert key not in send(keys, "GET").text
    assert f"api-key.create of {record['id']} of owner acme by admin token from" in caplog.text
    assert key not in caplog.text


def test_the_list_has_the_last_use_and_no_digest(keys: ApiKeys) -> None:
    key, record = keys.create("acme")
    assert valid(keys, key)
    until(lambda: record.id in keys.last_used())
    answer = send(keys, "GET").json
    assert answer is not None
    [shown] = answer["apiKeys"]
    assert shown["lastUsed"] == "2025-12-01T00:00:00.000Z"
    assert record.secrets[0].sha256 not in json.dumps(answer)


@pytest.mark.parametrize(
    ("body", "old"), [(None, True), ({"overlap": "1h"}, True), ({"overlap": 0}, False)]
)
def test_a_rotation_shows_the_new_key_and_keeps_the_old_one_for_the_overlap(
    keys: ApiKeys, body: object, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key, record = keys.create("acme")
    answer = send(keys, "POST", f"/{record.id}/rotate", body)
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["apiKey"]["id"] == record.id
    assert [valid(keys, answer.json["key"]), valid(keys, key)] == [True, old]
    line = f"api-key.rotate of {record.id} of owner acme by admin token from 192.0.2.9"
    assert line in caplog.text


def test_a_revoked_key_is_refused_at_once(keys: ApiKeys, caplog: pytest.LogCaptureFixture) -> None:
    key, record = keys.create("acme")
    answer = send(keys, "POST", f"/{record.id}/revoke")
    assert answer.json is not None
    assert answer.json["apiKey"]["revoked"] == "2025-12-01T00:00:00Z"
    assert not valid(keys, key)
    assert f"api-key.revoke of {record.id} of owner acme by admin token" in caplog.text
    assert send(keys, "POST", f"/{record.id}/rotate").status_code == 400


@pytest.mark.parametrize("path", ["/nobody/rotate", "/nobody/revoke"])
def test_an_unknown_id_is_404(keys: ApiKeys, path: str) -> None:
    assert send(keys, "POST", path).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("", {}, "owner"),
        ("", {"owner": 7}, "owner"),
        ("", {"owner": "a\nb"}, "owner"),
        ("", {"owner": "a", "plan": "b c"}, "plan"),
        ("", {"owner": "a", "plan": None}, "plan"),
        ("", {"owner": "a", "scopes": "read"}, "scopes"),
        ("", {"owner": "a", "scopes": [7]}, "scopes"),
        ("", {"owner": "a", "expires": "soon"}, "expires"),
        ("", {"owner": "a", "expires": 0}, "expires"),
        ("", {"owner": "a", "expires": True}, "expires"),
        ("", {"owner": "a", "key": "wg_"}, "key"),
        ("/ID/rotate", {"overlap": -1}, "overlap"),
        ("/ID/rotate", {"overlap": 1e300}, "overlap"),
        ("/ID/rotate", {"owner": "b"}, "owner"),
        ("/ID/revoke", {"owner": "b"}, "owner"),
    ],
)
def test_an_invalid_member_is_named(keys: ApiKeys, path: str, body: object, field: str) -> None:
    _, record = keys.create("acme")
    answer = send(keys, "POST", path.replace("ID", record.id), body)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["field"] == field
    assert keys.records() == [record]


def test_a_large_body_is_refused(keys: ApiKeys) -> None:
    assert send(keys, "POST", "", b" " * (LARGEST + 1)).status_code == 413


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_failing_store_is_503(method: str, path: str, body: object) -> None:
    answer = send(ApiKeys(BrokenStore()), method, path, body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
