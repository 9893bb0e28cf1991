"""What a Redis says is read to the byte, wherever it is cut, and nothing else is taken for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.store.redis_connections import (
    DEPTH,
    LEAST,
    LINE,
    SIZE,
    ErrorReply,
    Malformed,
    ReplyReader,
    command,
    integers,
    packed,
)


def plain(value):
    """Return *value* with refusals as something to compare."""
    if isinstance(value, ErrorReply):
        return "refusal", value.code, value.text
    return [plain(item) for item in value] if isinstance(value, list) else value


def read(*parts, expected=1):
    answers = ReplyReader(expected)
    complete = [answers.feed(part) for part in parts]
    assert not any(complete[:-1])
    return plain(answers.got) if complete[-1] else None


def singly(data):
    """Return the bytes of *data* as so many parts."""
    return [data[place : place + 1] for place in range(len(data))]


ANSWERS = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b"-NOSCRIPT No such script\r\n", ("refusal", "NOSCRIPT", "NOSCRIPT No such script")),
    (b"-ERR\r\n", ("refusal", "ERR", "ERR")),
    (b"-ERR \xff\r\n", ("refusal", "ERR", "ERR \N{REPLACEMENT CHARACTER}")),
    (b":0\r\n", 0),
    (b":-12\r\n", -12),
    (b":+12\r\n", 12),
    (b":9223372036854775807\r\n", 2**63 - 1),
    (b":-9223372036854775808\r\n", -(2**63)),
    (b"$0\r\n\r\n", b""),
    (b"$2\r\n\r\n\r\n", b"\r\n"),
    (b"$5\r\n$3\r\na\r\n", b"$3\r\na"),
    (b"$-1\r\n", None),
    (b"*0\r\n", []),
    (b"*-1\r\n", None),
    (b"*2\r\n$-1\r\n*-1\r\n", [None, None]),
    (b"*3\r\n:1\r\n*2\r\n+a\r\n*0\r\n$1\r\nb\r\n", [1, [b"a", []], b"b"]),
    (b"*2\r\n-ERR a\r\n:1\r\n", [("refusal", "ERR", "ERR a"), 1]),
    (b"*1\r\n" * DEPTH + b":1\r\n", [[[[[[[[1]]]]]]]]),
    (b"+" + b"x" * (LINE - 1) + b"\r\n", b"x" * (LINE - 1)),
]


@pytest.mark.parametrize(("data", "value"), ANSWERS)
def test_an_answer_is_read_at_once_and_byte_by_byte(data, value):
    assert read(data) == [value]
    if len(data) < 1000:
        assert read(*singly(data)) == [value]


def test_several_answers_are_complete_when_the_last_is():
    answers = ReplyReader(3)
    assert not answers.feed(b"+a\r\n:1\r\n$3\r\nx")
    assert answers.got == [b"a", 1]
    assert answers.feed(b"yz\r\n")
    assert answers.got == [b"a", 1, b"xyz"]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"_\r\n",  # null, true and so on of RESP3, which nobody asked for
        b"#t\r\n",
        b"%0\r\n",
        b":\r\n",
        b":x\r\n",
        b": 1\r\n",
        b":1_0\r\n",
        b":1.0\r\n",
        b":\xd9\xa1\r\n",
        b":9223372036854775808\r\n",
        b":-9223372036854775809\r\n",
        b"$x\r\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$+1\r\n",
        b"$01\r\n",
        b"$?\r\n",
        b"$%d\r\n" % (SIZE + 1),
        b"$1\r\nab\r\n",
        b"$1\r\na\n\n",
        b"*x\r\n",
        b"*-2\r\n",
        b"*%d\r\n" % (SIZE // LEAST + 1),
        b"*1\r\n" * (DEPTH + 1),
        b"*2\r\n:1\r\nx\r\n",
        b"+a\rb\r\n",
        b"+a\nb\r\n",
        b"-a\rb\r\n",
        b"-a\nb\r\n",
        b"+" + b"x" * LINE + b"\r\n",
        b"x" * (LINE + 2),
        b"+a\r\n+b\r\n",
        b"+a\r\n+",
        b"*0\r\n\r\n",
    ],
)
def test_what_is_no_answer_or_more_than_one_is_never_guessed_at(data):
    answers = ReplyReader(1)
    with pytest.raises(Malformed, match=r"^Protocol error: "):
        answers.feed(data)
    if data[:3] not in (b"+a\r", b"*0\r"):  # what comes after the last is not asked for any more
        with pytest.raises(Malformed):
            read(*singly(data))


@pytest.mark.parametrize("data", [b"", b"+OK", b"+OK\r", b"$3\r\nabc", b"$3\r\nabc\r", b"*1\r\n"])
def test_what_is_cut_is_no_answer_yet(data):
    answers = ReplyReader(1)
    assert not answers.feed(data)
    assert answers.got == []


def test_what_does_not_end_is_not_kept_for_ever():
    part = b"$65536\r\n" + bytes(65536) + b"\r\n"
    with pytest.raises(Malformed, match=f"larger than {SIZE} bytes"):
        read(*([part] * (SIZE // 65536)), expected=10**6)


def test_what_is_malformed_is_told_no_further_than_its_beginning():
    with pytest.raises(Malformed) as caught:
        read(b"x" * 1000 + b"\r\n")
    assert len(str(caught.value)) < 80


def written(value):
    """Return *value* as a server writes it; a str is an error."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        return b"-%b\r\n" % value.encode()
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n%b" % (len(value), b"".join(map(written, value)))


def told(value):
    """Return how *value* is compared."""
    if isinstance(value, str):
        return "refusal", value.partition(" ")[0], value
    return [told(item) for item in value] if isinstance(value, list) else value


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=10)
VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20) | LINES,
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def cut(data, places):
    """Return *data* in parts; some may be empty."""
    places = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


PLACES = st.lists(st.integers(0, 10**6), max_size=8)


@given(values=st.lists(VALUES, min_size=1, max_size=4), places=PLACES)
def test_wherever_a_stream_is_cut_the_answers_are_the_same(values, places):
    answers = ReplyReader(len(values))
    parts = cut(b"".join(map(written, values)), places)
    done = [answers.feed(part) for part in parts if part]
    assert done == [False] * (len(done) - 1) + [True]
    assert plain(answers.got) == [told(value) for value in values]


@given(
    data=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [*(b"*$:+-0123456789\r\n"[i : i + 1] for i in range(17)), b"\r\n", b"*2\r\n", b"$1\r\n"]
        ),
        max_size=40,
    ).map(b"".join),
    places=PLACES,
)
def test_whatever_comes_is_understood_the_same_however_it_is_cut(data, places):
    def outcome(parts):
        answers = ReplyReader(2)
        try:
            for part in parts:
                if answers.feed(part):
                    return plain(answers.got), "complete"
        except Malformed as error:
            if "more answers than expected" in str(error):
                return plain(answers.got), "complete"  # what came after them is the next part
            return plain(answers.got), "malformed"
        return plain(answers.got), "cut"

    whole = outcome([data])
    assert outcome(cut(data, places)) == whole
    assert outcome(singly(data)) == whole


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (b"*1\r\n:0\r\n", [0]),
        (b"*2\r\n:-1\r\n:999999999999999999\r\n", [-1, 10**18 - 1]),
        (b"*5\r\n:1795452955698561\r\n:1\r\n:9\r\n:31\r\n:0\r\n", [1795452955698561, 1, 9, 31, 0]),
        (b"*13\r\n" + b":7\r\n" * 13, [7] * 13),
        (b"*99\r\n" + b":7\r\n" * 99, [7] * 99),
        (b"*100\r\n" + b":7\r\n" * 100, None),
        (b"*0\r\n", None),
        (b"*-1\r\n", None),
        (b"*2\r\n:1\r\n", None),
        (b"*1\r\n:1\r\n:1\r\n", None),
        (b"*1\r\n:1\r\n\r\n", None),
        (b"*1\r\n:1\r\n\n", None),
        (b"*1\r\n:1\r", None),
        (b"*1\r\n:1", None),
        (b"*1\r\n: 1\r\n", None),
        (b"*1\r\n:1_1\r\n", None),
        (b"*1\r\n:\r\n", None),
        (b"*1\r\n$1\r\n1\r\n", None),
        (b"*1\r\n*1\r\n:1\r\n", None),
        (b"*01\r\n:1\r\n", None),
        (b":1\r\n", None),
        (b"+OK\r\n", None),
        (b"", None),
    ],
)
def test_numbers_alone_are_read_the_short_way_and_nothing_else_is(data, numbers):
    assert integers(data) == numbers
    if numbers is not None:
        assert read(data) == [numbers]


@given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1), min_size=1, max_size=99), st.binary())
def test_the_short_way_leads_where_the_long_one_does(numbers, rest):
    data = written(numbers)
    assert integers(data) == numbers == read(data)[0]
    assert integers(data + rest) == (None if rest else numbers)
    assert all(integers(data[:place]) is None for place in range(len(data)))


def test_a_command_is_written_with_the_length_of_each_part():
    assert command(b"GET", b"") == b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"
    assert packed(b"a\r\n") == b"$3\r\na\r\n\r\n"
    assert packed() == b""
