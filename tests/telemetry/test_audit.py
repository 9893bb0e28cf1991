"""Each administrative change is one record: who, what, from, to; and so is a denied attempt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import REQUEST_ID
from wsgigate.telemetry.audit import (
    Actor,
    AuditedChange,
    audit,
    audit_denied,
    audited,
    command_line,
    denied_log,
    requester,
)
from wsgigate.testing.fakes import new_environ

BY = Actor("admin token", "192.0.2.9", "r1")


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Return the fields of the only record."""
    [record] = [each for each in caplog.records if each.name == "wsgigate.audit"]
    found: dict[str, Any] = vars(record)["wsgigate"]
    json.dumps(found)
    return found


def test_a_change_has_who_what_from_and_to(caplog: pytest.LogCaptureFixture) -> None:
    audit("circuit.reset", "orders", by=BY, before="open", after="closed")
    assert fields(caplog) == {
        "event": "audit",
        "operation": "circuit.reset",
        "target": "orders",
        "role": "admin token",
        "client": "192.0.2.9",
        "request_id": "r1",
        "from": "open",
        "to": "closed",
        "result": "done",
    }
    assert caplog.messages == [
        "circuit.reset of orders by admin token from 192.0.2.9 (request r1): done, "
        'from "open" to "closed"'
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_the_requester_has_the_client_address_and_the_request_id() -> None:
    environ = {**new_environ(), "REMOTE_ADDR": "192.0.2.9", REQUEST_ID: "r1"}
    assert requester(environ) == BY
    assert requester(new_environ(), "viewer token").role == "viewer token"


def test_a_command_has_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert str(command_line()).startswith("command line from user ")
    monkeypatch.setenv("SUDO_USER", "alice")
    assert str(command_line()).endswith(" (sudo by alice)")


def test_members_with_secret_names_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    before = {"state": "on", "token": "s3cret", "more": [{"client_secret": "s3cret"}]}
    audit("x.y", "z", by=BY, before=before)
    assert fields(caplog)["from"] == {
        "state": "on",
        "token": "***",
        "more": [{"client_secret": "***"}],
    }
    assert "s3cret" not in caplog.text


def test_no_text_of_a_client_begins_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """L08."""
    hostile = "a\r\nFAKE \u2028\x1b[31m"
    audit(
        "x.y", hostile, by=Actor("r", hostile, hostile), before={hostile: hostile}, reason=hostile
    )
    assert caplog.messages[0].isprintable()
    assert all(text.isprintable() for text in fields(caplog).values() if isinstance(text, str))


def test_a_long_state_is_cut_in_the_text(caplog: pytest.LogCaptureFixture) -> None:
    audit("x.y", "z", by=BY, after=["x" * 100_000])
    assert len(caplog.messages[0]) < 4000


def changed(change: AuditedChange) -> None:
    change.target, change.before, change.after = "b", 1, 2


@pytest.mark.parametrize(
    ("act", "result", "reason"),
    [
        (changed, "done", None),
        (lambda change: setattr(change, "failed", "here only"), "failed", "here only"),
    ],
)
def test_a_block_is_logged_at_its_end(
    act: Any, result: str, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with audited("x.y", "a", by=BY) as change:
        act(change)
    assert fields(caplog)["result"] == result
    assert fields(caplog).get("reason") == reason
    assert fields(caplog)["target"] == change.target
    assert (fields(caplog)["from"], fields(caplog)["to"]) == (change.before, change.after)


def test_a_block_that_fails_is_logged_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="away"), audited("x.y", "a", by=BY):
        raise OSError("away")
    assert (fields(caplog)["result"], fields(caplog)["reason"]) == ("failed", "OSError: away")


@pytest.mark.parametrize("error", [ValueError("x"), Refusal.of(400, "x")])
def test_an_invalid_request_is_no_change(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), audited("x.y", "a", by=BY):
        raise error
    assert not caplog.records


def test_denied_attempts_are_counted_by_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    denied_log.after_fork()  # forgets what other tests have denied
    for client in ("192.0.2.1", "192.0.2.2"):
        environ = {**new_environ("POST"), "PATH_INFO": "/tokens/deny", REQUEST_ID: "r1"}
        for _ in range(100):
            audit_denied(environ | {"REMOTE_ADDR": client}, "the admin token is wrong")
    denied_log.after_fork()
    assert [each.args[2].client for each in caplog.records] == ["192.0.2.1", "192.0.2.2"]
    caplog.records.pop()
    assert fields(caplog) == {
        "event": "audit",
        "operation": "POST",
        "target": "/tokens/deny",
        "role": "no valid token",
        "client": "192.0.2.1",
        "request_id": "r1",
        "from": None,
        "to": None,
        "result": "denied",
        "reason": "the admin token is wrong",
    }
