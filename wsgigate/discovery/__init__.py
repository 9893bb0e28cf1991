"""Who is there: the instances of a service, and whether they are well."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Instance"]

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, at one address.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``, nothing behind it.
    :param weight: Its share of the traffic relative to its siblings; 0 drains it.
    :raises ValueError: *url* is not of that form; says what is wrong with it.
    """

    url: str
    weight: int = 1

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"an instance's URL starts with http:// or https://, not {self.url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an instance's URL must not carry credentials")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(
                f"an instance's URL ends after the port, got {self.url!r}; use add_prefix for a path"
            )
        host = parts.hostname or ""
        if not (_is_ipv6(host) if ":" in host else _HOST.fullmatch(host)):
            raise ValueError(f"{self.url!r} has no valid host")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(f"{self.url!r} has no valid port")
        object.__setattr__(self, "url", f"{parts.scheme}://{self.authority}")
        if self.weight < 0:
            raise ValueError(f"a weight is 0 or more, got {self.weight}")

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return urlsplit(self.url).scheme

    @property
    def authority(self) -> str:
        """``HOST[:PORT]`` as a ``Host`` field carries it: lower case, without a default port."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        default = 443 if parts.scheme == "https" else 80
        return host if parts.port in (None, default) else f"{host}:{parts.port}"


def _is_ipv6(host: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False
