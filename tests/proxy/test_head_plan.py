"""Cached plans for the field names of a response's head."""

from __future__ import annotations

import pytest

from tests.support.objects import bytes_kept
from wsgigate.proxy.response import BadResponse, content_length, plan_for, without_named

FEW = ("Date", "X-Color", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive")


def test_a_plan_has_the_treatment_of_each_field() -> None:
    plan = plan_for(FEW)
    fields = [(name, str(at)) for at, name in enumerate(FEW)]
    assert list(plan.kept(fields)) == [("Date", "0"), ("X-Color", "1")]
    assert (plan.lengths, plan.codings, plan.connections) == ((2,), (3,), (4,))
    assert (plan.own, plan.malformed) == (False, False)


@pytest.mark.parametrize("names", [(), ("Date",), ("Keep-Alive", "Date")])
def test_heads_with_few_fields_have_a_plan(names: tuple[str, ...]) -> None:
    fields = [(name, "") for name in names]
    assert list(plan_for(names).kept(fields)) == [(name, "") for name in names if name == "Date"]


@pytest.mark.parametrize("name", ["location", "Content-Location", "SET-COOKIE"])
def test_fields_with_the_address_of_the_instance_are_marked(name: str) -> None:
    plan = plan_for(("Date", name))
    assert plan.own
    assert list(plan.kept([("Date", ""), (name, "x")])) == [("Date", ""), (name, "x")]


@pytest.mark.parametrize("name", ["", "X Y", "X:", "é"])
def test_a_malformed_name_is_marked(name: str) -> None:
    assert plan_for(("Date", name)).malformed


def test_the_number_of_cached_plans_is_bounded() -> None:
    """An instance may send names that are new each time, and as long as a head can be."""
    long = "X" * 2049
    many = tuple(f"X-{number}" for number in range(65))
    for names in (many[:64], (long[:2048],)):
        assert plan_for(names) is plan_for(names), "it is cached"
    for names in (many, (long,)):
        assert plan_for(names) is not plan_for(names), "it is too large for the cache"
    assert list(plan_for((long,)).kept([(long, "y")])) == [(long, "y")]
    assert list(plan_for(many).kept([(name, "y") for name in many]))[64] == ("X-64", "y")
    plans = [plan_for((f"X-{number}",)) for number in range(1025)]
    assert plan_for(("X-1",)) is plans[1]
    assert plan_for(("X-0",)) is not plans[0], "1024 newer plans took its place"


def test_the_cache_of_connection_options_is_bounded() -> None:
    headers = [("X-A", "1"), ("X-B", "2"), ("Cache-Control", "no-store")]
    for padding in ("", ", " + "y" * 2048):
        left = without_named(headers, "x-a, cache-control" + padding)
        assert left == [("X-B", "2"), ("Cache-Control", "no-store")]
    assert without_named(headers, "close, keep-alive") is headers
    with pytest.raises(BadResponse):
        without_named(headers, "x," * 100)
    padding = ", " + "y" * 1000
    names = [f"x-{number}" for number in range(2000)]
    assert bytes_kept(lambda: [without_named(headers, name + padding) for name in names]) < 1e6
    assert bytes_kept(lambda: [without_named(headers, name + 3 * padding) for name in names]) < 1e5


def test_a_content_length_consists_of_digits_only() -> None:
    assert content_length(" 12\t") == 12
    assert content_length("9" * 18) == 10**18 - 1
    for value in ("1, 1", "+1", "1\xa0", "\xb2", "", "9" * 19, "1_0"):
        with pytest.raises(BadResponse):
            content_length(value)
