"""Requests are split by weight, a key always to the same branch."""

from __future__ import annotations

import pytest

from wsgigate.middleware.splitter import Split

KEYS = [f"user-{number}" for number in range(10_000)]


def by_key(weights: list[tuple[str, float]], salt: str = "") -> list[str]:
    split = Split(weights, salt)
    return [split.choose(key, lambda: 0.0) for key in KEYS]


@pytest.mark.parametrize("share", [1, 5, 20, 50])
def test_keys_are_divided_by_weight(share: int) -> None:
    chosen = by_key([("old", 100 - share), ("new", share)]).count("new")
    expected = len(KEYS) * share / 100
    assert abs(chosen - expected) < 5 * expected**0.5


def test_a_key_always_goes_to_the_same_whatever_order_they_are_listed_in() -> None:
    first = by_key([("old", 95), ("new", 5)])
    assert first == by_key([("new", 5), ("old", 95)])
    assert first == by_key([("old", 9.5), ("new", 0.5)])
    assert Split([("old", 95), ("new", 5)]).choose("user-7", lambda: 0.0) == first[7]


def test_where_a_key_goes_is_the_same_on_every_machine() -> None:
    split = Split([("old", 50), ("new", 50)], "orders")
    assert "".join(split.choose(key, lambda: 0.0)[0] for key in KEYS[:16]) == "onoooonooonnnnon"


def test_keys_of_a_branch_stay_there_when_its_share_grows() -> None:
    before, after = (by_key([("old", 100 - share), ("new", share)]) for share in (5, 20))
    assert all(then == "new" for now, then in zip(before, after, strict=True) if now == "new")


def test_keys_move_only_to_a_branch_that_is_added() -> None:
    before = by_key([("a", 50), ("b", 50)])
    after = by_key([("a", 50), ("b", 50), ("c", 10)])
    assert all(then in (now, "c") for now, then in zip(before, after, strict=True))


def test_another_salt_chooses_other_keys() -> None:
    one, other = (by_key([("old", 95), ("new", 5)], salt) for salt in ("orders", "users"))
    both = sum(a == b == "new" for a, b in zip(one, other, strict=True))
    assert both < one.count("new") / 4


@pytest.mark.parametrize(
    ("number", "name"), [(0.0, "a"), (0.2499, "a"), (0.25, "b"), (0.999999, "b")]
)
def test_without_a_key_chance_decides(number: float, name: str) -> None:
    assert Split([("a", 1), ("none", 0), ("b", 3)]).choose(None, lambda: number) == name


def test_weight_0_gets_nothing() -> None:
    assert set(by_key([("a", 1), ("b", 0)])) == {"a"}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([], "above 0"),
        ([("a", 0)], "above 0"),
        ([("a", 1), ("a", 1)], "names must be unique"),
        ([("a", -1), ("b", 2)], "0 or more"),
        ([("a", float("inf"))], "0 or more"),
        ([("a", float("nan"))], "0 or more"),
    ],
)
def test_invalid_weights_raise(weights: list[tuple[str, float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Split(weights)
