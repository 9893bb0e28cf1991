"""Service discovery: the instances of a service, their sources and their health checks."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from wsgigate.rules.arguments import Pattern, Range, explained

__all__ = ["LAST_TIER", "Instance", "host_and_port"]

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ZONE = re.compile(r"[\x21-\x7e]{0,128}")
LAST_TIER = 15
_MOST_SOCKET_PATH = 107  # what the kernel takes


@explained
@dataclass(frozen=True, slots=True)
class Instance:
    """A running instance of a service, at one address.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]`` without a path; or
        ``http+unix://%2Frun%2Fapp.sock``, with the percent-encoded absolute path of a socket.
    :param weight: Its share of the traffic relative to the other instances; 0 drains it.
    :param tier: Its priority, 0 to 15: requests go to the lowest tier, and to the next one as far
        as the instances of the tiers before it fail.
    :param host: The value of ``Host``, ``NAME[:PORT]``, for an instance that serves several virtual
        hosts or was found by its address. Default: the host and port of the URL.
    :param zone: Its availability zone; empty if unknown.
    :ivar scheme: ``http``, ``https`` or ``http+unix``.
    :ivar authority: ``HOST[:PORT]`` as sent in ``Host``: *host*, or else that of the URL in lower
        case, without a default port; ``localhost`` for a socket.
    :ivar origin: The URL that the instance may use for itself in a ``Location``.
    :ivar address: Its address in the log: that of the URL, or ``unix:`` and the path.
    :raises ValueError: An argument is invalid; the message says what is wrong with it.
    """

    url: str
    weight: Annotated[int, Range(0, 65535)] = 1
    tier: Annotated[int, Range(0, LAST_TIER)] = 0
    host: str = ""
    zone: Annotated[str, Pattern(_ZONE.pattern, "a zone without spaces")] = ""
    scheme: str = field(init=False, repr=False, compare=False)
    authority: str = field(init=False, repr=False, compare=False)
    origin: str = field(init=False, repr=False, compare=False)
    address: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:
            raise ValueError("an instance's URL has no valid host") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("an instance's URL must not carry credentials")
        if parts.scheme not in ("http", "https", "http+unix"):
            raise ValueError(
                f"an instance's URL must start with http:// or https://, got {self.url!r}"
            )
        if self.weight < 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")
        if not 0 <= self.tier <= LAST_TIER:
            raise ValueError(f"tier must be 0 to {LAST_TIER}, got {self.tier}")
        if not _ZONE.fullmatch(self.zone):
            raise ValueError(
                f"zone must be at most 128 visible characters without spaces, got {self.zone!r}"
            )
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(
                f"an instance's URL must end after the port, got {self.url!r}; "
                "a path belongs in add_prefix"
            )
        if parts.scheme == "http+unix":
            path = _socket_path(parts.netloc)
            self._set(f"http+unix://{quote(path, safe='')}", parts.scheme, "localhost")
            object.__setattr__(self, "address", f"unix:{path}")
            self._name()
            return
        host = parts.hostname or ""
        if not (_is_ipv6(host) if ":" in host else _HOST.fullmatch(host)):
            raise ValueError(f"{self.url!r} has no valid host")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(f"{self.url!r} has no valid port")
        host = f"[{host}]" if ":" in host else host
        default = 443 if parts.scheme == "https" else 80
        authority = host if port in (None, default) else f"{host}:{port}"
        self._set(f"{parts.scheme}://{authority}", parts.scheme, authority)
        self._name()

    def _name(self) -> None:
        if self.host:
            authority = host_and_port(self.host, self.scheme)
            object.__setattr__(self, "host", authority)
            object.__setattr__(self, "authority", authority)

    def _set(self, url: str, scheme: str, authority: str) -> None:
        for name, value in (
            ("url", url),
            ("scheme", scheme),
            ("authority", authority),
            ("origin", f"{'https' if scheme == 'https' else 'http'}://{authority}"),
            ("address", authority),
        ):
            object.__setattr__(self, name, value)


def host_and_port(text: str, scheme: str = "http") -> str:
    """Return *text*, ``HOST`` or ``HOST:PORT``, in the normal form of a ``Host`` field.

    :param scheme: The scheme whose default port is left out.
    :raises ValueError: *text* is not a host with an optional port.
    """
    found = _AUTHORITY.fullmatch(text)
    name, port = (found[1].lower(), int(found[2] or 0)) if found else ("", 0)
    literal = name.startswith("[")
    if not (_is_ipv6(name[1:-1]) if literal else _HOST.fullmatch(name)) or port > 65535:
        raise ValueError(
            f'host must be a name such as "shop.example" or "shop.example:8080", got {text!r}'
        )
    name = name if literal else name.removesuffix(".")
    default = 443 if scheme == "https" else 80
    return name if port in (0, default) else f"{name}:{port}"


def _socket_path(encoded: str) -> str:
    """Return the path of a Unix socket, which is in the place of the host in its URL."""
    path = unquote(encoded, errors="strict")
    if not path.startswith("/") or not path.isprintable() or not path.isascii():
        raise ValueError(
            "an http+unix:// URL must have the absolute path of a socket with encoded slashes, "
            f"such as http+unix://%2Frun%2Fapp.sock, got {encoded!r}"
        )
    if len(path) > _MOST_SOCKET_PATH:
        raise ValueError(
            f"the path of a socket must have at most {_MOST_SOCKET_PATH} bytes, got {path!r}"
        )
    return path


def _is_ipv6(host: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False
