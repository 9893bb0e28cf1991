"""API keys: their form, their records, and whether a key is valid at a time.

A key has GitHub's form: a prefix, ``_``, 30 random base62 characters, and 6 characters of a base62
CRC32 of these. The prefix and the form let secret scanners find a key that was published by
accident; the checksum rejects junk before anything is looked up.

A record holds no key, only SHA-256 digests of keys: 30 random characters have 178 bits, so a key
cannot be found by its digest, and a slow password hash would protect nothing. A record has several
digests during a rotation: the newest key, and older ones until their overlap ends.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import Any, NamedTuple
from zlib import crc32

from wsgigate.auth.identity import Identity

__all__ = [
    "LONGEST_KEY",
    "MOST_SECRETS",
    "PREFIX",
    "KeyRecord",
    "Secret",
    "check_prefix",
    "digest_of",
    "document_of",
    "identity_of",
    "is_id",
    "is_well_formed",
    "new_id",
    "new_key",
    "record_of",
    "revoked",
    "rotated",
    "valid_until",
    "why_invalid",
]


# The form of a key.

LONGEST_KEY = 128
"""Maximum number of characters of a key."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECKSUM = 30, 6
PREFIX = r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*"
"""The pattern of a prefix."""

_KEY = re.compile(rf"(?:{PREFIX})_([0-9A-Za-z]{{{_RANDOM}}})([0-9A-Za-z]{{{_CHECKSUM}}})")
_LONGEST_PREFIX = 32


def check_prefix(prefix: object) -> str:
    """Return *prefix* unchanged if keys may begin with it.

    :raises ValueError: It is not 1 to 32 letters and digits, with single ``_`` between them.
    """
    if (
        not isinstance(prefix, str)
        or len(prefix) > _LONGEST_PREFIX
        or not re.fullmatch(PREFIX, prefix)
    ):
        raise ValueError(
            'prefix: 1 to 32 letters and digits that begin with a letter, such as "acme" or '
            f'"acme_live", not {prefix!r}'
        )
    return prefix


def new_key(prefix: str, choose: Callable[[str], str] = secrets.choice) -> str:
    """Return a new random key.

    :param prefix: See :func:`check_prefix`.
    :param choose: Returns one of the characters of a text, at random.
    """
    body = "".join(choose(_ALPHABET) for _ in range(_RANDOM))
    return f"{prefix}_{body}{_checksum(body)}"


def is_well_formed(key: str) -> bool:
    """Return whether *key* has the form of a key, and its checksum is right."""
    if len(key) > LONGEST_KEY:
        return False
    found = _KEY.fullmatch(key)
    return found is not None and _checksum(found[1]) == found[2]


def _checksum(body: str) -> str:
    number, digits = crc32(body.encode("ascii")), ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def digest_of(key: str) -> str:
    """Return the SHA-256 of *key* in hexadecimal digits, as records contain it."""
    return sha256(key.encode("utf-8", "replace")).hexdigest()


def new_id(random: Callable[[int], str] = secrets.token_hex) -> str:
    """Return a new random id of a key: 16 hexadecimal digits, which are no secret."""
    return random(8)


# Records.

MOST_SECRETS = 5
"""Maximum number of keys of one record that are valid at a time, during rotations."""

_OVERLAP = 86_400.0
_LONGEST_OVERLAP = 10 * 365 * 86_400.0
"""A later end could not be read from the record again, so that no key of it would be valid."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWNER = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,200}")
_PLAN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}|")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}")  # RFC 6749 section 3.3
_MOST_SCOPES = 100


def is_id(text: str) -> bool:
    """Return whether *text* can be the id of a record."""
    return _ID.fullmatch(text) is not None


class Secret(NamedTuple):
    """One key of a record.

    :ivar sha256: The SHA-256 of the key in hexadecimal digits.
    :ivar until: Unix time at which the key is no longer valid, as it was replaced; None for the
        newest one.
    """

    sha256: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of an API key. It does not contain the key.

    :param id: Identifies the record, also in logs. It is no secret and does not change.
    :param owner: The account that the key belongs to, such as the name of a partner.
    :param secrets: The digests of the key, the newest first.
    :param created: Unix time at which the record was created.
    :param plan: The name of the owner's plan, which limiters can select quotas by.
    :param scopes: What the key permits.
    :param name: A free description.
    :param expires: Unix time at which the key expires; None for never.
    :param revoked: Unix time at which the key was revoked; None if it was not.
    :raises ValueError: An argument is invalid; the message names it.
    """

    id: str
    owner: str
    secrets: tuple[Secret, ...]
    created: float
    plan: str = ""
    scopes: tuple[str, ...] = ()
    name: str = ""
    expires: float | None = None
    revoked: float | None = None

    def __post_init__(self) -> None:
        _text("id", self.id, _ID, "1 to 64 letters, digits, dots, hyphens and underscores")
        _text("owner", self.owner, _OWNER, "a text of one line, 1 to 200 characters")
        _text("plan", self.plan, _PLAN, "up to 64 letters, digits, dots, hyphens and underscores")
        _text("name", self.name, _NAME, "a text of one line, at most 200 characters")
        if len(self.scopes) > _MOST_SCOPES:
            raise ValueError(f"scopes: a list of at most {_MOST_SCOPES} names")
        for scope in self.scopes:
            _text("scopes", scope, _SCOPE, "names of visible ASCII characters (RFC 6749, 3.3)")
        if not 1 <= len(self.secrets) <= MOST_SECRETS:
            raise ValueError(f"previous: at most {MOST_SECRETS - 1} keys")
        for secret in self.secrets:
            _text("sha256", secret.sha256, _DIGEST, "64 lower-case hexadecimal digits")
        object.__setattr__(self, "scopes", tuple(dict.fromkeys(self.scopes)))


def _text(field: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        # the value is not shown: it may be a key that was put into the wrong field
        raise ValueError(f"{field}: expected {expected}")
    return value


def why_invalid(record: KeyRecord | None, digest: str, now: float) -> str:
    """Return why the key with *digest* is invalid at *now*, for the log; empty if it is valid.

    :param record: The record that was found for *digest*.
    :param now: The Unix time.
    """
    secret = _secret(record, digest)
    if record is None or secret is None:
        return "the key is unknown"
    if record.revoked is not None:
        return f"key {record.id} was revoked"
    if record.expires is not None and now >= record.expires:
        return f"key {record.id} has expired"
    if secret.until is not None and now >= secret.until:
        return f"key {record.id} was replaced by a newer one"
    return ""


def valid_until(record: KeyRecord, digest: str) -> float:
    """Return the Unix time until which the valid key with *digest* is valid; may be infinite."""
    secret = _secret(record, digest)
    ends = (record.expires, None if secret is None else secret.until)
    return min((end for end in ends if end is not None), default=math.inf)


def _secret(record: KeyRecord | None, digest: str) -> Secret | None:
    if record is None:
        return None
    found = None
    for secret in record.secrets:  # each is compared, so that the time depends on no digest
        if compare_digest(secret.sha256, digest):
            found = secret
    return found


def revoked(record: KeyRecord, now: float) -> KeyRecord:
    """Return *record* revoked at *now*; one that is revoked already stays as it is."""
    return record if record.revoked is not None else replace(record, revoked=now)


def rotated(record: KeyRecord, digest: str, now: float, overlap: float | None) -> KeyRecord:
    """Return *record* with a new key, and the present ones valid for *overlap* more seconds.

    A present key that ends earlier still does.

    :param digest: The digest of the new key.
    :param overlap: Seconds; None ends the newest of the present ones after a day, and the others as
        earlier rotations have promised.
    :raises ValueError: *record* is revoked or expired, *overlap* is negative or longer than ten
        years, or too many older keys are still valid.
    """
    if overlap is not None and not (
        isinstance(overlap, (int, float)) and 0 <= overlap <= _LONGEST_OVERLAP
    ):
        raise ValueError(f"overlap: 0 seconds to ten years, not {overlap!r}")
    if record.revoked is not None or (record.expires is not None and now >= record.expires):
        raise ValueError("id: the key is revoked or has expired; create a new one")
    end = now + (_OVERLAP if overlap is None else overlap)
    latest = math.inf if overlap is None else end
    older = [
        Secret(each.sha256, end if each.until is None else min(each.until, latest))
        for each in record.secrets
    ]
    live = [each for each in older if each.until is not None and now < each.until]
    if len(live) >= MOST_SECRETS:
        raise ValueError(
            f"id: {len(live)} earlier keys of it are still valid; rotate it with an overlap of 0, "
            "or wait until the overlap of one has ended"
        )
    return replace(record, secrets=(Secret(digest), *live))


def identity_of(record: KeyRecord) -> Identity:
    """Return the identity of the callers that use the key of *record*."""
    claims: dict[str, Any] = {"sub": record.owner, "key_id": record.id, "owner": record.owner}
    if record.plan:
        claims["plan"] = record.plan
    if record.name:
        claims["name"] = record.name
    if record.scopes:
        claims["scope"] = " ".join(record.scopes)
    return Identity(
        subject=record.owner,
        scheme="api-key",
        client=record.id,
        claims=claims,
        scopes=frozenset(record.scopes),
    )


# Records as documents: in files, in stores, and towards operators.

_FIELDS = (
    *("id", "owner", "plan", "scopes", "name", "created", "expires", "revoked"),
    *("sha256", "previous"),
)
_PREVIOUS = ("sha256", "until")


def document_of(record: KeyRecord, *, digests: bool = True) -> dict[str, Any]:
    """Return *record* as the members of a JSON object; those without a value are left out.

    :param digests: Whether the digests are included; without them, ``previous`` has only the times
        until which replaced keys are valid.
    """
    newest, *older = record.secrets
    document: dict[str, Any] = {
        "id": record.id,
        "owner": record.owner,
        "plan": record.plan,
        "scopes": list(record.scopes),
        "name": record.name,
        "created": _written(record.created),
        "expires": _written(record.expires),
        "revoked": _written(record.revoked),
    }
    if digests:
        document["sha256"] = newest.sha256
        document["previous"] = [
            {"sha256": each.sha256, "until": _written(each.until)} for each in older
        ]
    elif older and record.revoked is None:
        document["previous"] = [{"until": _written(each.until)} for each in older]
    return {name: value for name, value in document.items() if value not in ("", [], None)}


def record_of(document: object) -> KeyRecord:
    """Return the record that :func:`document_of` wrote, or that an operator wrote by hand.

    :raises ValueError: A member is missing, unknown or invalid; the message names it.
    """
    if not isinstance(document, Mapping):
        raise ValueError(
            'expected a table such as { id = "acme-1", owner = "acme", sha256 = "..." }'
        )
    if "key" in document:
        raise ValueError(
            "key: a record does not contain the key itself; put the SHA-256 of the key into sha256"
        )
    _known(document, _FIELDS)
    for field in ("id", "owner", "sha256"):
        if field not in document:
            raise ValueError(f"{field}: is required")
    older = document.get("previous", [])
    if not isinstance(older, list) or not all(isinstance(each, Mapping) for each in older):
        raise ValueError('previous: expected a list of tables { sha256 = "...", until = ... }')
    previous = []
    for each in older:
        _known(each, _PREVIOUS, "previous.")
        until = _moment("previous.until", each.get("until"))
        if until is None:
            raise ValueError("previous.until: is required: when the replaced key ends")
        previous.append(Secret(each.get("sha256", ""), until))
    scopes = document.get("scopes", [])
    if not isinstance(scopes, list):
        raise ValueError('scopes: expected a list such as ["orders:read"]')
    return KeyRecord(
        id=document["id"],
        owner=document["owner"],
        secrets=(Secret(document["sha256"]), *previous),
        created=_moment("created", document.get("created")) or 0.0,
        plan=document.get("plan", ""),
        scopes=tuple(scopes),
        name=document.get("name", ""),
        expires=_moment("expires", document.get("expires")),
        revoked=_moment("revoked", document.get("revoked")),
    )


def _known(document: Mapping[Any, Any], fields: Iterable[str], path: str = "") -> None:
    for field in document:
        if field not in fields:
            shown = str(field)[:40]
            raise ValueError(f"{path}{shown}: unknown; known are {', '.join(fields)}")


def _written(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(math.floor(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(field: str, value: object) -> float | None:
    """Return a Unix time; in a document it is a number, ISO 8601 text, or a time of TOML."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**37:
        raise ValueError(f'{field}: expected a time such as "2030-01-31T12:00:00Z"')
    return float(value)
