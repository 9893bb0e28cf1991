"""The rules of stored responses: which are stored, for how long, and who gets them."""

from __future__ import annotations

import pytest

from wsgigate.middleware.stale import (
    Freshness,
    directives,
    may_serve,
    selecting,
    storable,
    varying,
)

NOW = 1_764_547_200.0
DATE = "Mon, 01 Dec 2025 00:00:00 GMT"
LATER = "Mon, 01 Dec 2025 00:10:00 GMT"

Fields = list[tuple[str, str]]


def kept(
    fields: Fields, status: int = 200, *, credentials: bool = False, asked: str = ""
) -> Freshness | None:
    return storable(status, fields, credentials=credentials, asked=asked, now=NOW, stale_for=3600)


def cache(value: str) -> Fields:
    return [("Cache-Control", value)]


@pytest.mark.parametrize(
    ("fields", "status", "fresh_for", "stale_for"),
    [
        ([], 200, 0, 3600),
        ([], 203, 0, 3600),
        ([], 301, 0, 3600),
        ([], 308, 0, 3600),
        (cache("max-age=60"), 200, 60, 3600),
        (cache('max-age="60"'), 200, 60, 3600),
        (cache("MAX-AGE = 60 , public"), 200, 60, 3600),
        (cache("max-age=60, stale-if-error=86400"), 200, 60, 86400),
        (cache("max-age=60, stale-if-error=0"), 200, 60, 0),
        (cache("max-age=0, stale-if-error=5"), 200, 0, 5),
        (cache("max-age=60, s-maxage=30"), 200, 30, 0),  # as proxy-revalidate: not stale
        (cache("s-maxage=30, stale-if-error=5"), 200, 30, 5),
        (cache("max-age=60, max-age=30"), 200, 30, 3600),
        (cache("max-age=30, max-age=60"), 200, 30, 3600),
        (cache(f"max-age=30, max-age={'9' * 5000}"), 200, 30, 3600),
        ([("Expires", "Mon Dec  1 00:10:00 2025"), ("Date", DATE)], 200, 600, 3600),
        ([*cache("max-age=60"), *cache("stale-if-error=7")], 200, 60, 7),
        (cache("max-age=99999999999999999999"), 200, 2**31, 3600),
        ([("Expires", LATER), ("Date", DATE)], 200, 600, 3600),
        ([("Expires", LATER)], 200, 600, 3600),
        ([*cache("max-age=60"), ("Expires", LATER), ("Date", DATE)], 200, 60, 3600),
        (cache("stale-if-error=5"), 200, 0, 5),
        ([("Pragma", "no-cache"), *cache("max-age=9")], 200, 9, 3600),
    ],
)
def test_a_storable_response_has_its_times(
    fields: Fields, status: int, fresh_for: float, stale_for: float
) -> None:
    found = storable(status, fields, credentials=False, now=NOW, stale_for=3600)
    assert found is not None
    assert (found.fresh_for, found.stale_for) == (fresh_for, stale_for)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 201),
        ([], 204),
        ([], 206),
        ([], 302),
        ([], 304),
        ([], 404),
        ([], 500),
        (cache("no-store"), 200),
        (cache("No-Store, max-age=60"), 200),
        (cache("private"), 200),
        (cache('private="X-User", max-age=60'), 200),
        (cache("no-cache"), 200),
        (cache('no-cache="Set-Cookie"'), 200),
        (cache("max-age=60, must-revalidate"), 200),
        (cache("max-age=60, must-revalidate, stale-if-error=60"), 200),
        (cache("max-age=60, proxy-revalidate"), 200),
        (cache("max-age=0"), 200),  # said to be used up at once
        (cache("max-age=soon"), 200),
        (cache("max-age=-1"), 200),
        (cache("s-maxage=0"), 200),
        ([("Expires", "0")], 200),
        ([("Expires", DATE), ("Date", LATER)], 200),
        ([("Pragma", "no-cache")], 200),
        ([("Set-Cookie", "a=1"), *cache("public, max-age=60")], 200),
        ([("Vary", "*")], 200),
        ([("Vary", "Accept, *")], 200),
        ([("Content-Range", "bytes 0-1/2")], 200),
        ([*cache("max-age=60"), *cache("private")], 200),
    ],
)
def test_a_response_that_may_not_be_stored_is_not(fields: Fields, status: int) -> None:
    assert kept(fields, status) is None


@pytest.mark.parametrize(
    ("value", "is_kept"),
    [
        ("", False),
        ("max-age=60", False),
        ("public", True),
        ("public, max-age=60", True),
        ("s-maxage=60", True),
        ("public, private", False),
    ],
)
def test_a_response_to_credentials_is_stored_only_if_it_is_public(
    value: str, is_kept: bool
) -> None:
    found = kept(cache(value), credentials=True)
    assert (found is not None) is is_kept


def test_a_no_store_request_stores_nothing() -> None:
    assert kept([], asked="no-store") is None
    assert kept([], asked="no-cache") is not None


@pytest.mark.parametrize(
    ("fields", "age"),
    [
        ([], 0),
        ([("Age", "30")], 30),
        ([("Date", "Sun, 30 Nov 2025 23:59:00 GMT")], 60),
        ([("Date", "Sun, 30 Nov 2025 23:59:00 GMT"), ("Age", "90")], 90),
        ([("Date", LATER)], 0),  # a clock that is ahead
        ([("Age", "old"), ("Date", "once")], 0),
    ],
)
def test_the_age_field_of_a_response_counts(fields: Fields, age: float) -> None:
    found = storable(200, fields, credentials=False, now=NOW, stale_for=1)
    assert found is not None
    assert found.age == age


@pytest.mark.parametrize(
    ("value", "age", "credentials", "shown"),
    [
        ("max-age=60, stale-if-error=30", 0, False, True),
        ("max-age=60, stale-if-error=30", 90, False, True),
        ("max-age=60, stale-if-error=30", 91, False, False),
        ("s-maxage=60", 60, False, True),
        ("s-maxage=60", 61, False, False),
        ("max-age=60", 0, True, False),
        ("max-age=60, public", 0, True, True),
    ],
)
def test_a_stored_response_is_served_by_age_and_credentials(
    value: str, age: float, credentials: bool, shown: bool
) -> None:
    found = storable(200, cache(value), credentials=False, now=NOW, stale_for=3600)
    assert found is not None
    assert may_serve(found, age, credentials=credentials) is shown


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", {}),
        ("no-store", {"no-store": ""}),
        ('a="x, no-store", b', {"a": "x, no-store", "b": ""}),
        ('a="x\\", private", b=1', {"a": 'x\\", private', "b": "1"}),
        (",, a ,", {"a": ""}),
        ("a=1, a=2", {"a": "1"}),
        ("a=2, a=1", {"a": "1"}),
        ("a=1, a", {"a": ""}),
        ("a=x, a=1", {"a": "x"}),
        ("a=1, a=\xb2", {"a": "\xb2"}),  # a digit to Python, and no number
        ("a=\xb2, a=1", {"a": "\xb2"}),
    ],
)
def test_directives(value: str, found: dict[str, str]) -> None:
    assert directives(value) == found


def test_requests_that_differ_in_what_vary_names_get_different_answers() -> None:
    names = varying("Accept-Language, accept, Accept")
    assert names == ("accept", "accept-language")
    one = {"accept": "text/html, text/plain", "accept-language": "de"}
    other = {"accept": "text/html,text/plain", "accept-language": "de"}
    third = {"accept": "text/html", "accept-language": "de"}
    assert selecting(names, one.__getitem__) == selecting(names, other.__getitem__)
    assert selecting(names, one.__getitem__) != selecting(names, third.__getitem__)
