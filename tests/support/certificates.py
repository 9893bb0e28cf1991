"""Certificates for servers of loopback, made anew for each run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Authority", "make_certificate"]


class Authority:
    """A certificate authority in a folder.

    :param issuer: The one that vouches for it; itself unless given.
    :param identified: Whether certificates name keys (Subject and Authority Key Identifier), as RFC
        5280 requires and many private authorities do not.
    :param hosts: The servers that its own certificate is for.
    :param own: Whether its certificate is one of an authority.
    :ivar path: Its certificate and key in one file.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "authority",
        *,
        issuer: Authority | None = None,
        identified: bool = False,
        hosts: Sequence[x509.GeneralName] = (),
        own: bool = True,
    ) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.identified = identified
        # It outlives the certificates that it issues, which are made a moment later.
        self.path = (issuer or self).sign(name, self.key, hosts, days=2, own=own)

    def issue(self, name: str, hosts: list[x509.GeneralName], *, days: int = 1) -> Path:
        """Write a certificate and its key into one file.

        :param days: For how many days from now it is valid; it began two days ago.
        """
        return self.sign(name, ec.generate_private_key(ec.SECP256R1()), hosts, days=days)

    def sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        hosts: Sequence[x509.GeneralName],
        *,
        days: int,
        own: bool = False,
    ) -> Path:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        serial = x509.random_serial_number()
        builder = (
            x509.CertificateBuilder(self.name, subject, key.public_key(), serial)
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        if self.identified:
            theirs = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            signs = x509.KeyUsage(True, False, False, False, False, own, own, False, False)
            builder = builder.add_extension(theirs, critical=False)
            builder = builder.add_extension(ours, critical=False)
            builder = builder.add_extension(signs, critical=True)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = self.folder / f"{name}.pem"
        made = builder.sign(self.key, hashes.SHA256())
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
        return path


def make_certificate(folder: Path, host: str = "") -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that vouches for itself.

    :param host: The name it is for instead of that address.
    """
    served = x509.DNSName(host) if host else x509.IPAddress(ip_address("127.0.0.1"))
    return Authority(folder, "both", hosts=[served]).path
