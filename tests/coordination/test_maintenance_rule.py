"""The value of all maintenance notices, and how it is switched."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.coordination.maintenance import LONGEST, MOST, Notice, noticed, read, switched

NOW = 1000.0


def on(value: bytes | None, scope: str, now: float = NOW, **more: Any) -> bytes:
    made = switched(value, scope, now, on=True, **more)
    assert made is not None
    return made


def off(value: bytes | None, scope: str, now: float = NOW) -> bytes | None:
    return switched(value, scope, now, on=False)


def test_scopes_are_switched_one_by_one() -> None:
    both = on(on(None, "gateway", message="Soon."), "service:orders", lasts=60)
    assert read(both) == {
        "gateway": Notice(NOW, None, "Soon."),
        "service:orders": Notice(NOW, NOW + 60, ""),
    }
    assert read(off(both, "gateway")) == {"service:orders": Notice(NOW, NOW + 60, "")}
    assert off(off(both, "gateway"), "service:orders") is None
    assert off(None, "gateway") is None


def test_a_scope_switched_on_again_keeps_its_since() -> None:
    again = on(on(None, "gateway", lasts=60), "gateway", NOW + 30, lasts=60, message="Longer.")
    assert read(again) == {"gateway": Notice(NOW, NOW + 90, "Longer.")}


def test_notices_that_are_over_are_removed() -> None:
    value = on(None, "service:a", lasts=60)
    assert set(read(on(value, "service:b", NOW + 59))) == {"service:a", "service:b"}
    assert set(read(on(value, "service:b", NOW + 60))) == {"service:b"}
    begun_anew = on(value, "service:a", NOW + 60)
    assert read(begun_anew)["service:a"].since == NOW + 60


@pytest.mark.parametrize(
    ("scopes", "now", "found"),
    [
        (["gateway"], NOW, "all"),
        (["route:x", "gateway"], NOW, "all"),
        (["service:orders", "gateway"], NOW + 59, "orders"),
        (["service:orders"], NOW + 60, None),
        (["service:other"], NOW, None),
        ([], NOW, None),
    ],
)
def test_the_first_scope_that_is_out_of_service_counts(
    scopes: list[str], now: float, found: str | None
) -> None:
    value = on(None, "gateway", message="all")
    notices = read(on(value, "service:orders", lasts=60, message="orders"))
    notice = noticed(notices, scopes, now)
    assert (None if notice is None else notice.message) == found


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"1", b'{"gateway": 1}', b'{"gateway": ["x", null, ""]}', b"\xff"]
)
def test_a_malformed_value_has_no_notices(value: bytes) -> None:
    assert read(value) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scope": "orders"}, "scope: gateway, service:NAME or route:NAME"),
        ({"scope": "service:"}, "scope: gateway"),
        ({"scope": "service:a\nb"}, "scope: gateway"),
        ({"scope": 7}, "scope: gateway"),
        ({"lasts": 0}, "for: more than 0"),
        ({"lasts": LONGEST + 1}, "for: more than 0 seconds and at most ten years"),
        ({"message": "two\nlines"}, "message: a text of one line"),
        ({"message": "x" * 301}, "message: a text of one line, at most 300"),
        ({"message": 7}, "message: a text"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        switched(None, arguments.pop("scope", "gateway"), NOW, on=True, **arguments)


def test_the_value_has_a_bound() -> None:
    value, more = b"", on(None, "gateway")
    for number in range(30):
        value, more = more, on(more, f"service:{number}", message="ä" * 300)
    assert len(more) <= MOST
    value = more[:-1] + b', "route:/x": [0, null, "%s"]}' % (b"x" * (MOST - len(more)))
    with pytest.raises(ValueError, match="scope: all notices together may take"):
        on(value, "service:one-more")
    assert "gateway" not in read(off(value, "gateway"))
