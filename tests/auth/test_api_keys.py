"""The form of an API key, its record, and whether it is valid at a time: rules as tables."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.auth.api_keys import (
    LONGEST_KEY,
    MOST_SECRETS,
    KeyRecord,
    Secret,
    check_prefix,
    digest_of,
    document_of,
    identity_of,
    is_well_formed,
    new_id,
    new_key,
    record_of,
    revoked,
    rotated,
    valid_until,
    why_invalid,
)

NOW = 1_764_547_200.0
A, B, C = (letter * 64 for letter in "abc")
BODY = "0Az9" * 7 + "0A"
RECORD = KeyRecord(
    "acme-1", "Acme Ltd.", (Secret(A),), NOW, plan="gold", scopes=("orders:read",), name="nightly"
)


def key(prefix: str = "wg") -> str:
    return new_key(prefix, _chooser())


def _chooser() -> Any:
    letters = cycle(BODY)
    return lambda alphabet: next(letters)


KEY = key()


def base62(number: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, digit = divmod(number, 62)
        text = digits[digit] + text
    return text.rjust(6, "0")


def test_a_key_is_a_prefix_thirty_characters_and_the_base62_of_their_crc() -> None:
    assert f"wg_{BODY}{base62(crc32(BODY.encode()))}" == KEY


@pytest.mark.parametrize("prefix", ["wg", "acme_live", "A1", "x" * 32])
def test_a_new_key_is_well_formed_and_random(prefix: str) -> None:
    made = {new_key(check_prefix(prefix)) for _ in range(50)}
    assert len(made) == 50
    assert all(is_well_formed(each) and each.startswith(f"{prefix}_") for each in made)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "wg",
        BODY,
        KEY[:-1],
        KEY + "0",
        KEY[:-1] + ("1" if KEY[-1] != "1" else "2"),
        KEY.replace("0Az9", "0Az8", 1),
        KEY.swapcase(),
        KEY.replace("wg_", "wg-"),
        KEY.replace("wg_", "_"),
        KEY.replace("wg_", "1g_"),
        f"{KEY}\n",
        f" {KEY}",
        f"{KEY},{KEY}",
        KEY.replace("0Az9", "0Az\u0669", 1),
        "p" * LONGEST_KEY + KEY,
    ],
)
def test_junk_is_recognized_without_a_look_up(wrong: str) -> None:
    assert not is_well_formed(wrong)


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    assert not is_well_formed(text) or re.fullmatch(r"[A-Za-z0-9_]+", text)
    assert len(digest_of(text)) == 64


@pytest.mark.parametrize("prefix", ["", "_", "1a", "a-b", "a__b", "a_", "x" * 33, "é", 7, None])
def test_a_prefix_is_a_word(prefix: object) -> None:
    with pytest.raises(ValueError, match=r"^prefix: 1 to 32 letters"):
        check_prefix(prefix)


def test_an_id_is_no_key() -> None:
    assert re.fullmatch("[0-9a-f]{16}", new_id())
    assert not is_well_formed(new_id())


# record, digest, seconds after NOW: why the key is invalid
VALIDITY: list[tuple[KeyRecord | None, str, float, str]] = [
    (RECORD, A, 0, ""),
    (RECORD, A, 1e9, ""),
    (RECORD, B, 0, "the key is unknown"),
    (None, A, 0, "the key is unknown"),
    (replace(RECORD, expires=NOW + 10), A, 9.9, ""),
    (replace(RECORD, expires=NOW + 10), A, 10, "key acme-1 has expired"),
    (replace(RECORD, revoked=NOW), A, 0, "key acme-1 was revoked"),
    (replace(RECORD, revoked=NOW, expires=NOW), A, 0, "key acme-1 was revoked"),
    (replace(RECORD, revoked=NOW), B, 0, "the key is unknown"),
    (replace(RECORD, secrets=(Secret(B), Secret(A, NOW + 5))), A, 4.9, ""),
    (replace(RECORD, secrets=(Secret(B), Secret(A, NOW + 5))), B, 100, ""),
    (
        replace(RECORD, secrets=(Secret(B), Secret(A, NOW + 5))),
        A,
        5,
        "key acme-1 was replaced by a newer one",
    ),
]


@pytest.mark.parametrize(("record", "digest", "after", "why"), VALIDITY)
def test_a_key_is_valid_or_the_log_gets_the_reason(
    record: KeyRecord | None, digest: str, after: float, why: str
) -> None:
    assert why_invalid(record, digest, NOW + after) == why


@pytest.mark.parametrize(
    ("record", "digest", "until"),
    [
        (RECORD, A, float("inf")),
        (replace(RECORD, expires=NOW + 10), A, NOW + 10),
        (replace(RECORD, secrets=(Secret(B), Secret(A, NOW + 5))), A, NOW + 5),
        (replace(RECORD, expires=NOW + 3, secrets=(Secret(B), Secret(A, NOW + 5))), A, NOW + 3),
    ],
)
def test_a_valid_key_ends_at_the_first_of_its_ends(
    record: KeyRecord, digest: str, until: float
) -> None:
    assert valid_until(record, digest) == until


def test_a_revocation_keeps_its_first_time() -> None:
    gone = revoked(RECORD, NOW + 5)
    assert (gone.revoked, revoked(gone, NOW + 9).revoked) == (NOW + 5, NOW + 5)


def test_a_rotation_keeps_everything_but_the_key_and_bounds_the_old_one() -> None:
    after = rotated(RECORD, B, NOW, 60)
    assert after == replace(RECORD, secrets=(Secret(B), Secret(A, NOW + 60)))
    again = rotated(after, C, NOW + 30, 3600)
    assert again.secrets == (Secret(C), Secret(B, NOW + 3630), Secret(A, NOW + 60))
    soon = rotated(after, C, NOW + 30, 10)
    assert soon.secrets == (Secret(C), Secret(B, NOW + 40), Secret(A, NOW + 40))
    assert rotated(after, C, NOW + 60, 0).secrets == (Secret(C),)


def test_a_rotation_without_an_overlap_keeps_what_earlier_ones_have_promised() -> None:
    after = rotated(rotated(RECORD, B, NOW, 7 * 86_400), C, NOW + 10, None)
    assert after.secrets == (Secret(C), Secret(B, NOW + 86_410), Secret(A, NOW + 7 * 86_400))


def test_a_rotation_that_would_keep_too_many_keys_is_an_error() -> None:
    record = RECORD
    for number in range(MOST_SECRETS - 1):
        record = rotated(record, f"{number}" * 64, NOW, 3600)
    with pytest.raises(ValueError, match="overlap of 0"):
        rotated(record, B, NOW, 3600)
    assert rotated(record, B, NOW, 0).secrets == (Secret(B),)


@pytest.mark.parametrize(
    ("record", "overlap", "named"),
    [
        (replace(RECORD, revoked=NOW), 60, "id"),
        (replace(RECORD, expires=NOW), 60, "id"),
        (RECORD, -1, "overlap"),
        (RECORD, float("nan"), "overlap"),
        (RECORD, float("inf"), "overlap"),
        (RECORD, 1.4e11, "overlap"),
        (RECORD, 1e300, "overlap"),
    ],
)
def test_a_key_without_a_future_is_not_rotated(
    record: KeyRecord, overlap: float, named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        rotated(record, B, NOW, overlap)


def test_the_identity_has_the_owner_the_plan_and_the_scopes() -> None:
    identity = identity_of(RECORD)
    assert (identity.subject, identity.scheme, identity.client) == (
        "Acme Ltd.",
        "api-key",
        "acme-1",
    )
    assert dict(identity.claims) == {
        "sub": "Acme Ltd.",
        "key_id": "acme-1",
        "owner": "Acme Ltd.",
        "plan": "gold",
        "name": "nightly",
        "scope": "orders:read",
    }
    assert identity.scopes == {"orders:read"}


# Documents.

FULL = replace(
    RECORD,
    secrets=(Secret(B), Secret(A, NOW + 60)),
    expires=NOW + 3600,
    revoked=NOW + 7,
)


@pytest.mark.parametrize("record", [RECORD, FULL, KeyRecord("k", "o", (Secret(C),), 0.0)])
def test_a_record_survives_its_document(record: KeyRecord) -> None:
    assert record_of(document_of(record)) == record


def test_a_list_for_people_has_no_digest() -> None:
    shown = document_of(replace(FULL, revoked=None), digests=False)
    assert A not in str(shown)
    assert B not in str(shown)
    assert shown["previous"] == [{"until": "2025-12-01T00:01:00Z"}]
    assert "previous" not in document_of(FULL, digests=False), "none of its keys is valid"


MINIMAL = {"id": "a", "owner": "acme", "sha256": A}


@pytest.mark.parametrize(
    "expires", ["2026-01-01T00:00:00Z", 1767225600, datetime(2026, 1, 1, tzinfo=UTC)]
)
def test_an_operator_may_write_a_time_in_any_usual_form(expires: object) -> None:
    assert record_of({**MINIMAL, "expires": expires}).expires == 1767225600


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ([], "expected a table"),
        ({**MINIMAL, "key": KEY}, "key: a record does not contain the key itself"),
        ({"owner": "acme", "sha256": A}, "id: is required"),
        ({"id": "a", "sha256": A}, "owner: is required"),
        ({"id": "a", "owner": "acme"}, "sha256: is required"),
        ({**MINIMAL, "sha256": KEY}, "sha256: expected 64 lower-case hexadecimal digits"),
        ({**MINIMAL, "sha256": A.upper()}, "sha256: expected 64"),
        ({**MINIMAL, "id": "a b"}, "id: expected 1 to 64 letters"),
        ({**MINIMAL, "id": 7}, "id: expected 1 to 64 letters"),
        ({**MINIMAL, "owner": "a\nb"}, "owner: expected a text of one line"),
        ({**MINIMAL, "plan": "gold plan"}, "plan: expected up to 64"),
        ({**MINIMAL, "scopes": "a b"}, "scopes: expected a list"),
        ({**MINIMAL, "scopes": ["a b"]}, "scopes: expected names"),
        ({**MINIMAL, "scopes": ["s"] * 101}, "scopes: a list of at most 100"),
        ({**MINIMAL, "expires": "soon"}, "expires: expected a time such as"),
        ({**MINIMAL, "expires": -1}, "expires: expected a time"),
        ({**MINIMAL, "expires": True}, "expires: expected a time"),
        ({**MINIMAL, "expire": "2026-01-01"}, "expire: unknown; known are id, owner"),
        ({**MINIMAL, "previous": {}}, "previous: expected a list"),
        ({**MINIMAL, "previous": [{"sha256": B}]}, "previous.until: is required"),
        ({**MINIMAL, "previous": [{"until": 1}]}, "sha256: expected 64"),
        ({**MINIMAL, "previous": [{"sha256": B, "until": 1}] * 5}, "previous: at most 4"),
    ],
)
def test_a_bad_record_names_the_member_and_no_secret(document: Any, error: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(error)}") as raised:
        record_of(document)
    assert KEY not in str(raised.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*MINIMAL, "previous", "expires"]), inner, max_size=5)
        ),
        max_leaves=8,
    )
)
def test_no_document_raises_anything_else(document: Any) -> None:
    if isinstance(document, dict):
        document = {**MINIMAL, **document}
    with suppress(ValueError):
        record_of(document)
