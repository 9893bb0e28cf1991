"""Denied tokens are rejected, cached or not; and the store of the deny list fails."""

from __future__ import annotations

import pytest

from tests.support.tokens import GOOD, INVALID, NOW, Gate, claims, signed
from wsgigate.coordination.denylist import DenyList
from wsgigate.http.problem import Problem
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

TOKEN = signed(claims(jti="j", iat=NOW - 5))
UNCHECKED = (503, "Tokens cannot be checked at the moment.")


def logged(caplog):
    """Return what the authenticator logged itself, without the log of rejections."""
    return [each.getMessage() for each in caplog.records if each.name == "wsgigate.authenticator"]


@pytest.fixture
def denied():
    return DenyList(MemoryStore(clock=FakeClock(NOW)))


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize(
    ("deny", "reason"),
    [
        (lambda denied: denied.deny_token(TOKEN), "bad token: the token was denied"),
        (lambda denied: denied.deny_jti("j", NOW + 60), "bad token: its jti was denied"),
        (
            lambda denied: denied.deny_subject("user-1", NOW - 4, NOW + 60),
            "bad token: tokens issued to its subject before a moment were denied",
        ),
    ],
)
def test_a_denied_token_gets_the_response_to_an_invalid_one(denied, deny, reason, remembered):
    gate = Gate(deny_list=denied)
    if remembered:
        assert gate.bearer(TOKEN) == (200, "")
    deny(denied)
    assert gate.bearer(TOKEN) == INVALID
    assert gate.challenge == 'Bearer realm="api", error="invalid_token"'
    assert gate.reason == reason
    assert gate.bearer(signed(claims(jti="other", iat=NOW))) == (200, "")


def test_a_denied_token_is_rejected_where_a_token_is_optional(denied):
    gate = Gate(deny_list=denied, required=False, invalid_token_status=403)
    denied.deny_token(TOKEN)
    assert gate.bearer(TOKEN) == (403, INVALID[1])
    assert gate.ask() == (200, "")
    assert len(gate.seen) == 1


def test_a_denied_token_gets_no_insufficient_scope(denied):
    gate = Gate(deny_list=denied, scopes=["orders"])
    assert gate.bearer(TOKEN)[0] == 403
    denied.deny_token(TOKEN)
    assert gate.bearer(TOKEN) == INVALID


def test_a_token_with_lists_in_it_can_be_denied_too(denied):
    gate = Gate(deny_list=denied)
    token = signed(claims(jti="j", roles=["a"]))
    assert gate.bearer(token) == (200, "")
    denied.deny_jti("j", NOW + 60)
    assert gate.bearer(token) == INVALID


@pytest.mark.parametrize("jti", [7, None, "", ["j"]])
def test_a_jti_that_is_not_text_is_ignored(denied, jti):
    gate = Gate(deny_list=denied)
    assert gate.bearer(signed(claims(jti=jti))) == (200, "")


def test_without_the_list_nothing_is_denied_nor_read(denied):
    denied.deny_token(TOKEN)
    assert Gate().bearer(TOKEN) == (200, "")


def test_while_the_store_fails_tokens_are_refused(caplog):
    gate = Gate(deny_list=DenyList(BrokenStore()))
    for _ in range(3):
        assert gate.bearer(TOKEN) == UNCHECKED
    assert gate.reason == "the deny-list cannot be read: the store is down"
    assert gate.stack.store_errors == 3
    assert gate.seen == []
    assert logged(caplog) == [
        "the deny-list cannot be read, 1 tokens were rejected since the last such message: "
        "the store is down"
    ]
    gate.clock.now += 60
    gate.bearer(signed(claims(exp=NOW + 600)))
    assert len(logged(caplog)) == 2
    assert gate.bearer("bad") == INVALID, "a bad token is known without the store"
    assert gate.ask()[0] == 401


def test_the_log_reports_that_the_deny_list_can_be_read_again(caplog):
    class Flaky(MemoryStore):
        down = False

        def get(self, key):
            if self.down:
                raise StoreError("the store is down")
            return super().get(key)

    store = Flaky()
    gate = Gate(deny_list=DenyList(store, staleness=0))
    for store.down in (False, True, True, False, False, True, False):
        gate.bearer(TOKEN)
    assert logged(caplog) == [
        "the deny-list cannot be read, 1 tokens were rejected since the last such message: "
        "the store is down",
        "the deny-list can be read again",
    ]


def test_while_the_store_fails_valid_tokens_pass_with_allow(caplog):
    gate = Gate(deny_list=DenyList(BrokenStore()), on_store_error="allow")
    assert gate.bearer(TOKEN) == (200, "")
    assert gate.bearer("bad") == INVALID
    assert gate.stack.store_errors == 1
    assert logged(caplog) == [
        "the deny-list cannot be read, 1 tokens passed unchecked since the last such message: "
        "the store is down"
    ]


def test_the_response_while_the_store_fails_can_be_replaced():
    gate = Gate(deny_list=DenyList(BrokenStore()), refuse=lambda problem: Problem(418))
    assert gate.bearer(TOKEN)[0] == 418


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_store_error": "ignore"}, 'on_store_error is "allow" or "refuse", not \'ignore\''),
        ({"deny_list": MemoryStore()}, "deny_list: expected a DenyList"),
        ({"deny_list": True}, "deny_list: expected a DenyList, not True"),
    ],
)
def test_an_invalid_setting_raises_an_error_that_names_it(options, words):
    with pytest.raises(ValueError, match=words):
        Gate(**options)


def test_a_leeway_longer_than_denials_are_kept_is_refused(denied):
    with pytest.raises(ValueError, match="leeway: at most 86400 s with a deny_list, not 86401"):
        Gate(deny_list=denied, leeway=86401)
    issuer = {"issuer": "i", "algorithms": ["HS256"], "secret": "s" * 32, "leeway": 86401}
    with pytest.raises(ValueError, match="leeway: at most 86400 s with a deny_list, not 86401"):
        Gate(deny_list=denied, issuers=[issuer])
    assert Gate(leeway=86401).bearer(signed(GOOD)) == (200, "")
