"""Senders of webhooks: what each of them signs, and how, written down from their documentation."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["PRIVATE", "PUBLIC", "SECRETS", "SENDERS", "standard", "standard_ed25519"]

RAW = bytes(range(32))
SECRETS = {
    "standard": f"whsec_{base64.b64encode(RAW).decode()}",
    "svix": base64.b64encode(RAW).decode(),
    "github": "It's a Secret to Everybody",
    "stripe": "whsec_a_secret_of_stripe",
    "slack": "8f742231b10e8888abcd99yyyzzz85a5",
}
PRIVATE = Ed25519PrivateKey.from_private_bytes(RAW)
PUBLIC = "whpk_" + base64.b64encode(
    PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
).decode("ascii")


def made(secret: bytes, content: bytes) -> bytes:
    return hmac.new(secret, content, hashlib.sha256).digest()


def standard(
    body: bytes,
    time: int,
    secret: str = SECRETS["standard"],
    *,
    name: str = "msg_1",
    of: str = "webhook",
) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = made(key, f"{name}.{time}.".encode() + body)
    return {
        f"{of}-id": name,
        f"{of}-timestamp": str(time),
        f"{of}-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def standard_ed25519(body: bytes, time: int, *, name: str = "msg_1") -> dict[str, str]:
    signature = PRIVATE.sign(f"{name}.{time}.".encode() + body)
    fields = standard(body, time, name=name)
    return {**fields, "webhook-signature": f"v1a,{base64.b64encode(signature).decode()}"}


def svix(body: bytes, time: int, secret: str = SECRETS["svix"]) -> dict[str, str]:
    return standard(body, time, secret, of="svix")


def github(body: bytes, time: int, secret: str = SECRETS["github"]) -> dict[str, str]:
    return {"X-Hub-Signature-256": f"sha256={made(secret.encode(), body).hex()}"}


def stripe(body: bytes, time: int, secret: str = SECRETS["stripe"]) -> dict[str, str]:
    signature = made(secret.encode(), f"{time}.".encode() + body).hex()
    return {"Stripe-Signature": f"t={time},v1={signature},v0={'0' * 64}"}


def slack(body: bytes, time: int, secret: str = SECRETS["slack"]) -> dict[str, str]:
    signature = made(secret.encode(), f"v0:{time}:".encode() + body).hex()
    return {"X-Slack-Request-Timestamp": str(time), "X-Slack-Signature": f"v0={signature}"}


SENDERS: dict[str, Callable[..., dict[str, str]]] = {
    "standard": standard,
    "svix": svix,
    "github": github,
    "stripe": stripe,
    "slack": slack,
}
