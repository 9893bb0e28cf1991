"""Cookies are found and removed, and the others stay as they were."""

from __future__ import annotations

import pytest

from wsgigate.http.fields import cookie_values, without_cookies


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("", []),
        ("a=1", ["1"]),
        ("b=2; a=1", ["1"]),
        ("b=2;a=1", ["1"]),
        ("a=1; a=2; b=3; a=4", ["1", "2", "4"]),
        ("a=1;" * 9, ["1", "1", "1", "1"]),
        ("aa=1; ba=2; A=3; b=a=4", []),
        ("a", []),
        ("a=", [""]),
        ("a=x=y", ["x=y"]),
        ('b="x; a=1"', ['1"']),
    ],
)
def test_the_values_of_a_name_are_found(field: str, values: list[str]) -> None:
    assert cookie_values(field, "a") == values


@pytest.mark.parametrize(
    ("field", "left"),
    [
        ("", ""),
        ("a=1", ""),
        ("a=1; b=2", "b=2"),
        ("b=2; a=1", "b=2"),
        ("b=2; a=1; c=3", "b=2; c=3"),
        ("b=2;a=1;c=3", "b=2;c=3"),
        ("a=1; s=5; a=2", ""),
        ("aa=1;  ba=2 ; A=3; b=a=4", "aa=1;  ba=2 ; A=3; b=a=4"),
        (" a =1; b=2", "b=2"),
        ("a; b", "b"),
        ("b=\xfc; a=1", "b=\xfc"),
        ("\x0ba=1; \x1fs\x0c=1; b=2", "b=2"),
        ("\xe2\x80\x80a=1; a\xc2\xa0=1; \xe3\x80\x80s=1; b=2", "b=2"),
        ("\xa0a=1; \xfca=1; b\xe2\x80\x80=2", "\xfca=1; b\xe2\x80\x80=2"),
    ],
)
def test_cookies_of_the_given_names_are_removed(field: str, left: str) -> None:
    assert without_cookies(field, {"a", "s"}) == left
