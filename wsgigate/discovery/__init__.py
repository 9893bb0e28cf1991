"""Who is there: the instances of a service, and whether they are well."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Instance"]

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, at one address.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``, nothing behind it.
    :param weight: Its share of the traffic relative to its siblings; 0 drains it.
    :ivar scheme: ``http`` or ``https``.
    :ivar authority: ``HOST[:PORT]`` as a ``Host`` field has it: lower case, without a default port.
    :raises ValueError: *url* is not of that form; says what is wrong with it.
    """

    url: str
    weight: int = 1
    scheme: str = field(init=False, repr=False, compare=False)
    authority: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:
            raise ValueError("an instance's URL has no valid host") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("an instance's URL must not carry credentials")
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"an instance's URL starts with http:// or https://, not {self.url!r}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(
                f"an instance's URL ends after the port, not as {self.url!r}; "
                "a path goes into add_prefix"
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
        if self.weight < 0:
            raise ValueError(f"a weight is 0 or more, got {self.weight}")
        host = f"[{host}]" if ":" in host else host
        default = 443 if parts.scheme == "https" else 80
        authority = host if port in (None, default) else f"{host}:{port}"
        object.__setattr__(self, "scheme", parts.scheme)
        object.__setattr__(self, "authority", authority)
        object.__setattr__(self, "url", f"{parts.scheme}://{authority}")


def _is_ipv6(host: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False
