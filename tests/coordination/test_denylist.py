"""Denied tokens are denied by all workers of a store within the staleness."""

from __future__ import annotations

import math
import struct
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.objects import texts_kept
from wsgigate.auth.jwt import mint, read_compact
from wsgigate.coordination.denylist import (
    GRACE,
    LONGEST,
    RECHECK,
    DenyList,
    covers,
    extended_subject,
    identity,
)
from wsgigate.store import Store, StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_764_547_200.0
END = NOW + 3600


class Counting(MemoryStore):
    """A store that counts its reads, and fails while *down* is set."""

    reads = 0
    down = False

    def get(self, key):
        self.reads += 1
        if self.down:
            raise StoreError("the store is down")
        return super().get(key)


@pytest.fixture
def time():
    return FakeClock(NOW)


@pytest.fixture
def clock():
    return FakeClock(0.0)


@pytest.fixture
def store(time):
    return Counting(clock=time)


def known(**claims):
    """Return a token and what it is denied by."""
    claims = {"jti": "j-1", "iat": NOW, **claims}
    token = mint(SECRET, "HS256", claims.pop("sub", "ann"), 3600, NOW, **claims)
    return token, identity(read_compact(token).signed, claims | {"sub": "ann"})


TOKEN, ANN = known()


def test_one_token_is_denied_and_no_other(store):
    denied = DenyList(store)
    assert denied.why_denied(ANN) == ""
    assert denied.deny_token(TOKEN) == END
    assert denied.why_denied(ANN) == "the token was denied"
    assert denied.why_denied(known(other=1)[1]) == ""


def test_a_token_is_denied_whatever_its_signature(store):
    """Anybody can make another good signature of one by an elliptic curve."""
    denied = DenyList(store)
    head, _, _ = TOKEN.rpartition(".")
    denied.deny_token(f"{head}.AAAA")
    assert denied.why_denied(ANN)


def test_a_token_is_denied_by_its_jti(store):
    denied = DenyList(store)
    denied.deny_jti("j-1", END)
    assert denied.why_denied(ANN) == "its jti was denied"
    assert denied.why_denied(known(jti="j-2")[1]) == ""
    assert denied.why_denied(ANN._replace(jti="")) == ""


@pytest.mark.parametrize(
    ("issued", "denied"),
    [(NOW - 1, True), (NOW, True), (NOW + 0.5, False), (NOW + 1, False), (None, True), (0, True)],
)
def test_tokens_issued_to_a_subject_before_a_moment_are_denied(store, issued, denied):
    deny_list = DenyList(store)
    deny_list.deny_subject("ann", NOW + 0.5, END)
    reason = deny_list.why_denied(ANN._replace(issued=issued))
    assert reason == ("tokens issued to its subject before a moment were denied" if denied else "")
    assert deny_list.why_denied(identity(b"", {"sub": "bob", "iat": NOW})) == ""
    assert deny_list.why_denied(identity(b"x", {"iat": 0})) == ""


def test_a_denial_takes_back_no_earlier_one(store, time, clock):
    denied = DenyList(store, clock=clock, staleness=0)
    assert denied.deny_subject("ann", NOW + 10, END) == END
    assert denied.deny_subject("ann", NOW - 10, NOW + 60) == END
    assert denied.why_denied(ANN)
    assert denied.deny_jti("j-1", END) == END
    assert denied.deny_jti("j-1", NOW + 60) == END
    assert denied.deny_jti("j-1", END + 60) == END + 60
    time.now = END + GRACE - 1
    assert denied.why_denied(ANN)


def test_a_denial_is_kept_until_the_end_and_a_day_for_the_clocks(store, time, clock):
    denied = DenyList(store, clock=clock, staleness=0)
    denied.deny_token(TOKEN)
    time.now = END + GRACE - 1
    assert denied.why_denied(ANN)
    time.now = END + GRACE + 1
    clock.advance(RECHECK)
    assert denied.why_denied(ANN) == ""


def test_a_token_that_has_expired_is_denied_for_a_day(store, time):
    denied = DenyList(store)
    denied.deny_jti("j-1", 0.0)
    time.now = NOW + GRACE - 1
    assert denied.why_denied(ANN)


def test_the_store_is_read_now_and_then_and_not_for_each_request(store, clock):
    denied = DenyList(store, clock=clock)
    denied.why_denied(ANN)
    assert store.reads == 4, "the mark, the token, its jti and its subject"
    for _ in range(3):
        clock.advance(0.25)
        denied.why_denied(ANN)
    assert store.reads == 4
    clock.advance(0.25)
    denied.why_denied(ANN)
    assert store.reads == 5, "the mark"
    denied.why_denied(known(other=1)[1])
    assert store.reads == 8, "another token"


def test_another_worker_reads_the_list_again_when_its_copy_is_too_old(store, clock):
    one, other = DenyList(store, clock=clock), DenyList(store, clock=clock)
    assert one.why_denied(ANN) == other.why_denied(ANN) == ""
    clock.advance(0.5)
    one.deny_token(TOKEN)
    assert one.why_denied(ANN), "at once, where it was denied"
    clock.advance(0.25)
    assert other.why_denied(ANN) == ""
    clock.advance(0.25)
    assert other.why_denied(ANN)


def test_another_worker_sees_each_denial_not_only_the_first(store, clock):
    """The mark is another one each time: two that are the same would hide the second denial."""
    one, other = DenyList(store, clock=clock), DenyList(store, clock=clock)
    tokens = [known(number=number) for number in range(4)]
    for token, identified in tokens:
        assert other.why_denied(identified) == ""
        one.deny_token(token)
        clock.advance(1.0)
        assert other.why_denied(identified) == "the token was denied"
        clock.advance(1.0)


def test_without_staleness_another_worker_sees_a_denial_at_once(store, clock):
    one, other = DenyList(store), DenyList(store, clock=clock, staleness=0)
    assert other.why_denied(ANN) == ""
    one.deny_jti("j-1", END)
    assert other.why_denied(ANN)


def test_a_mark_that_was_lost_delays_a_denial_and_no_more(store, clock):
    """The process that denied was killed between its two writes."""
    denied = DenyList(store, clock=clock)
    assert denied.why_denied(ANN) == ""
    mark = store.get("deny/mark")[0]
    DenyList(store).deny_token(TOKEN)
    store.swap("deny/mark", store.get("deny/mark")[0], mark, 60)
    clock.advance(RECHECK - 1)
    assert denied.why_denied(ANN) == ""
    clock.advance(1)
    assert denied.why_denied(ANN)


def test_the_entry_is_written_before_the_mark(time):
    written = []

    class Noting(MemoryStore):
        def update(self, key, change):
            written.append(key.rpartition("/")[0] or key)
            return super().update(key, change)

    DenyList(Noting(clock=time)).deny_token(TOKEN)
    assert written == ["deny/token", "deny"]


def test_a_denial_during_a_read_of_the_mark_applies_at_once(time, clock):
    class Denying(MemoryStore):
        """A store that denies the token while another thread has the earlier mark in its hands."""

        during = None

        def get(self, key):
            found = super().get(key)
            during, self.during = self.during, None
            if during is not None:
                during()
            return found

    store = Denying(clock=time)
    denied = DenyList(store, staleness=1.0, clock=clock)
    denied.deny_jti("another", END)
    assert denied.why_denied(ANN) == ""
    clock.advance(1.0)
    store.during = lambda: denied.deny_token(TOKEN)
    assert denied.why_denied(ANN) == ""
    assert denied.why_denied(ANN) == "the token was denied"


def test_a_failing_store_raises_once_the_cached_copy_is_too_old(store, clock):
    denied = DenyList(store, clock=clock)
    denied.why_denied(ANN)
    store.down = True
    assert denied.why_denied(ANN) == ""
    with pytest.raises(StoreError):
        denied.why_denied(known(other=1)[1])
    clock.advance(1)
    with pytest.raises(StoreError):
        denied.why_denied(ANN)
    with pytest.raises(StoreError):
        DenyList(BrokenStore()).deny_token(TOKEN)
    store.down = False
    assert denied.why_denied(ANN) == ""


def test_the_number_of_remembered_tokens_is_bounded(store, clock):
    denied, tokens = DenyList(store, clock=clock, cache_size=3), []
    for number in range(10):
        tokens.append(known(number=number)[1])
        denied.why_denied(tokens[-1])
        remembered = texts_kept(denied, but=[store]) & {each.token for each in tokens}
        assert 0 < len(remembered) <= 3
    none = DenyList(store, clock=clock, cache_size=0)
    none.why_denied(ANN)
    store.reads = 0
    none.why_denied(ANN)
    assert store.reads == 3


@pytest.mark.parametrize("value", [b"", b"x", bytes(7), struct.pack(">dd", math.nan, 1.0)])
@pytest.mark.parametrize("entry", [ANN.token, ANN.jti, ANN.subject])
def test_an_entry_that_cannot_be_read_denies(store, entry, value):
    store.swap(f"deny/{entry}", None, value, 60)
    assert DenyList(store).why_denied(ANN)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e10), st.floats(0, 1e10)), min_size=1), st.floats(0, 1e10))
def test_denials_of_one_subject_add_up(denials, issued):
    value = None
    for before, until in denials:
        value, end = extended_subject(value, before, until)
    assert end == max(until for _, until in denials)
    assert covers("subject/x", value, issued) is any(issued < before for before, _ in denials)


def test_the_store_sees_no_token_and_no_name(store):
    denied = DenyList(store)
    denied.deny_token(TOKEN)
    denied.deny_jti("ann's token", END)
    denied.deny_subject("ann " * 200, NOW, END)
    kept = list(store.items(""))
    assert len(kept) == 4
    assert all(len(key) < 100 and len(value) <= 16 for key, value in kept)
    assert "ann" not in repr(kept)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda one: one.deny_token("abc"), "token: not three parts of base64url"),
        (lambda one: one.deny_token("x" * 9000), "token: a token of 9000 characters"),
        (
            lambda one: one.deny_token(mint(SECRET, "HS256", "a", exp=None)),
            "token: .* exp",
        ),
        (lambda one: one.deny_token(TOKEN, "soon"), "until: a Unix time in seconds, not 'soon'"),
        (lambda one: one.deny_token(TOKEN, NOW + 2 * LONGEST), "until: .* at most ten years"),
        (lambda one: one.deny_jti("", END), "jti: a text of 1 to 1024 characters, not str"),
        (lambda one: one.deny_jti(7, END), "jti: a text of 1 to 1024 characters, not int"),
        (lambda one: one.deny_jti("j" * 1025, END), "jti: a text"),
        (lambda one: one.deny_jti("j", None), "until: a Unix time in seconds, not None"),
        (lambda one: one.deny_jti("j", True), "until: a Unix time in seconds, not True"),
        (lambda one: one.deny_jti("j", math.nan), "until: a Unix time in seconds, not nan"),
        (lambda one: one.deny_jti("j", -1), "until: a Unix time in seconds, not -1"),
        (lambda one: one.deny_subject("", NOW, END), "sub: a text"),
        (lambda one: one.deny_subject("a", math.inf, END), "before: a Unix time"),
        (lambda one: one.deny_subject("a", NOW, 10**400), "until: a Unix time"),
    ],
)
def test_an_invalid_denial_raises_an_error_that_names_it_and_changes_nothing(store, call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(DenyList(store))
    assert TOKEN not in str(caught.value)
    assert list(store.items("")) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"staleness": -1}, "staleness: 0 to 60 seconds, not -1"),
        ({"staleness": 61}, "staleness"),
        ({"staleness": math.nan}, "staleness"),
        ({"staleness": "1"}, "staleness"),
        ({"cache_size": -1}, "cache_size: a number of tokens, 0 or more, not -1"),
        ({"cache_size": True}, "cache_size"),
        ({"store": None}, "store: a store or the URL of one, not None"),
        ({"store": "sqlite:"}, 'a store is "memory:"'),
    ],
)
def test_an_invalid_setting_raises_an_error_that_names_it(settings, words):
    with pytest.raises(ValueError, match=words):
        DenyList(**{"store": MemoryStore(), **settings})


def test_lists_of_one_folder_share_what_is_denied(tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    one, other = DenyList(url), DenyList(url, staleness=0)
    assert other.why_denied(ANN) == ""
    one.deny_token(TOKEN)
    assert other.why_denied(ANN)
    one.close()
    other.close()


def test_the_folder_of_the_store_is_made_at_the_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    denied = DenyList("lmdb:")
    denied.close()
    assert list(tmp_path.iterdir()) == []
    denied.deny_token(TOKEN)
    assert list(tmp_path.iterdir()) != []
    assert denied.why_denied(ANN)
    denied.close()


def test_a_store_that_was_given_is_not_closed(store):
    closed = []
    store.close = partial(closed.append, True)
    assert isinstance(store, Store)
    DenyList(store).close()
    assert not closed
