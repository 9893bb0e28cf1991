"""What an attempt to fetch keys changes: pure functions, as tables."""

from __future__ import annotations

import json

import pytest

from wsgigate.auth.jwks_record import (
    JwksAnswer,
    JwksRecord,
    decoded,
    encoded,
    failed,
    merged,
    started,
    succeeded,
)

A, B, C = ({"kid": name} for name in "abc")
GONE = {"gone": True}
T = 1_000_000.0


def after(record: JwksRecord, answer: JwksAnswer, began: float = T) -> JwksRecord:
    return succeeded(record, answer, began, refresh=600.0, cooldown=30.0)


@pytest.mark.parametrize(
    ("known", "found", "used"),
    [
        ([], [A], [A]),
        ([A], [A], [A]),
        ([A], [A, B], [A, B]),
        ([A, B], [B], [B, A | GONE]),
        ([B, A | GONE], [B], [B]),
        ([B, A | GONE], [A, B], [A, B]),
        ([B, A | GONE], [A], [A, B | GONE]),
        ([A], [C], [C, A | GONE]),
    ],
)
def test_a_key_is_dropped_when_a_second_answer_confirms_that_it_is_gone(known, found, used):
    assert list(merged(known, found)) == used


@pytest.mark.parametrize(
    ("max_age", "wait"),
    [(None, 600), (86_400, 600), (300, 300), (60, 60), (15, 60), (0, 60)],
)
def test_the_next_attempt_follows_cache_control_within_bounds(max_age, wait):
    record = after(JwksRecord(), JwksAnswer((A,), max_age=max_age))
    assert (record.earliest, record.due) == (T, T + wait)
    assert (record.at, record.failures, record.error) == (T, 0, "")


def test_an_attempt_for_an_unknown_key_postpones_the_next_one_of_its_kind():
    asked = succeeded(JwksRecord(), JwksAnswer((A,)), T, refresh=600.0, cooldown=30.0, asked=True)
    assert (asked.earliest, asked.due) == (T + 30, T + 600)
    short = succeeded(JwksRecord(), JwksAnswer((A,)), T, refresh=10.0, cooldown=30.0)
    assert (short.earliest, short.due) == (T, T + 30)


def test_whether_a_key_is_gone_is_asked_a_cooldown_later():
    record = after(JwksRecord(), JwksAnswer((A, B)))
    record = after(record, JwksAnswer((B,)), T + 600)
    assert record.keys == (B, A | GONE)
    assert record.due == T + 630
    assert after(record, JwksAnswer((B,)), T + 630).keys == (B,)


def test_an_older_answer_replaces_nothing():
    record = after(JwksRecord(), JwksAnswer((B,), made=T))
    older = after(record, JwksAnswer((A,), made=T - 61), T + 30)
    assert older.keys == (B,)
    assert (older.at, older.failures) == (T, 1)
    assert older.error == "its answer is 61 s older than the last one"
    for made in (T - 60, T + 30, None):  # clocks differ a little; and not every answer has a Date
        assert after(record, JwksAnswer((A, B), made=made), T + 30).keys == (A, B)


def test_an_older_answer_with_the_known_keys_confirms_them():
    """The caches of a content delivery network have answers of different ages."""
    record = after(JwksRecord(), JwksAnswer((A, B), made=T))
    again = after(record, JwksAnswer((B, A), made=T - 3600), T + 600)
    assert (again.keys, again.at, again.failures) == ((A, B), T + 600, 0)
    assert again.made == T
    assert after(again, JwksAnswer((A,), made=T - 3600), T + 1200).failures == 1


def test_an_older_answer_does_not_confirm_that_a_key_is_gone():
    record = after(after(JwksRecord(), JwksAnswer((A, B), made=T)), JwksAnswer((B,), made=T + 600))
    older = after(record, JwksAnswer((B,), made=T), T + 660)
    assert (older.keys, older.failures) == (record.keys, 1)


def test_failures_keep_the_keys_and_wait_for_the_cooldown():
    record = after(JwksRecord(), JwksAnswer((A,)))
    for number in range(1, 4):
        began = T + 600 + 30 * number
        record = failed(record, "why", began, cooldown=30.0)
        assert record.keys == (A,)
        assert (record.earliest, record.due) == (began + 30, began + 30)
        assert (record.at, record.failures, record.error) == (T, number, "why")
    assert record.known(T + 86_399)
    assert not record.known(T + 86_400)
    assert after(record, JwksAnswer((A,)), T + 800).error == ""


def test_without_any_keys_the_first_pauses_are_short():
    record, pauses = JwksRecord(), []
    for _ in range(7):
        record = failed(record, "why", T, cooldown=30.0)
        pauses.append(record.due - T)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert not record.known(T)


def test_an_attempt_in_flight_keeps_all_else():
    record = started(after(JwksRecord(), JwksAnswer((A,))), T + 600, "me")
    assert (record.earliest, record.due, record.claim) == (T + 620, T + 620, "me")
    assert record.keys == (A,)
    assert after(record, JwksAnswer((A,)), T + 600).claim == ""
    assert failed(record, "why", T + 600, cooldown=30.0).claim == ""


def test_weak_keys_that_were_left_out_are_reported_but_no_failure():
    record = after(JwksRecord(), JwksAnswer((A,), left_out=("keys[1]: weak",)))
    assert (record.error, record.failures) == ("keys[1]: weak", 0)


def test_a_record_survives_the_store():
    record = after(JwksRecord(), JwksAnswer((A, B), made=T))
    assert decoded(encoded(record)) == record


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"other": 1}',
        json.dumps({"keys": [7]}).encode(),
        json.dumps({"at": "now"}).encode(),
        b'{"due": Infinity}',
        b'{"failures": null}',
        b'{"error": 7}',
        b'{"claim": []}',
    ],
)
def test_a_value_that_is_none_of_ours_counts_as_empty(value):
    assert decoded(value) == JwksRecord()
