"""Signatures of webhooks: the examples of the senders, and what is no valid signature."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.webhooks import PUBLIC, SECRETS, SENDERS, standard, standard_ed25519
from wsgigate.auth.webhooks import (
    PROVIDERS,
    CustomSignature,
    SignedWebhook,
    WebhookRejected,
    WebhookSignatures,
    check_content,
)
from wsgigate.http.wsgi import environ_key

BODY = b'{"event": "paid"}'
NOW = 1_700_000_000


def environ(fields: dict[str, str]) -> dict[str, str]:
    return {environ_key(name): value for name, value in fields.items()}


def signed(signatures: WebhookSignatures, fields: dict[str, str]) -> SignedWebhook:
    found = signatures.read(environ(fields))
    assert found is not None
    return found


def is_valid(signatures: WebhookSignatures, fields: dict[str, str], body: bytes = BODY) -> bool:
    try:
        signatures.verify(signed(signatures, fields), body)
    except WebhookRejected:
        return False
    return True


def of(provider: str, *secrets: str) -> WebhookSignatures:
    return WebhookSignatures(provider, secrets or [SECRETS[provider]])


def test_the_example_of_standard_webhooks() -> None:
    # https://github.com/standard-webhooks/standard-webhooks, the example of its libraries' tests
    fields = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    signatures = of("standard", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert is_valid(signatures, fields, b'{"test": 2432232314}')
    found = signed(signatures, fields)
    assert (found.id, found.time) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330)


def test_the_example_of_github() -> None:
    # "Validating webhook deliveries", section "Testing the webhook payload validation"
    value = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert is_valid(of("github"), {"X-Hub-Signature-256": value}, b"Hello, World!")


def test_the_example_of_slack() -> None:
    # "Verifying requests from Slack", the step-by-step walk-through
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id="
        b"G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2F"
        b"webhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J"
        b"%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121."
        b"803a0bc887a14d10d2c447fce8b6703c"
    )
    fields = {
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    assert is_valid(of("slack"), fields, body)


@pytest.mark.parametrize("provider", SENDERS)
def test_what_a_sender_signs_cannot_be_changed(provider: str) -> None:
    signatures, fields = of(provider), SENDERS[provider](BODY, NOW)
    assert is_valid(signatures, fields)
    assert not is_valid(signatures, fields, BODY + b" ")
    assert not is_valid(signatures, fields, b"")
    for name, value in fields.items():
        if not name.lower().endswith("signature") and str(NOW) in value:
            assert not is_valid(signatures, {**fields, name: str(NOW + 1)})
    assert not is_valid(signatures, SENDERS[provider](BODY, NOW, "YW5vdGhlciBzZWNyZXQ="))
    assert signatures.read({}) is None


@pytest.mark.parametrize("provider", SENDERS)
def test_several_secrets_are_valid_during_a_rotation(provider: str) -> None:
    old, new = SECRETS[provider], "YW5vdGhlciBzZWNyZXQ="
    for secrets in ((old, new), (new, old)):
        signatures = of(provider, *secrets)
        assert is_valid(signatures, SENDERS[provider](BODY, NOW, old))
        assert is_valid(signatures, SENDERS[provider](BODY, NOW, new))


def test_a_sender_may_send_several_signatures() -> None:
    good = standard(BODY, NOW)["webhook-signature"]
    bad = standard(BODY, NOW, "YW5vdGhlciBzZWNyZXQ=")["webhook-signature"]
    for value in (f"{bad} {good}", f"{good} {bad}", f"v2,unknown {good}"):
        assert is_valid(of("standard"), {**standard(BODY, NOW), "webhook-signature": value})
    assert not is_valid(
        of("standard"), {**standard(BODY, NOW), "webhook-signature": f"{bad} {bad} v9,{good}"}
    )


def test_a_public_key_verifies_the_signatures_of_its_private_key() -> None:
    fields = standard_ed25519(BODY, NOW)
    assert is_valid(of("standard", PUBLIC), fields)
    assert is_valid(of("standard", SECRETS["standard"], PUBLIC), fields)
    assert not is_valid(of("standard", PUBLIC), fields, b"other")
    # a signature of one kind is none of the other: v1a is never compared with an HMAC
    assert not is_valid(of("standard"), fields)
    mixed = {**fields, "webhook-signature": fields["webhook-signature"].replace("v1a", "v1")}
    assert not is_valid(of("standard", PUBLIC), mixed)


def test_an_id_cannot_take_a_part_of_what_follows() -> None:
    """ "a.1.2.body" is signed once, and could be divided in two ways."""
    fields = standard(f"{NOW}.{BODY.decode()}".encode(), NOW, name="msg")
    moved = {**fields, "webhook-id": f"msg.{NOW}", "webhook-timestamp": str(NOW)}
    with pytest.raises(WebhookRejected, match="full stop"):
        of("standard").read(environ(moved))


@pytest.mark.parametrize(
    ("provider", "changed"),
    [
        ("standard", {"webhook-id": ""}),
        ("standard", {"webhook-id": "a b"}),
        ("standard", {"webhook-id": "a" * 257}),
        ("standard", {"webhook-timestamp": ""}),
        ("standard", {"webhook-timestamp": "-1"}),
        ("standard", {"webhook-timestamp": "1.5"}),
        ("standard", {"webhook-timestamp": "１"}),
        ("standard", {"webhook-timestamp": "1" * 13}),
        ("standard", {"webhook-signature": "v1"}),
        ("standard", {"webhook-signature": "v1,"}),
        ("standard", {"webhook-signature": "v1,é"}),
        ("standard", {"webhook-signature": "v1,AA"}),
        ("standard", {"webhook-signature": "v1,AAAA,v1,AAAA"}),
        ("standard", {"webhook-signature": " ".join(["v1,AAAA"] * 17)}),
        ("standard", {"webhook-signature": "v1," + "A" * 5000}),
        ("github", {"X-Hub-Signature-256": "sha1=00"}),
        ("github", {"X-Hub-Signature-256": "sha256="}),
        ("github", {"X-Hub-Signature-256": "sha256=0"}),
        ("github", {"X-Hub-Signature-256": "sha256=zz"}),
        ("github", {"X-Hub-Signature-256": "sha256=00,sha256=00"}),
        ("stripe", {"Stripe-Signature": "t=1"}),
        ("stripe", {"Stripe-Signature": "v1=00"}),
        ("stripe", {"Stripe-Signature": "t=1,t=2,v1=00"}),
        ("stripe", {"Stripe-Signature": "t=1,v0=00"}),
        ("stripe", {"Stripe-Signature": "t=1,v1"}),
        ("slack", {"X-Slack-Request-Timestamp": ""}),
        ("slack", {"X-Slack-Signature": "v1=00"}),
    ],
)
def test_a_malformed_signature_is_rejected(provider: str, changed: dict[str, str]) -> None:
    fields = {**SENDERS[provider](BODY, NOW), **changed}
    with pytest.raises(WebhookRejected):
        of(provider).verify(signed(of(provider), fields), BODY)


@pytest.mark.parametrize(
    ("custom", "fields"),
    [
        (
            CustomSignature("X-Shopify-Hmac-Sha256", encoding="base64"),
            lambda mac: {"X-Shopify-Hmac-Sha256": base64.b64encode(mac("sha256", BODY)).decode()},
        ),
        (
            CustomSignature("X-Sig", "sha512=", algorithm="sha512"),
            lambda mac: {"X-Sig": f"sha512={mac('sha512', BODY).hex()}"},
        ),
        (
            CustomSignature("X-Sig", timestamp_header="X-Time"),
            lambda mac: {
                "X-Time": str(NOW),
                "X-Sig": mac("sha256", f"{NOW}.".encode() + BODY).hex(),
            },
        ),
        (
            CustomSignature("X-Sig", timestamp_header="X-Time", content="v1:{body}:{timestamp}"),
            lambda mac: {
                "X-Time": str(NOW),
                "X-Sig": mac("sha256", b"v1:" + BODY + f":{NOW}".encode()).hex(),
            },
        ),
    ],
)
def test_another_sender_is_described(custom: CustomSignature, fields: Any) -> None:
    secret = "a secret of the sender"
    signatures = WebhookSignatures("hmac", [secret], custom)
    given = fields(lambda algorithm, text: hmac.digest(secret.encode(), text, algorithm))
    assert is_valid(signatures, given)
    assert not is_valid(signatures, given, b"other")
    assert signed(signatures, given).time == (NOW if custom.timestamp_header else None)
    if custom.timestamp_header:
        assert not is_valid(signatures, {**given, "X-Time": str(NOW + 1)})
        with pytest.raises(WebhookRejected, match="time"):
            signatures.read(environ({**given, "X-Time": ""}))


@pytest.mark.parametrize("provider", ["standard", "svix", "slack", "stripe", "hmac"])
def test_a_time_has_no_zeros_in_front(provider: str) -> None:
    """Of a body that ends with zeros, they could become a part of the time behind it."""
    custom = CustomSignature("X-Sig", timestamp_header="X-Time", content="{body}{timestamp}")
    secrets = ["YW5vdGhlciBzZWNyZXQ="]
    signatures = WebhookSignatures(provider, secrets, custom if provider == "hmac" else None)
    for time, accepted in ((str(NOW), True), ("0", True), (f"00{NOW}", False), ("00", False)):
        mac = hmac.digest(secrets[0].encode(), f"amount=1{time}".encode(), "sha256").hex()
        fields = {
            "hmac": {"X-Sig": mac, "X-Time": time},
            "slack": {"X-Slack-Signature": f"v0={mac}", "X-Slack-Request-Timestamp": time},
            "stripe": {"Stripe-Signature": f"t={time},v1={mac}"},
        }
        of = "svix" if provider == "svix" else "webhook"
        standards = {f"{of}-id": "1", f"{of}-timestamp": time, f"{of}-signature": "v1,AAAA"}
        given = environ(fields.get(provider, standards))
        if accepted:
            assert signatures.read(given) is not None
        else:
            with pytest.raises(WebhookRejected, match="time is missing, or not a whole number"):
                signatures.read(given)


@pytest.mark.parametrize(
    ("content", "timed"),
    [("", False), ("{body}{body}", False), ("{timestamp}{body}", False), ("{body}", True)],
)
def test_the_content_has_the_body_and_the_time(content: str, timed: bool) -> None:
    with pytest.raises(ValueError, match=r"content: "):
        check_content(content, timed)


@pytest.mark.parametrize(
    ("provider", "secret", "message"),
    [
        ("standard", "whsec_!", 'is not in base64, .* set provider, such as "github"'),
        ("standard", "whsec_", "is empty"),
        ("standard", "whsec_AAAA", "has 3 bytes, at least 8"),
        ("standard", "whsk_AAAA", "public key, which begins with whpk_"),
        ("standard", "whpk_AAAA", "a public key of Ed25519 has 32"),
        ("github", "short", "has 5 bytes, at least 8"),
    ],
)
def test_an_invalid_secret_is_named_and_not_shown(provider: str, secret: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        of(provider, SECRETS[provider], secret)
    assert "the secret 2 of 2 " in str(caught.value)
    assert "AAAA" not in str(caught.value)
    assert "short" not in str(caught.value)


def both() -> dict[str, str]:
    """Return the fields of a request that is signed by an old and a new secret."""
    old, new = standard(BODY, NOW), standard(BODY, NOW, "YW5vdGhlciBzZWNyZXQ=")
    return {**old, "webhook-signature": f"{old['webhook-signature']} {new['webhook-signature']}"}


@pytest.mark.parametrize("secret", [SECRETS["standard"], PUBLIC])
def test_copies_have_one_fingerprint(secret: str) -> None:
    def fingerprint(fields: dict[str, str], body: bytes = BODY) -> str:
        signatures = of("standard", secret)
        return signatures.fingerprint(signed(signatures, fields), body)

    first = fingerprint(standard(BODY, NOW))
    again = {**standard(BODY, NOW), "webhook-signature": "v1,AAAA"}
    assert fingerprint(again) == first
    assert fingerprint(standard(BODY, NOW + 1)) != first != fingerprint(standard(BODY, NOW), b"x")
    rotating = of("standard", SECRETS["standard"], "YW5vdGhlciBzZWNyZXQ=")
    marks = {rotating.fingerprint(signed(rotating, fields), BODY) for fields in (again, both())}
    assert len(marks) == 1
    # the same event for another receiver, which has another secret
    other = of("standard", "YW5vdGhlciBzZWNyZXQ=")
    assert other.fingerprint(signed(other, standard(BODY, NOW)), BODY) != first


TEXTS = st.text(st.sampled_from("v01a,=+/ t.AZs\x00é\n9"), max_size=60) | st.text(max_size=60)


@given(TEXTS, TEXTS, TEXTS)
def test_no_text_breaks_a_reader(name: str, time: str, signature: str) -> None:
    custom = CustomSignature("X-Signature", timestamp_header="X-Time")
    fields = {
        f"{prefix}_{key}": value
        for prefix in ("HTTP_WEBHOOK", "HTTP_SVIX")
        for key, value in (("ID", name), ("TIMESTAMP", time), ("SIGNATURE", signature))
    }
    fields |= {
        "HTTP_X_HUB_SIGNATURE_256": signature,
        "HTTP_STRIPE_SIGNATURE": signature,
        "HTTP_X_SLACK_SIGNATURE": signature,
        "HTTP_X_SLACK_REQUEST_TIMESTAMP": time,
        "HTTP_X_SIGNATURE": signature,
        "HTTP_X_TIME": time,
    }
    for provider in PROVIDERS:
        secrets = ["YW5vdGhlciBzZWNyZXQ="]
        signatures = WebhookSignatures(provider, secrets, custom if provider == "hmac" else None)
        try:
            found = signatures.read(fields)
            if found is not None:
                signatures.verify(found, BODY)
        except WebhookRejected:
            continue
        assert not signature
