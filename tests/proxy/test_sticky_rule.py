"""The format, the signature and the validity of the sticky cookie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.proxy.sticky import StickyCookie, StickyTarget

SECRET = b"a secret of the tests"
NOW = 1_700_000_000.0
NAME = "http://10.0.0.1:8000"

COOKIE = StickyCookie(SECRET, "orders", 3600)
FOR_EVER = StickyCookie(SECRET, "orders")
ID = COOKIE.id_of(NAME)
VALUE = COOKIE.sign(ID, NOW)


@pytest.mark.parametrize(
    ("later", "found"),
    [
        (0, StickyTarget(ID)),
        (1800, StickyTarget(ID)),
        (1801, StickyTarget(ID, stale=True)),
        (3599, StickyTarget(ID, stale=True)),
        (3600, None),
        (10**6, None),
        (-1, None),  # signed in the future: nobody may have it for longer than that
    ],
)
def test_a_cookie_is_valid_for_max_age_and_renewed_after_half_of_it(
    later: float, found: StickyTarget | None
) -> None:
    assert COOKIE.read(VALUE, NOW + later) == found


def test_a_session_cookie_does_not_expire() -> None:
    value = FOR_EVER.sign(ID, NOW)
    assert FOR_EVER.read(value, NOW + 10**9) == StickyTarget(ID)


def test_the_current_max_age_applies_to_existing_cookies() -> None:
    assert FOR_EVER.read(VALUE, NOW) == StickyTarget(ID, stale=True)
    assert COOKIE.read(FOR_EVER.sign(ID, NOW), NOW) is None
    assert StickyCookie(SECRET, "orders", 60).read(VALUE, NOW) is None


def test_the_format_of_the_cookie_does_not_change() -> None:
    """Gateways of the next version read it while those of this one go on writing it."""
    assert ID == "92fP9w-NNkr4"
    assert f"{ID}.1700003600.lLLeqTalzHZr7FTpje1ZJKJa" == VALUE


def test_a_max_age_of_one_second_is_accepted() -> None:
    short = StickyCookie(SECRET, "orders", 1)
    assert short.read(short.sign(ID, NOW), NOW) == StickyTarget(ID)


@pytest.mark.parametrize("until", [1_700_003_599, 1_700_003_601])
def test_the_time_of_a_cookie_is_signed(until: int) -> None:
    id, _, signature = VALUE.split(".")
    assert COOKIE.read(f"{id}.{until}.{signature}", NOW + 100) is None


def _flip(at: int) -> Callable[[str], str]:
    return lambda value: value[:at] + ("A" if value[at] != "A" else "B") + value[at:][1:]


@pytest.mark.parametrize(
    "forge",
    [
        lambda value: "",
        lambda value: value[:-1],
        lambda value: value + "A",
        lambda value: value + " ",
        lambda value: value + "\n",
        lambda value: value.lower(),
        lambda value: value.replace(".", ".0", 1),
        lambda value: value.replace(".", ".9", 1),
        lambda value: value.replace(".", ".1\u0661", 1),
        lambda value: ".".join([value.split(".")[0], "0", value.split(".")[2]]),
        lambda value: value.split(".")[0],
        lambda value: NAME,
        lambda value: "\udcff" * 48,
        _flip(0),
        _flip(11),
        _flip(-1),
        lambda value: StickyCookie(b"another secret of the tests", "orders", 3600).sign(ID, NOW),
        lambda value: StickyCookie(SECRET, "users", 3600).sign(ID, NOW),
        lambda value: StickyCookie(SECRET, "order", 3600).sign("s" + ID[1:], NOW),
    ],
)
def test_a_value_with_another_signature_is_rejected(forge: Callable[[str], str]) -> None:
    assert COOKIE.read(VALUE, NOW) == StickyTarget(ID)
    assert COOKIE.read(forge(VALUE), NOW) is None


@given(st.text(max_size=80))
def test_any_text_is_parsed_without_an_error(value: str) -> None:
    assert COOKIE.read(value, NOW) is None


def test_the_cookie_hides_the_instance_and_is_valid_at_all_gateways() -> None:
    assert len(ID) == 12
    assert "10.0" not in VALUE
    assert ID == FOR_EVER.id_of(NAME) == StickyCookie(SECRET, "orders").id_of(NAME)
    others = {
        COOKIE.id_of("http://10.0.0.2:8000"),
        StickyCookie(SECRET, "users").id_of(NAME),
        StickyCookie(b"another secret of the tests", "orders").id_of(NAME),
    }
    assert len(others | {ID}) == 4


@pytest.mark.parametrize(
    ("secret", "age", "said"),
    [
        (b"secret", None, "secret: must have at least 16 bytes"),
        (SECRET, 0.5, "max_age"),
        (SECRET, -1, "max_age"),
        (SECRET, float("inf"), "max_age"),
    ],
)
def test_an_invalid_setting_is_rejected(secret: bytes, age: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        StickyCookie(secret, "orders", age)
    assert "tests" not in str(caught.value)
