"""The rule of concurrent requests: admission, release, renewal and expiry of leases."""

from __future__ import annotations

import pytest

from wsgigate.middleware.concurrency import LARGEST, Concurrency

A, B, C = (bytes([letter]) * 8 for letter in b"abc")


def test_at_most_the_limit_is_admitted():
    rule = Concurrency(2, 10.0)
    one, _, first = rule.acquire(None, 100.0, A)
    two, ttl, second = rule.acquire(one, 101.0, B)
    same, _, third = rule.acquire(two, 102.0, C)
    assert [each.allowed for each in (first, second, third)] == [True, True, False]
    assert [each.remaining for each in (first, second, third)] == [1, 0, 0]
    assert same is two
    assert third.retry_after == 8.0
    assert ttl == pytest.approx(10.001)


def test_a_released_slot_is_free_at_once():
    rule = Concurrency(1, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    free, _, _ = rule.release(held, 100.5, A)
    assert free is None
    assert rule.acquire(free, 100.5, B)[2].allowed


def test_a_lease_released_twice_frees_one_slot():
    rule = Concurrency(2, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    held, _, _ = rule.acquire(held, 100.0, B)
    held, _, _ = rule.release(held, 101.0, A)
    again, _, _ = rule.release(held, 101.0, A)
    assert again is held
    assert rule.acquire(held, 101.0, C)[2].remaining == 0


def test_releasing_an_expired_lease_removes_other_expired_leases():
    rule = Concurrency(2, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    held, _, _ = rule.acquire(held, 105.0, B)
    left, _, _ = rule.release(held, 112.0, A)
    assert left == held[16:]
    assert rule.release(left, 116.0, B)[0] is None


def test_the_shortest_lease_is_a_tenth_of_a_second():
    assert Concurrency(1, 0.1).lease == 0.1


@pytest.mark.parametrize(("later", "allowed"), [(9.9, False), (10.0, True), (1e6, True)])
def test_a_lease_that_is_not_renewed_expires(later, allowed):
    rule = Concurrency(1, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    assert rule.acquire(held, 100.0 + later, B)[2].allowed == allowed


def test_a_renewed_lease_is_kept():
    rule = Concurrency(1, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    held, ttl, _ = rule.renew(held, 108.0, [A])
    assert ttl == pytest.approx(10.001)
    assert not rule.acquire(held, 117.9, B)[2].allowed
    assert rule.acquire(held, 118.0, B)[2].allowed


def test_a_lease_that_expired_while_its_worker_was_suspended_is_restored():
    rule = Concurrency(1, 10.0)
    held, _, _ = rule.acquire(None, 100.0, A)
    held, _, other = rule.acquire(held, 120.0, B)
    held, _, _ = rule.renew(held, 121.0, [A])
    assert other.allowed
    verdict = rule.acquire(held, 121.0, C)[2]
    assert (verdict.allowed, verdict.remaining) == (False, 0)
    held, _, _ = rule.release(held, 121.0, B)
    assert not rule.acquire(held, 121.0, C)[2].allowed


def test_a_clock_that_is_set_back_keeps_no_place_for_longer_than_a_lease():
    rule = Concurrency(1, 10.0)
    held, _, _ = rule.acquire(None, 10_000.0, A)
    same, _, refused = rule.acquire(held, 100.0, B)
    assert not refused.allowed
    assert rule.acquire(same, 110.1, B)[2].allowed


@pytest.mark.parametrize("old", [b"", b"x", b"x" * 15, b"x" * 17])
def test_bytes_of_others_count_as_none(old):
    assert Concurrency(1, 10.0).acquire(old, 100.0, A)[2].allowed


def test_all_that_is_allowed_fits_into_a_stores_value():
    rule = Concurrency(LARGEST, 3600.0)
    held = None
    leases = [number.to_bytes(8, "big") for number in range(LARGEST + 50)]
    held, _, _ = rule.renew(held, 100.0, leases)
    assert len(held) == LARGEST * 16 <= 64 * 1024
    assert not rule.acquire(held, 100.0, A)[2].allowed


@pytest.mark.parametrize(
    ("limit", "lease", "words"),
    [
        (0, 1, "limit: a whole number of 1 to 4000, not 0"),
        (4001, 1, "limit: "),
        (True, 1, "limit: "),
        (1.0, 1, "limit: "),
        (1, 0.05, "lease: 0.1 to 3600 seconds"),
        (1, 3601, "lease: "),
        (1, "1s", "lease: "),
        (1, True, "lease: "),
    ],
)
def test_wrong_numbers_are_refused(limit, lease, words):
    with pytest.raises(ValueError, match=words):
        Concurrency(limit, lease)
