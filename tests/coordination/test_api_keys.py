"""API keys in a store: every worker sees a change within the staleness, and floods stay bounded."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.support.waiting import until
from wsgigate.auth.api_keys import new_key
from wsgigate.coordination.api_keys import (
    RECHECK,
    UNKNOWN,
    USED_EVERY,
    ApiKeys,
    KeyRejected,
    UnknownRecord,
)
from wsgigate.store import Store, StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

NOW = 1_764_547_200.0
CLIENT = {"REMOTE_ADDR": "192.0.2.7"}


class Counting(MemoryStore):
    """A store that counts its reads, and fails while *down* is set."""

    reads = 0
    down = False

    def get(self, key: str) -> tuple[bytes | None, float]:
        self.reads += 1
        if self.down:
            raise StoreError("the store is down")
        return super().get(key)


@pytest.fixture
def time() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def store(time: FakeClock) -> Counting:
    return Counting(clock=time)


@pytest.fixture
def worker(store: Counting, time: FakeClock, clock: FakeClock) -> Any:
    return lambda **options: ApiKeys(store, clock=clock, now=time, **options)


def why(keys: ApiKeys, key: str, client: dict[str, Any] = CLIENT) -> str:
    """Return why *key* is rejected; empty if it is not."""
    try:
        keys.find(key, client)
    except KeyRejected as error:
        return str(error)
    return ""


def test_a_created_key_is_valid_at_once_in_every_worker(worker: Any) -> None:
    one, other = worker(), worker()
    assert why(other, new_key("wg")) == "the key is unknown"
    key, record = one.create("acme", plan="gold", scopes=["orders:read"], name="nightly")
    for keys in (one, other):
        identity = keys.find(key, CLIENT)
        assert (identity.subject, identity.client) == ("acme", record.id)
        assert identity.claims["plan"] == "gold"


def test_a_revocation_reaches_the_other_worker_within_the_staleness(
    worker: Any, clock: FakeClock
) -> None:
    one, other = worker(), worker()
    key, record = one.create("acme")
    assert why(other, key) == ""
    one.revoke(record.id)
    assert why(one, key) == f"key {record.id} was revoked"
    clock.advance(0.5)
    assert why(other, key) == f"key {record.id} was revoked"


def test_both_keys_are_valid_during_the_overlap_of_a_rotation(
    worker: Any, clock: FakeClock, time: FakeClock
) -> None:
    one, other = worker(), worker()
    old, record = one.create("acme", plan="gold")
    assert why(other, old) == ""
    new, rotated = one.rotate(record.id, overlap=60)
    assert rotated.id == record.id
    clock.advance(0.5)
    assert [why(other, old), why(other, new)] == ["", ""]
    time.advance(60)
    assert why(other, old) == f"key {record.id} has expired or was replaced"
    assert why(other, new) == ""
    one.revoke(record.id)
    clock.advance(0.5)
    assert why(other, new) == f"key {record.id} was revoked", "all keys of the record"


def test_a_key_expires_in_the_cache_too(worker: Any, time: FakeClock, clock: FakeClock) -> None:
    keys = worker()
    key, _ = keys.create("acme", lasts=60)
    time.advance(59.9)
    assert why(keys, key) == ""
    time.advance(0.1)
    assert "has expired" in why(keys, key)
    clock.advance(RECHECK)
    assert "has expired" in why(keys, key)


def test_a_known_key_costs_one_read_of_the_version_per_staleness(
    worker: Any, store: Counting, clock: FakeClock
) -> None:
    keys = worker()
    key, _ = keys.create("acme")
    assert why(keys, key) == ""
    before = store.reads
    for _ in range(100):
        assert why(keys, key) == ""
    assert store.reads == before
    clock.advance(0.5)
    assert [why(keys, key), why(keys, key)] == ["", ""]
    assert store.reads == before + 1


def test_a_lost_version_is_noticed_within_half_a_minute(
    worker: Any, store: Counting, clock: FakeClock
) -> None:
    one, other = worker(), worker()
    key, record = one.create("acme")
    assert why(other, key) == ""
    version = store.get("api-keys/version")[0]
    one.revoke(record.id)
    store.swap("api-keys/version", store.get("api-keys/version")[0], version, 1e6)
    clock.advance(RECHECK)
    assert "was revoked" in why(other, key)


def test_junk_is_refused_without_a_look_up(worker: Any, store: Counting) -> None:
    keys = worker()
    key, _ = keys.create("acme")
    assert why(keys, key) == ""
    before = store.reads
    junk = [key[:-1] + ("a" if key[-1] != "a" else "b"), "x" * 8000, "", "\udcff", "é"]
    assert {why(keys, each) for each in junk} == {"the key is malformed, or its checksum is wrong"}
    assert store.reads == before


def test_an_unknown_key_is_looked_up_once(worker: Any, store: Counting) -> None:
    keys = worker()
    unknown = new_key("wg")
    why(keys, unknown)
    before = store.reads
    assert {why(keys, unknown) for _ in range(50)} == {"the key is unknown"}
    assert store.reads == before


def test_a_flood_of_unknown_keys_is_cut_by_address_and_known_keys_pass(
    worker: Any, store: Counting, clock: FakeClock
) -> None:
    keys = worker(cache_size=50)
    known, _ = keys.create("acme")
    assert why(keys, known) == ""
    before = store.reads
    answers = [why(keys, new_key("wg")) for _ in range(500)]
    assert answers.count("the key is unknown") == UNKNOWN.most
    assert store.reads - before == UNKNOWN.most, "the rest did not reach the store"
    assert why(keys, known) == ""
    clock.advance(RECHECK)
    assert why(keys, known) == "", "it was valid before, so it is looked up again"
    fresh, _ = keys.create("acme")
    for _ in range(UNKNOWN.most):
        why(keys, new_key("wg"))
    with pytest.raises(KeyRejected) as raised:
        keys.find(new_key("wg"), CLIENT)
    assert 0 < raised.value.wait <= UNKNOWN.window
    assert why(keys, fresh, {"REMOTE_ADDR": "198.51.100.1"}) == "", "other clients are not affected"
    clock.advance(UNKNOWN.window)
    assert why(keys, fresh) == ""


def test_the_same_wrong_keys_again_do_not_count_as_new_ones(worker: Any) -> None:
    keys = worker()
    wrong = [new_key("wg") for _ in range(10)]
    for _ in range(50):
        for each in wrong:
            assert why(keys, each) == "the key is unknown"
    key, _ = keys.create("acme")
    assert why(keys, key) == ""


def test_more_keys_than_the_cache_holds_are_all_valid(worker: Any) -> None:
    keys = worker(cache_size=2)
    made = [keys.create("acme").key for _ in range(7)]
    assert [why(keys, key) for key in made * 2] == [""] * 14


@pytest.mark.parametrize("value", [b"", b"{}", b"[" * 5000, b"\xff", b'{"id": "other"}', b"null"])
def test_a_damaged_record_refuses_its_key_and_is_logged(
    worker: Any,
    store: Counting,
    clock: FakeClock,
    value: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = worker()
    key, record = keys.create("acme")
    place = f"api-keys/record/{record.id}"
    store.swap(place, store.get(place)[0], value, 1e6)
    assert why(keys, key) == "the key is unknown"
    assert f"The record of API key {record.id} in the store is damaged" in caplog.text
    assert key not in caplog.text
    assert keys.records() == []


def test_a_digest_that_names_another_record_opens_nothing(worker: Any, store: Counting) -> None:
    keys = worker()
    key, _ = keys.create("acme")
    _, other = keys.create("umbrella")
    [place] = [
        place for place, value in store.items("api-keys/secret/") if value != other.id.encode()
    ]
    store.swap(place, store.get(place)[0], other.id.encode(), 1e6)
    assert why(worker(), key) == "the key is unknown"


def test_the_store_holds_no_key(worker: Any, store: Counting) -> None:
    keys = worker()
    key, record = keys.create("acme")
    new, _ = keys.rotate(record.id)
    content = repr(list(store.items("")))
    for each in (key, new):
        assert each not in content
        assert each.partition("_")[2][:12] not in content


def test_the_last_use_is_recorded_at_most_once_a_minute(
    worker: Any, store: Counting, time: FakeClock, clock: FakeClock
) -> None:
    keys = worker()
    key, record = keys.create("acme")
    keys.create("acme")
    assert keys.last_used() == {}
    assert why(keys, key) == ""
    until(lambda: keys.last_used() == {record.id: NOW})
    time.advance(30)
    clock.advance(30)
    assert why(keys, key) == ""
    assert keys.last_used() == {record.id: NOW}
    time.advance(USED_EVERY)
    clock.advance(USED_EVERY)
    assert why(keys, key) == ""
    until(lambda: keys.last_used() == {record.id: NOW + 30 + USED_EVERY})
    keys.close()


def test_a_failing_store_raises_and_verified_keys_stay_known(
    worker: Any, store: Counting, clock: FakeClock
) -> None:
    keys = worker()
    key, _ = keys.create("acme")
    assert why(keys, key) == ""
    store.down = True
    clock.advance(0.4)
    assert why(keys, key) == "", "within the staleness"
    clock.advance(0.1)
    with pytest.raises(StoreError):
        keys.find(key, CLIENT)
    cached = keys.find_cached(key)
    assert cached is not None
    assert cached.subject == "acme"
    assert keys.find_cached(new_key("wg")) is None
    store.down = False
    assert why(keys, key) == ""


@pytest.mark.parametrize("id_", ["nobody", "", "x" * 500, "../record", "a\nb", "é"])
@pytest.mark.parametrize("method", ["revoke", "rotate"])
def test_an_unknown_id_is_an_error(worker: Any, method: str, id_: str) -> None:
    with pytest.raises(UnknownRecord, match=r"^id: there is no key"):
        getattr(worker(), method)(id_)


def test_a_change_by_this_worker_throttles_no_known_key(worker: Any) -> None:
    keys = worker()
    known, _ = keys.create("acme")
    assert why(keys, known) == ""
    for _ in range(UNKNOWN.most):
        why(keys, new_key("wg"))
    keys.create("umbrella")
    assert why(keys, known) == ""


def test_records_are_listed_and_a_revoked_one_stays(worker: Any) -> None:
    keys = worker()
    made = {keys.create(owner).record.id: owner for owner in ("acme", "umbrella")}
    gone = next(iter(made))
    keys.revoke(gone)
    listed = {record.id: record for record in keys.records()}
    assert {id_: record.owner for id_, record in listed.items()} == made
    assert listed[gone].revoked == NOW


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"owner": ""}, "owner: "),
        ({"owner": "acme", "plan": "a b"}, "plan: "),
        ({"owner": "acme", "scopes": "read"}, "scopes: "),
        ({"owner": "acme", "scopes": ["a b"]}, "scopes: "),
        ({"owner": "acme", "lasts": 0}, "expires: "),
        ({"owner": "acme", "lasts": 1e12}, "expires: "),
        ({"owner": "acme", "name": "a\nb"}, "name: "),
    ],
)
def test_an_invalid_argument_creates_nothing(
    worker: Any, options: dict[str, Any], error: str
) -> None:
    keys = worker()
    with pytest.raises(ValueError, match=f"^{error}"):
        keys.create(**options)
    assert keys.records() == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "store: "),
        ({"store": "memory:", "staleness": 61}, "staleness: "),
        ({"store": "memory:", "cache_size": 0}, "cache_size: "),
        ({"store": "memory:", "prefix": "a-b"}, "prefix: "),
        ({"file": "keys.yaml"}, "file: "),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        ApiKeys(**options)


def test_keys_in_lmdb_are_those_of_every_process(tmp_path: Any) -> None:
    one, other = (ApiKeys(f"lmdb:{tmp_path / 'data'}", staleness=0) for _ in range(2))
    key, record = one.create("acme")
    assert why(other, key) == ""
    other.revoke(record.id)
    assert "was revoked" in why(one, key)
    one.close()
    other.close()


def test_namespaces_separate_keys(store: Store) -> None:
    shop, bank = (ApiKeys(store, namespace=name) for name in ("shop", "bank"))
    key, _ = shop.create("acme")
    assert [why(shop, key), why(bank, key)] == ["", "the key is unknown"]
    assert bank.records() == []


def test_nothing_but_the_reason_is_logged(worker: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = worker()
    key, record = keys.create("acme")
    keys.rotate(record.id)
    why(keys, key)
    keys.revoke(record.id)
    why(keys, key)
    assert key not in caplog.text
