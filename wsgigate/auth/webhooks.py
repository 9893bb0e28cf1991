"""Signatures of webhooks: how senders sign a request, and whether a signature is valid.

A sender signs the raw body with a secret that it shares with the receiver (HMAC), or with a private
key; most sign the time of the attempt as well. What is signed is always a prefix, the body, and a
suffix, so the three parts of a request that a form reads are enough to verify it:

- ``standard`` (Standard Webhooks; ``svix`` is the same with other fields): the id of the message,
  the time and the body, with full stops between them. The id must not contain one: a signature for
  one division of the text would be valid for another.
- ``github``: the body alone, so a copy of a request looks like a redelivery.
- ``stripe``, ``slack``: the time and the body.
- ``hmac``: any other sender, by what the receiver knows of it.

Every signature of a request is compared with that of every secret, in constant time.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from wsgigate.http.wsgi import environ_key

__all__ = [
    "ALGORITHMS",
    "ENCODINGS",
    "PROVIDERS",
    "CustomSignature",
    "SignedWebhook",
    "WebhookRejected",
    "WebhookSignatures",
    "check_content",
]

PROVIDERS = ("standard", "svix", "github", "stripe", "slack", "hmac")
"""The forms of signatures, by the name of the sender or the standard."""

ALGORITHMS = ("sha256", "sha384", "sha512")
"""The hash functions of ``hmac``."""

ENCODINGS = ("hex", "base64")
"""The encodings of the signatures of ``hmac``."""

_LONGEST = 4096
_MOST_SIGNATURES = 16
_LEAST_SECRET = 8
# Without zeros in front: where nothing separates the body from the time, as in "{body}{timestamp}",
# zeros at the end of a body could become a part of the time.
_TIME = re.compile(r"0|[1-9][0-9]{0,11}")
_ID = re.compile(r"[\x21-\x2d\x2f-\x7e]{1,256}")  # without a full stop


class WebhookRejected(Exception):
    """A webhook has no valid signature; the message is for the log."""


class SignedWebhook(NamedTuple):
    """What a request says about its signature.

    :ivar signatures: The signatures, each with the kind of key that must have made it.
    :ivar before: What is signed before the body.
    :ivar after: What is signed after the body.
    :ivar time: Unix time of the attempt, if it is signed.
    :ivar id: The id of the message, if it is signed.
    """

    signatures: Sequence[tuple[str, bytes]]
    before: bytes = b""
    after: bytes = b""
    time: int | None = None
    id: str | None = None


class CustomSignature(NamedTuple):
    """How another sender signs, for ``hmac``.

    :ivar header: The field with the signature.
    :ivar prefix: What the field has before the signature, such as ``"sha256="``.
    :ivar encoding: One of :data:`ENCODINGS`.
    :ivar algorithm: One of :data:`ALGORITHMS`.
    :ivar timestamp_header: The field with the Unix time of the attempt.
    :ivar content: What is signed: ``{body}`` and, with a *timestamp_header*, ``{timestamp}``.
    """

    header: str
    prefix: str = ""
    encoding: str = "hex"
    algorithm: str = "sha256"
    timestamp_header: str | None = None
    content: str | None = None


class WebhookSignatures:
    """Reads and verifies the signatures of one sender.

    :param provider: One of :data:`PROVIDERS`.
    :param secrets: The secrets or public keys of the sender; each may have signed a request.
    :param custom: How ``hmac`` signs.
    :raises ValueError: A secret is malformed; the message never shows it.
    """

    def __init__(
        self, provider: str, secrets: Sequence[str], custom: CustomSignature | None = None
    ) -> None:
        self._custom = custom
        self._algorithm = "sha256" if custom is None else custom.algorithm
        self._hmac: list[bytes] = []
        self._ed25519: list[Ed25519PublicKey] = []
        standard = provider in ("standard", "svix")
        for place, secret in enumerate(secrets):
            try:
                if standard and secret.startswith("whpk_"):
                    self._ed25519.append(_public_key(secret.removeprefix("whpk_")))
                else:
                    self._hmac.append(_standard_secret(secret) if standard else _secret(secret))
            except ValueError as error:
                where = f" {place + 1} of {len(secrets)}" if len(secrets) > 1 else ""
                raise ValueError(f"the secret{where} {error}") from None
        prefix = "webhook" if provider == "standard" else provider
        self._fields = [
            environ_key(f"{prefix}-{name}") for name in ("id", "timestamp", "signature")
        ]
        forms: dict[str, Callable[[Mapping[str, str]], SignedWebhook | None]] = {
            "standard": self._read_standard,
            "svix": self._read_standard,
            "github": _read_github,
            "stripe": _read_stripe,
            "slack": _read_slack,
            "hmac": self._read_custom,
        }
        self._read = forms[provider]
        if custom is not None:
            content = custom.content or (
                "{timestamp}.{body}" if custom.timestamp_header else "{body}"
            )
            self._before, _, self._after = content.partition("{body}")
            self._field = environ_key(custom.header)
            self._time = custom.timestamp_header and environ_key(custom.timestamp_header)

    def read(self, environ: Mapping[str, str]) -> SignedWebhook | None:
        """Return what a request says about its signature; None if it has none.

        :raises WebhookRejected: A field is missing or malformed.
        """
        signed = self._read(environ)
        if signed is not None and len(signed.signatures) > _MOST_SIGNATURES:
            raise WebhookRejected(f"more than {_MOST_SIGNATURES} signatures")
        return signed

    def verify(self, signed: SignedWebhook, body: bytes) -> None:
        """Verify that one of the signatures was made by one of the secrets.

        :raises WebhookRejected: None was.
        """
        made = [self._made_by(secret, signed, body) for secret in self._hmac]
        valid = False
        for kind, signature in signed.signatures:
            if kind == "hmac":
                for each in made:
                    valid |= hmac.compare_digest(each, signature)
            else:
                text = b"".join((signed.before, body, signed.after))
                valid |= any(_is_signed(key, signature, text) for key in self._ed25519)
        if not valid:
            raise WebhookRejected("no signature is that of a secret")

    def fingerprint(self, signed: SignedWebhook, body: bytes) -> str:
        """Return a hash of what the sender has signed: the same for each copy of the request.

        It depends on the first secret, and not on the one that verified the request: the same event
        for another receiver is no copy, and a signature that is left out makes no other request.
        """
        if self._hmac:
            return self._made_by(self._hmac[0], signed, body).hex()
        key = self._ed25519[0].public_bytes_raw()
        return sha256(b"".join((key, signed.before, body, signed.after))).hexdigest()

    def _made_by(self, secret: bytes, signed: SignedWebhook, body: bytes) -> bytes:
        made = hmac.new(secret, signed.before, self._algorithm)
        made.update(body)
        made.update(signed.after)
        return made.digest()

    def _read_standard(self, environ: Mapping[str, str]) -> SignedWebhook | None:
        of_id, of_time, of_signature = self._fields
        value = environ.get(of_signature)
        if not value:
            return None
        name, text = environ.get(of_id, ""), environ.get(of_time, "")
        if not _ID.fullmatch(name):
            raise WebhookRejected("the id is missing or malformed, or contains a full stop")
        time = _time(text)
        signatures: list[tuple[str, bytes]] = []
        for item in _bounded(value).split(" "):
            version, comma, signature = item.partition(",")
            if not comma:
                raise WebhookRejected("a signature is malformed")
            kind = {"v1": "hmac", "v1a": "ed25519"}.get(version)
            if kind is not None:  # another version is for receivers that know it
                signatures.append((kind, _decoded(signature, "base64")))
        return SignedWebhook(signatures, f"{name}.{text}.".encode("ascii"), b"", time, name)

    def _read_custom(self, environ: Mapping[str, str]) -> SignedWebhook | None:
        custom = self._custom
        value = environ.get(self._field)
        if not value or custom is None:
            return None
        signature = _decoded(_without(_bounded(value), custom.prefix), custom.encoding)
        time, parts = None, (self._before, self._after)
        if self._time:
            text = environ.get(self._time, "")
            time = _time(text)
            parts = (parts[0].replace("{timestamp}", text), parts[1].replace("{timestamp}", text))
        before, after = (part.encode("utf-8") for part in parts)
        return SignedWebhook([("hmac", signature)], before, after, time)


def _read_github(environ: Mapping[str, str]) -> SignedWebhook | None:
    value = environ.get("HTTP_X_HUB_SIGNATURE_256")
    if not value:
        return None
    return SignedWebhook([("hmac", _decoded(_without(_bounded(value), "sha256="), "hex"))])


def _read_slack(environ: Mapping[str, str]) -> SignedWebhook | None:
    value = environ.get("HTTP_X_SLACK_SIGNATURE")
    if not value:
        return None
    text = environ.get("HTTP_X_SLACK_REQUEST_TIMESTAMP", "")
    time = _time(text)
    signature = _decoded(_without(_bounded(value), "v0="), "hex")
    return SignedWebhook([("hmac", signature)], f"v0:{text}:".encode("ascii"), b"", time)


def _read_stripe(environ: Mapping[str, str]) -> SignedWebhook | None:
    value = environ.get("HTTP_STRIPE_SIGNATURE")
    if not value:
        return None
    times: list[str] = []
    signatures: list[tuple[str, bytes]] = []
    for item in _bounded(value).split(","):
        name, equals, text = item.partition("=")
        if not equals:
            raise WebhookRejected("the signature is malformed")
        if name == "t":
            times.append(text)
        elif name == "v1":  # v0 is that of test events, by a weaker scheme
            signatures.append(("hmac", _decoded(text, "hex")))
    if len(times) != 1:
        raise WebhookRejected(f"{len(times)} times, 1 expected")
    time = _time(times[0])
    return SignedWebhook(signatures, f"{times[0]}.".encode("ascii"), b"", time)


def _bounded(value: str) -> str:
    if len(value) > _LONGEST:
        raise WebhookRejected(f"a signature field of {len(value)} characters")
    return value


def _without(value: str, prefix: str) -> str:
    if not value.startswith(prefix):
        raise WebhookRejected("the signature does not begin as expected")
    return value[len(prefix) :]


def _time(text: str) -> int:
    if not _TIME.fullmatch(text):
        raise WebhookRejected("the time is missing, or not a whole number of seconds")
    return int(text)


_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}){1,128}")


def _decoded(text: str, encoding: str) -> bytes:
    if encoding == "hex":
        if not _HEX.fullmatch(text):
            raise WebhookRejected("a signature is not in hexadecimal digits")
        return bytes.fromhex(text)
    try:
        return _base64(text)
    except ValueError:
        raise WebhookRejected("a signature is not in base64") from None


def _base64(text: str) -> bytes:
    try:
        found = b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, UnicodeError):
        raise ValueError("is not in base64") from None
    if not found:
        raise ValueError("is empty")
    return found


def _standard_secret(secret: str) -> bytes:
    if secret.startswith("whsk_"):
        raise ValueError(
            "is the sender's private key; give its public key, which begins with whpk_"
        )
    try:
        key = _base64(secret.removeprefix("whsec_"))
    except ValueError as error:
        raise ValueError(
            f'{error}, as "standard" and "svix" require; for another sender set provider, such as '
            '"github"'
        ) from None
    return _long_enough(key)


def _public_key(text: str) -> Ed25519PublicKey:
    key = _base64(text)
    if len(key) != 32:
        raise ValueError(f"has {len(key)} bytes, and a public key of Ed25519 has 32")
    return Ed25519PublicKey.from_public_bytes(key)


def _secret(secret: str) -> bytes:
    return _long_enough(secret.encode("utf-8"))


def _long_enough(secret: bytes) -> bytes:
    if len(secret) < _LEAST_SECRET:
        raise ValueError(f"has {len(secret)} bytes, at least {_LEAST_SECRET} are required")
    return secret


def _is_signed(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def check_content(content: str, timed: bool) -> None:
    """Check what ``hmac`` signs.

    :param timed: Whether the time is signed.
    :raises ValueError: *content* has not exactly one ``{body}``, or not the time.
    """
    if content.count("{body}") != 1:
        raise ValueError(
            f'content: exactly one {{body}}, as in "{{timestamp}}.{{body}}", not {content!r}'
        )
    if timed != ("{timestamp}" in content):
        raise ValueError(
            "content: {timestamp} is required with timestamp_header, or anyone could change it"
            if timed
            else "content: {timestamp} requires timestamp_header, the field that has it"
        )
