"""A buffered body that was read in part can be read again from its beginning."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from wsgigate.http.bodies import BufferedBody

DATA = b"one\ntwo\n\nthree"

STEPS = some.lists(
    some.tuples(some.sampled_from(["read", "readline"]), some.none() | some.integers(-1, 20)),
    max_size=6,
)


@given(STEPS, STEPS)
def test_a_buffered_body_reads_as_the_original_does(
    first: list[tuple[str, int | None]], second: list[tuple[str, int | None]]
) -> None:
    body, plain = BufferedBody(io.BytesIO(DATA), 100), io.BytesIO(DATA)
    for how, size in first:
        assert getattr(body, how)(size) == getattr(plain, how)(size)
    for steps in (second, first):
        assert body.rewind()
        plain = io.BytesIO(DATA)
        for how, size in steps:
            assert getattr(body, how)(size) == getattr(plain, how)(size)
    assert body.read() == plain.read()


@pytest.mark.parametrize(
    "read",
    [lambda body: b"".join(body), lambda body: b"".join(body.readlines()), lambda b: b.read()],
)
def test_every_read_method_completes_the_copy(read: Callable[[Any], bytes]) -> None:
    body = BufferedBody(io.BytesIO(DATA), 100, expected=len(DATA))
    assert body.whole() is None
    assert body.read(5) + read(body) == body.whole() == DATA
    assert body.rewind()
    assert read(body) == DATA


def test_without_a_length_the_copy_is_complete_only_after_an_empty_read() -> None:
    body = BufferedBody(io.BytesIO(DATA), 100)
    body.read(len(DATA))
    body.read(0)
    assert body.whole() is None
    body.read(1)
    assert body.whole() == DATA


@pytest.mark.parametrize(("most", "kept"), [(len(DATA), True), (len(DATA) - 1, False)])
def test_a_body_above_the_limit_is_not_kept(most: int, kept: bool) -> None:
    body = BufferedBody(io.BytesIO(DATA), most, expected=len(DATA))
    while body.read(3):
        pass
    assert (body.whole() is not None, body.rewind()) == (kept, kept)
    assert body.too_large is not kept
