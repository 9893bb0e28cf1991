"""Client certificates (mutual TLS): the forms in which they arrive, and what they say.

A certificate reaches the gateway in one of four forms. The server's own ``environ`` has the one of
the TLS connection. A proxy that ends TLS sends it in a field: ``Client-Cert`` (RFC 9440), Envoy's
``X-Forwarded-Client-Cert``, or a field with the certificate as URL-escaped PEM text, such as
nginx's ``$ssl_client_escaped_cert``. The fields prove nothing by themselves: the caller of these
functions reads them from trusted proxies only.

The parsers reject what is not exactly of the expected form, and read a bounded amount.
"""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "SUBJECTS",
    "Authorities",
    "CertificateRejected",
    "ForwardedCertificate",
    "VerifiedCertificate",
    "allowed_subjects",
    "fingerprint_of",
    "from_client_cert",
    "from_pem",
    "from_xfcc",
    "subject_of",
]

SUBJECTS = ("dn", "cn", "san_dns", "san_uri", "san_email")
"""What of a certificate may name the caller."""

_LONGEST = 65_536
_MOST_ELEMENTS = 32
_MOST_CERTIFICATES = 10


class CertificateRejected(Exception):
    """A certificate is invalid, or not of the expected form; the message is for the log."""


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """The verified certificate of a client, in ``environ["wsgigate.client_certificate"]``.

    :ivar subject: The distinguished name of the subject (RFC 4514).
    :ivar fingerprint: The SHA-256 hash of the certificate, in lower-case hexadecimal digits.
    :ivar issuer: The distinguished name of the issuer, if it is known.
    :ivar serial: The serial number in hexadecimal digits, if it is known.
    :ivar common_name: The one common name of the subject; None without one, or with several.
    :ivar dns: The DNS names that the certificate is for.
    :ivar uris: The URIs that it is for, such as a SPIFFE id.
    :ivar emails: The email addresses that it is for.
    :ivar not_before: Unix time from which it is valid, if it is known.
    :ivar not_after: Unix time until which it is valid, if it is known.
    """

    subject: str
    fingerprint: str
    issuer: str | None = None
    serial: str | None = None
    common_name: str | None = None
    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    not_before: float | None = None
    not_after: float | None = None

    @property
    def thumbprint(self) -> str:
        """The ``x5t#S256`` of the certificate (RFC 8705 section 3.1), as tokens have it."""
        return urlsafe_b64encode(bytes.fromhex(self.fingerprint)).rstrip(b"=").decode("ascii")

    def claims(self) -> dict[str, object]:
        """Return what the certificate says as claims, without what it does not say."""
        found = {
            "subject_dn": self.subject,
            "issuer_dn": self.issuer,
            "serial": self.serial,
            "common_name": self.common_name,
            "san": {
                name: list(values)
                for name, values in (("dns", self.dns), ("uri", self.uris), ("email", self.emails))
                if values
            },
            "fingerprint": self.fingerprint,
            "not_before": self.not_before,
            "not_after": self.not_after,
        }
        return {name: value for name, value in found.items() if value not in (None, {}, "")}


class ForwardedCertificate(NamedTuple):
    """What was sent about a client certificate.

    :ivar certificate: What it says.
    :ivar parsed: The certificate itself; None if only parts of it were sent.
    :ivar chain: The certificates between it and the authority.
    """

    certificate: VerifiedCertificate
    parsed: x509.Certificate | None
    chain: Sequence[x509.Certificate] = ()


# The forms in which a certificate arrives.

_BYTES = re.compile(r":([A-Za-z0-9+/]*={0,2}):")  # RFC 8941 section 3.3.5, without parameters


def from_client_cert(value: str, chain: str = "") -> ForwardedCertificate:
    """Return the certificate of a ``Client-Cert`` field, with its ``Client-Cert-Chain`` (RFC 9440).

    :raises CertificateRejected: A field is malformed.
    """
    _check_length(value)
    _check_length(chain)
    parts = [part.strip(" \t") for part in chain.split(",")] if chain else []
    if len(parts) > _MOST_CERTIFICATES:
        raise CertificateRejected(f"Client-Cert-Chain has more than {_MOST_CERTIFICATES} items")
    leaf, *others = (_der_of(each) for each in (value.strip(" \t"), *parts))
    return _forwarded([leaf, *others])


def _der_of(item: str) -> bytes:
    found = _BYTES.fullmatch(item)
    if found is None:
        raise CertificateRejected("Client-Cert is not one byte sequence, such as :MIIC...:")
    return _decoded(found[1])


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise CertificateRejected("a certificate is not in valid base64") from None


# Possessive: a text that is no certificate takes no longer than one that is.
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----\s*+")


def from_pem(value: str, *, escaped: bool = False) -> ForwardedCertificate:
    """Return the certificate in PEM form, followed by those between it and the authority.

    :param escaped: Whether the text is URL-escaped, and may lack the first and the last line, with
        commas between certificates: the form of nginx, Traefik, HAProxy and AWS.
    :raises CertificateRejected: The text is malformed.
    """
    _check_length(value)
    text = unquote(value, errors="replace") if escaped else value
    found: list[bytes] = []
    if escaped and "-----" not in text:
        found = [_decoded("".join(part.split())) for part in text.split(",")]
    else:
        position, text = 0, text.strip()
        while position < len(text):
            block = _PEM.match(text, position)
            if block is None:
                raise CertificateRejected("the certificate is not in PEM form")
            found.append(_decoded("".join(block[1].split())))
            position = block.end()
    if not 0 < len(found) <= _MOST_CERTIFICATES:
        raise CertificateRejected(f"{len(found)} certificates, 1 to {_MOST_CERTIFICATES} expected")
    return _forwarded(found)


_KEYS = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})

_PAIR = re.compile(r'([A-Za-z]{1,16})=(?:"((?:[^"\\]|\\.)*+)"|([^",;\\]*+))([;,]|\Z)', re.DOTALL)

_HASH = re.compile(r"[0-9A-Fa-f]{64}")


def from_xfcc(value: str) -> ForwardedCertificate:
    """Return the certificate of the last element of an ``X-Forwarded-Client-Cert`` field.

    The last element is that of the nearest proxy. Those before it must be well-formed as well: a
    quotation mark that is not closed cannot move the border between two elements.

    :raises CertificateRejected: The field is malformed, or its last element has no hash.
    """
    _check_length(value)
    element: dict[str, list[str]] = {}
    elements, position, end = 1, 0, ";"
    while end:
        pair = _PAIR.match(value, position)
        if pair is None or pair[1].lower() not in _KEYS:
            raise CertificateRejected("X-Forwarded-Client-Cert is malformed")
        quoted, plain, end = pair[2], pair[3], pair[4]
        text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        element.setdefault(pair[1].lower(), []).append(text)
        position = pair.end()
        if end == ",":
            element, elements = {}, elements + 1
            if elements > _MOST_ELEMENTS:
                raise CertificateRejected(f"more than {_MOST_ELEMENTS} elements")
    if any(len(element.get(key, ())) > 1 for key in ("hash", "cert", "chain", "subject")):
        raise CertificateRejected("X-Forwarded-Client-Cert has a key twice")
    return _of_element(element)


def _of_element(element: dict[str, list[str]]) -> ForwardedCertificate:
    hashes = element.get("hash", [])
    if not hashes or not _HASH.fullmatch(hashes[0]):
        raise CertificateRejected("X-Forwarded-Client-Cert has no hash of the certificate")
    fingerprint = hashes[0].lower()
    if "cert" in element:
        pem = from_pem(element["cert"][0], escaped=True)
        if pem.certificate.fingerprint != fingerprint:
            raise CertificateRejected("the hash is not that of the certificate")
        if "chain" not in element:
            return pem
        chain = from_pem(element["chain"][0], escaped=True)
        sent = (chain.parsed, *chain.chain)
        return pem._replace(chain=[each for each in sent if each is not None])
    subject = element.get("subject", [""])[0]
    try:
        name = x509.Name.from_rfc4514_string(subject)
    except ValueError:
        common_name = None
    else:
        common_name = _common_name(name)
    return ForwardedCertificate(
        VerifiedCertificate(
            _printable(subject),
            fingerprint,
            common_name=common_name,
            dns=tuple(map(_printable, filter(None, element.get("dns", ())))),
            uris=tuple(map(_printable, filter(None, element.get("uri", ())))),
        ),
        None,
    )


def _check_length(value: str) -> None:
    if len(value) > _LONGEST:
        raise CertificateRejected(f"a field of {len(value)} characters")


_MALFORMED = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What reading a certificate raises for one that is malformed."""


def _forwarded(ders: Sequence[bytes]) -> ForwardedCertificate:
    try:
        leaf, *chain = map(x509.load_der_x509_certificate, ders)
        certificate = _read(leaf, ders[0])
    except _MALFORMED as error:
        raise CertificateRejected(f"the certificate is malformed: {error}") from None
    return ForwardedCertificate(certificate, leaf, chain)


def _read(found: x509.Certificate, der: bytes) -> VerifiedCertificate:
    dns: list[str] = []
    uris: list[str] = []
    emails: list[str] = []
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        dns = names.get_values_for_type(x509.DNSName)
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        emails = names.get_values_for_type(x509.RFC822Name)
    return VerifiedCertificate(
        subject=_printable(found.subject.rfc4514_string()),
        fingerprint=sha256(der).hexdigest(),
        issuer=_printable(found.issuer.rfc4514_string()),
        serial=f"{found.serial_number:x}",
        common_name=_common_name(found.subject),
        dns=tuple(map(_printable, dns)),
        uris=tuple(map(_printable, uris)),
        emails=tuple(map(_printable, emails)),
        not_before=found.not_valid_before_utc.timestamp(),
        not_after=found.not_valid_after_utc.timestamp(),
    )


def _common_name(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _printable(str(found[0].value)) if len(found) == 1 else None


def _printable(text: str) -> str:
    """Return *text*, which must have no control characters.

    :raises CertificateRejected: It has.
    """
    if not text.isprintable():
        raise CertificateRejected("a name in the certificate has control characters")
    return text


# Who the caller is.


def subject_of(certificate: VerifiedCertificate, kind: str) -> str:
    """Return the name of the caller.

    :param kind: One of :data:`SUBJECTS`.
    :raises CertificateRejected: The certificate has no such name, or it is ambiguous.
    """
    if kind == "dn":
        names: Sequence[str | None] = (certificate.subject,)
    elif kind == "cn":
        names = (certificate.common_name,)
    else:
        by_kind = {
            "san_dns": certificate.dns,
            "san_uri": certificate.uris,
            "san_email": certificate.emails,
        }
        names = by_kind[kind]
    # a SPIFFE id must be the only URI (X.509-SVID section 2)
    if kind == "san_uri" and len(names) > 1 and any(_is_spiffe(name) for name in names):
        raise CertificateRejected("a SPIFFE id beside another URI")
    if not names or not names[0]:
        raise CertificateRejected(f"the certificate has no {_CALLED[kind]}")
    return names[0]


def _is_spiffe(name: str | None) -> bool:
    return name is not None and name.lower().startswith("spiffe:")


_CALLED = {
    "dn": "subject",
    "cn": "one common name",
    "san_dns": "DNS name",
    "san_uri": "URI",
    "san_email": "email address",
}

_WITHIN = {
    # what is escaped is part of a value; a plus sign begins another attribute beside the first
    "dn": r"(?:[^,+\\]|\\.)+",
    "cn": ".+",
    "san_dns": r"[^.]+",
    "san_uri": "[^/]+",
    "san_email": "[^@]+",
}
"""What ``*`` stands for in a pattern of each kind of name."""


def allowed_subjects(patterns: Iterable[str], kind: str) -> re.Pattern[str] | None:
    """Return the expression that the subjects of *patterns* match; None without patterns.

    ``*`` is any text within one part of a name: the value of an attribute of a distinguished name,
    the text between the slashes of a URI or the dots of a DNS name. ``**`` is any text.

    :param kind: One of :data:`SUBJECTS`.
    :raises ValueError: A pattern is empty, or no text.
    """
    if isinstance(patterns, str):
        raise ValueError(f'allow: expected a list such as ["spiffe://shop/*"], not {patterns!r}')
    within = _WITHIN[kind]
    expressions: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"allow: {pattern!r} is not a pattern such as spiffe://shop/*")
        parts = re.split(r"(\*+)", pattern)
        expressions.append(
            "".join(
                (".+" if len(part) > 1 else within) if part[:1] == "*" else re.escape(part)
                for part in parts
            )
        )
    if not expressions:
        return None
    flags = re.IGNORECASE if kind == "san_dns" else 0
    return re.compile("|".join(f"(?:{each})" for each in expressions), flags)


def fingerprint_of(text: str) -> str:
    """Return a SHA-256 fingerprint in lower-case hexadecimal digits.

    :param text: The fingerprint, with or without colons.
    :raises ValueError: It is none.
    """
    plain = text.replace(":", "").lower() if isinstance(text, str) else ""
    if not _HASH.fullmatch(plain):
        raise ValueError(
            f"revoked: {text!r} is not a SHA-256 fingerprint, 64 hexadecimal digits as of "
            "openssl x509 -noout -fingerprint -sha256"
        )
    return plain


# Verification by authorities, for certificates that a proxy has not verified.


class Authorities:
    """The certificate authorities that client certificates must be issued by.

    :param pem: Their certificates.
    :raises ValueError: *pem* has none, or a malformed one.
    """

    def __init__(self, pem: bytes) -> None:
        if not hasattr(verification, "ExtensionPolicy"):
            raise ValueError("verifying certificates requires cryptography 45 or newer")
        try:
            self._store = verification.Store(x509.load_pem_x509_certificates(pem))
        except ValueError as error:
            raise ValueError(f"it has no valid certificate: {error}") from None
        # Private authorities rarely follow the profile of public ones, such as key identifiers.
        anything = verification.ExtensionPolicy.permit_all()
        agnostic = verification.Criticality.AGNOSTIC
        self._of_authorities = anything.require_present(
            x509.BasicConstraints, agnostic, None
        ).may_be_present(x509.KeyUsage, agnostic, _signs_certificates)
        self._of_clients = anything.may_be_present(x509.ExtendedKeyUsage, agnostic, _is_for_clients)

    def verify(
        self, certificate: x509.Certificate, chain: Sequence[x509.Certificate], now: float
    ) -> float:
        """Verify that an authority has issued *certificate*; return until when all are valid.

        :param chain: The certificates between it and the authority.
        :param now: Unix time.
        :raises CertificateRejected: None has.
        """
        builder = verification.PolicyBuilder().store(self._store)
        builder = builder.time(datetime.fromtimestamp(now, UTC))
        builder = builder.extension_policies(
            ca_policy=self._of_authorities, ee_policy=self._of_clients
        )
        try:
            verified = builder.build_client_verifier().verify(certificate, list(chain))
        except verification.VerificationError as error:
            raise CertificateRejected(f"no authority of ca has issued it: {error}") from None
        return min(each.not_valid_after_utc.timestamp() for each in verified.chain)


def _signs_certificates(
    _policy: verification.Policy, _found: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an authority may not sign certificates")


def _is_for_clients(
    _policy: verification.Policy, _found: x509.Certificate, usage: x509.ExtendedKeyUsage | None
) -> None:
    wanted = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if usage is not None and not any(each in usage for each in wanted):
        raise ValueError("the certificate is not for clients")
