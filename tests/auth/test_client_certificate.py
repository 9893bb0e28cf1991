"""Client certificates: the forms in which they arrive, what they say, and who has issued them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.certificates import Authority
from wsgigate.auth.client_certificate import (
    Authorities,
    CertificateRejected,
    ForwardedCertificate,
    VerifiedCertificate,
    allowed_subjects,
    fingerprint_of,
    from_client_cert,
    from_pem,
    from_xfcc,
    subject_of,
)

NAMES = [
    x509.DNSName("shop.example"),
    x509.UniformResourceIdentifier("spiffe://shop.example/orders"),
    x509.RFC822Name("ops@shop.example"),
]
HASH = "ab" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def pem(authority: Authority) -> str:
    return authority.issue("orders", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]


def der(pem: str) -> str:
    return "".join(pem.split("-----")[2].split())


def test_each_form_says_the_same(pem: str) -> None:
    forms = [
        from_pem(pem),
        from_pem(quote(pem, safe=""), escaped=True),  # nginx
        from_pem(quote(pem, safe="+=/"), escaped=True),  # AWS
        from_pem(quote(der(pem), safe=""), escaped=True),  # Traefik
        from_client_cert(f":{der(pem)}:"),
    ]
    [certificate] = {form.certificate for form in forms}
    assert certificate.subject == "CN=orders"
    assert certificate.issuer == "CN=authority"
    assert certificate.common_name == "orders"
    assert certificate.dns == ("shop.example",)
    assert certificate.uris == ("spiffe://shop.example/orders",)
    assert certificate.emails == ("ops@shop.example",)
    raw = base64.b64decode(der(pem))
    parsed = x509.load_der_x509_certificate(raw)
    assert certificate.serial == f"{parsed.serial_number:x}"
    assert certificate.not_after == parsed.not_valid_after_utc.timestamp()
    element = f'Hash={certificate.fingerprint};Cert="{quote(pem, safe="")}"'
    assert from_xfcc(element).certificate == certificate


def test_the_thumbprint_is_that_of_rfc_8705() -> None:
    # RFC 7515 appendix C: base64url without padding
    certificate = VerifiedCertificate("CN=a", "00" * 31 + "ff")
    assert certificate.thumbprint == "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8"


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("dn", "CN=orders"),
        ("cn", "orders"),
        ("san_dns", "shop.example"),
        ("san_uri", "spiffe://shop.example/orders"),
        ("san_email", "ops@shop.example"),
    ],
)
def test_the_subject_is_the_name_that_was_chosen(kind: str, subject: str, pem: str) -> None:
    assert subject_of(from_pem(pem).certificate, kind) == subject
    with pytest.raises(CertificateRejected, match="the certificate has no"):
        subject_of(VerifiedCertificate("", HASH), kind)


def test_a_spiffe_id_is_the_only_uri() -> None:
    certificate = VerifiedCertificate("", HASH, uris=("https://a", "SPIFFE://b"))
    with pytest.raises(CertificateRejected, match="SPIFFE"):
        subject_of(certificate, "san_uri")
    two = VerifiedCertificate("", HASH, uris=("https://a", "https://b"))
    assert subject_of(two, "san_uri") == "https://a"


@pytest.mark.parametrize(
    ("kind", "pattern", "allowed", "rejected"),
    [
        (
            "san_uri",
            "spiffe://shop/*",
            ["spiffe://shop/a"],
            ["spiffe://shop/a/b", "spiffe://shop/"],
        ),
        ("san_uri", "spiffe://shop/**", ["spiffe://shop/a/b"], ["spiffe://shop.evil/a"]),
        ("san_dns", "*.shop.example", ["A.shop.example"], ["a.b.shop.example", "shop.example"]),
        ("dn", "CN=*,O=Acme", ["CN=a b,O=Acme"], ["CN=a,O=Evil,O=Acme", "CN=a,O=Acme,C=DE"]),
        ("dn", "CN=*,O=Acme", [r"CN=a\,b,O=Acme"], [r"CN=a\,O=Acme", "CN=a+OU=b,O=Acme"]),
        ("dn", "CN=*-prod,O=Acme", ["CN=a-prod,O=Acme"], ["CN=-prod,O=Acme"]),
        ("san_email", "*@shop.example", ["a@shop.example"], ["a@b@shop.example", "@shop.example"]),
        ("cn", "orders-*", ["orders-a.b/c"], ["orders-", "xorders-1", "orders-1\n"]),
        ("cn", "a.b", ["a.b"], ["axb", "A.b"]),
    ],
)
def test_a_pattern_is_for_parts_of_a_name(
    kind: str, pattern: str, allowed: list[str], rejected: list[str]
) -> None:
    found = allowed_subjects(["never", pattern], kind)
    assert found is not None
    assert all(found.fullmatch(each) for each in allowed)
    assert not any(found.fullmatch(each) for each in rejected)


def test_no_pattern_allows_all() -> None:
    assert allowed_subjects([], "cn") is None


@pytest.mark.parametrize("patterns", ["spiffe://shop/*", [""], [7]])
def test_a_pattern_is_a_text(patterns: list[str]) -> None:
    with pytest.raises(ValueError, match=r"allow: "):
        allowed_subjects(patterns, "cn")


def test_a_fingerprint_may_have_colons() -> None:
    colons = ":".join(["AB"] * 32)
    assert fingerprint_of(colons) == fingerprint_of(HASH) == HASH
    for text in ("ab" * 20, HASH + "0", "zz" * 32):
        with pytest.raises(ValueError, match=r"revoked: .* is not a SHA-256 fingerprint"):
            fingerprint_of(text)


def test_the_last_element_of_xfcc_counts() -> None:
    value = (
        f'By=spiffe://proxy;Hash={"cd" * 32};Subject="CN=evil\\",Hash=x";URI=spiffe://evil,'
        f'by=spiffe://proxy;HASH={HASH.upper()};Subject="CN=orders,O=Acme \\"A\\", Inc.";'
        "URI=spiffe://shop/orders;DNS=a.example;DNS=b.example"
    )
    certificate = from_xfcc(value).certificate
    assert certificate.fingerprint == HASH
    assert certificate.subject == 'CN=orders,O=Acme "A", Inc.'
    assert certificate.uris == ("spiffe://shop/orders",)
    assert certificate.dns == ("a.example", "b.example")
    assert certificate.common_name is None  # the name is not one of RFC 4514
    plain = from_xfcc(f'Hash={HASH};Subject="CN=orders,O=Acme"').certificate
    assert plain.common_name == "orders"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Hash",
        f"Hash={HASH};",
        f"Hash={HASH},",
        f",Hash={HASH}",
        f"Hash={HASH[:-1]}",
        "Subject=CN=a",
        f"Hash={HASH};Hash={HASH}",
        f'Hash={HASH};Subject="a";Subject="b"',
        f"Hash={HASH};Unknown=1",
        f'Hash={HASH};Subject="CN=a',
        f'Hash={HASH};Subject="CN=a"b',
        f'Hash={HASH};Subject=CN="a"',
        f'By="{HASH},Hash={HASH};Subject="CN=a"',
        f"Hash={HASH}; URI=a",
        f'Hash={HASH};Subject="CN=a\n"',
        f"Hash={HASH};Cert=x",
        "," * 100,
        f"Hash={HASH}," * 40 + f"Hash={HASH}",
        f"Hash={HASH};URI=" + "a" * 70_000,
    ],
)
def test_a_malformed_xfcc_is_rejected_as_a_whole(value: str) -> None:
    with pytest.raises(CertificateRejected):
        from_xfcc(value)


def test_the_hash_of_xfcc_is_that_of_its_certificate(pem: str) -> None:
    with pytest.raises(CertificateRejected, match="the hash is not"):
        from_xfcc(f'Hash={HASH};Cert="{quote(pem, safe="")}"')


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[1:],
        lambda text: f"{text}, {text}",
        lambda text: f"{text};a=1",
        lambda text: text.replace("M", "!", 1),
        lambda text: text[:100] + ":",
        lambda text: ":AAAA:",
        lambda text: ":" + "A" * 70_000 + ":",
    ],
)
def test_a_malformed_client_cert_is_rejected(damage: Callable[[str], str], pem: str) -> None:
    with pytest.raises(CertificateRejected):
        from_client_cert(damage(f":{der(pem)}:"))


@pytest.mark.parametrize(
    "names",
    [b"\x30\x02\xa3\x00", b"\x30\x03\x86\x01", b"\x30\x03\x86\x01\x07", b"\x30\x03\x82\x01\xff"],
    ids=["of a kind that is not known", "cut", "a control character", "no ASCII"],
)
def test_a_certificate_with_malformed_names_is_rejected(names: bytes) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    value = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode("ascii")
    with pytest.raises(CertificateRejected):
        from_client_cert(f":{value}:")


def test_a_chain_has_a_bound(pem: str) -> None:
    item = f":{der(pem)}:"
    assert len(from_client_cert(item, ", ".join([item] * 10)).chain) == 10
    with pytest.raises(CertificateRejected, match="more than 10"):
        from_client_cert(item, ", ".join([item] * 11))
    with pytest.raises(CertificateRejected, match="1 to 10"):
        from_pem(pem * 11)


@pytest.mark.parametrize("between", [" ", "\n", "A", "A\n", "\nA="])
def test_a_pem_without_an_end_takes_linear_time(between: str) -> None:
    """With anything more than linear this would not end."""
    text = f"-----BEGIN CERTIFICATE-----{between * 10_000}!"
    with pytest.raises(CertificateRejected, match="not in PEM form"):
        from_pem(text)
    with pytest.raises(CertificateRejected, match="not in PEM form"):
        from_pem(text.replace("\n", "%0A"), escaped=True)


@pytest.mark.parametrize("value", ["", "x", "-----BEGIN CERTIFICATE-----", "%", "%2D" * 30, ",,"])
def test_a_malformed_pem_is_rejected(value: str, pem: str) -> None:
    for escaped in (True, False):
        with pytest.raises(CertificateRejected):
            from_pem(value, escaped=escaped)
        with pytest.raises(CertificateRejected):
            from_pem(f"{pem}{value or 'x'}", escaped=escaped)


READERS: list[Callable[[str], ForwardedCertificate]] = [
    from_xfcc,
    from_client_cert,
    from_pem,
    lambda text: from_pem(text, escaped=True),
    lambda text: from_client_cert(":AAAA:", text),
]


@given(st.text(st.sampled_from('=;,:"\\aHhSs%-BEGIN \n\x00é'), max_size=60) | st.text(max_size=80))
def test_no_text_breaks_a_parser(text: str) -> None:
    for value in (text, f"Hash={HASH};Subject={text}", f'Hash={HASH};Subject="{text}"'):
        for read in READERS:
            try:
                found = read(value).certificate
            except CertificateRejected:
                continue
            assert found.subject.isprintable()


@given(st.text(st.sampled_from('=;,"\\aCN '), max_size=30))
def test_what_envoy_quotes_is_read_as_it_was(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    value = f'Hash={"0" * 64};Subject="{escaped}",Hash={HASH};Subject="{escaped}"'
    certificate = from_xfcc(value).certificate
    assert (certificate.fingerprint, certificate.subject) == (HASH, text)


def test_authorities_verify_a_chain(authority: Authority, pem: str, folder: Path) -> None:
    between = Authority(folder, "between", issuer=authority)
    other = Authority(folder, "other")
    leaf = between.issue("leaf", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]
    middle = between.path.read_text().partition("-----BEGIN PRIVATE")[0]
    authorities = Authorities(authority.path.read_bytes())
    direct, chained = from_pem(pem), from_pem(leaf + middle)
    assert direct.parsed is not None
    assert chained.parsed is not None
    now = (direct.certificate.not_before or 0) + 60
    until = authorities.verify(direct.parsed, (), now)
    assert until == direct.certificate.not_after
    assert authorities.verify(chained.parsed, chained.chain, now) > now
    for parsed, chain, at in [
        (chained.parsed, (), now),
        (direct.parsed, (), until + 60),
        (direct.parsed, (), now - 3600),
    ]:
        with pytest.raises(CertificateRejected, match="no authority of ca"):
            authorities.verify(parsed, chain, at)
    with pytest.raises(CertificateRejected, match="no authority of ca"):
        Authorities(other.path.read_bytes()).verify(direct.parsed, (), now)
    # a certificate that is none of an authority signs no other one
    false = Authority(folder, "false", issuer=authority, own=False)
    forged = false.issue("forged", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]
    ending = false.path.read_text().partition("-----BEGIN PRIVATE")[0]
    found = from_pem(forged + ending)
    assert found.parsed is not None
    with pytest.raises(CertificateRejected, match="no authority of ca"):
        authorities.verify(found.parsed, found.chain, now)


def test_a_file_without_certificates_has_no_authorities() -> None:
    with pytest.raises(ValueError, match="no valid certificate"):
        Authorities(b"nothing")
