"""Who the client behind the proxies is: ``X-Forwarded-For`` and ``Forwarded`` (RFC 7239).

Text in, text out. What counts as trusted is the caller's to say; these functions only read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

from wsgigate.http.fields import is_token

__all__ = [
    "ADDRESS_FIELDS",
    "AddressList",
    "CLIENT_FORGED",
    "MAX_ENTRIES",
    "UNIX",
    "address_field",
    "address_of",
    "client_of",
    "forged_keys",
    "format_forwarded",
    "forwarded_chain",
    "forwarded_for",
    "is_near",
    "parse_forwarded",
]


# Addresses as peers and proxies write them, and lists of those that are trusted.

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<four>[0-9.]{7,15}))(?::[0-9]{1,5})?", re.ASCII
)


@lru_cache(maxsize=4096)
def address_of(entry: str) -> str | None:
    """Return the address that an ``X-Forwarded-For`` entry or a ``for=`` value names.

    Its port and brackets are dropped, and an IPv4 address written as IPv6 (``::ffff:192.0.2.1``)
    becomes the IPv4 address it is.

    :returns: ``None`` for anything else: ``unknown``, ``_hidden``, a host name, a zone, rubbish.
    """
    if len(entry) > 60 or "%" in entry:
        return None
    found = _ENTRY.fullmatch(entry)
    if found is not None:
        entry = found["six"] or found["four"]
        if found["six"] and ":" not in entry:
            return None
    parsed = _parse(entry)
    return None if parsed is None else str(parsed)


def _parse(text: str) -> Address | None:
    """Return the address in *text*, an IPv4-mapped one as IPv4; None when it is none."""
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


UNIX = frozenset(("unix", "unix:"))
"""How a list names the peers of a Unix socket."""

_WITHOUT_ADDRESS = frozenset(("", "unix", "unix:", "localhost", "<local>"))
"""What servers call the peer of a Unix socket: waitress ``localhost``, werkzeug ``<local>``."""


def is_near(address: str) -> bool:
    """Return whether *address* cannot be a client's across the internet: that of a Unix socket, or
    a private, loopback or link-local one."""
    if address in _WITHOUT_ADDRESS:
        return True
    parsed = _parse(address)
    return parsed is not None and not parsed.is_global


class AddressList:
    """A list of addresses and networks; ``address in addresses`` tells whether one is listed.

    An IPv4 address written as IPv6 is the IPv4 address it is, on both sides, and an IPv6 zone
    (``%eth0``) does not count. What is no address is never in the list.

    :param entries: ``192.0.2.1``, ``10.0.0.0/8``, ``2001:db8::/32``; ``unix`` or ``unix:`` lists
        the peers of a Unix socket, which have no address.
    :raises ValueError: An entry is none of these; names it.
    """

    CACHED = 4096

    def __init__(self, entries: Iterable[str] = ()) -> None:
        if isinstance(entries, str):
            raise ValueError(f"expected a list of addresses and networks, not the text {entries!r}")
        self.entries = tuple(entries)
        self._unix = not UNIX.isdisjoint(self.entries)
        self._networks = tuple(_network(entry) for entry in self.entries if entry not in UNIX)
        self._find = lru_cache(maxsize=self.CACHED)(self._search)

    def __contains__(self, address: str) -> bool:
        return self._find(address)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __repr__(self) -> str:
        return f"AddressList({list(self.entries)!r})"

    def _search(self, address: str) -> bool:
        if address in _WITHOUT_ADDRESS:
            return self._unix
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _network(entry: object) -> Network:
    if not isinstance(entry, str):
        raise ValueError(f"an address or a network is a text, not {entry!r}")
    try:
        network = ipaddress.ip_network(entry)
    except ValueError:
        raise ValueError(_wrong(entry)) from None
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _wrong(entry: str) -> str:
    try:
        loose = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return f'{entry!r} is neither an IP address, nor a network like 10.0.0.0/8, nor "unix"'
    return f"{entry!r} has bits set behind its prefix; the network is {str(loose)!r}"


MAX_ENTRIES = 32
"""How many proxies one request may name; more is an attempt to make us work."""

ADDRESS_FIELDS = (
    "x-real-ip",  # nginx, Traefik
    "cf-connecting-ip",  # Cloudflare
    "true-client-ip",  # Akamai, Cloudflare
    "fly-client-ip",  # Fly.io
    "fastly-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",  # Rackspace, Riverbed
    "x-envoy-external-address",
    "x-azure-clientip",  # Azure Front Door
    "x-appengine-user-ip",  # Google App Engine
    "x-nf-client-connection-ip",  # Netlify
    "do-connecting-ip",  # DigitalOcean App Platform
    "ali-cdn-real-ip",
)
"""Fields in which proxies write the one address of the client."""

FAMILY = "HTTP_X_FORWARDED"
"""Every environ key that begins so is a proxy's to set, those not invented yet included."""

CLIENT_FORGED = frozenset(
    "HTTP_" + name
    for name in (
        # who and what the client asked, as a proxy in front tells it
        "FORWARDED",
        "X_FORWARDED",
        "X_FORWARDED_FOR",
        "X_FORWARDED_PROTO",
        "X_FORWARDED_PROTOCOL",
        "X_FORWARDED_SCHEME",
        "X_FORWARDED_SSL",
        "X_FORWARDED_HOST",
        "X_FORWARDED_PORT",
        "X_FORWARDED_PREFIX",
        "X_FORWARDED_BY",
        "X_FORWARDED_SERVER",
        "X_FORWARDED_URI",
        "X_FORWARDED_METHOD",
        "X_FORWARDED_USER",
        "X_FORWARDED_EMAIL",
        "X_FORWARDED_GROUPS",
        "X_ORIGINAL_FORWARDED_FOR",
        "FRONT_END_HTTPS",
        "X_SCHEME",
        "X_URL_SCHEME",
        # addresses, each one product's own spelling
        *(name.upper().replace("-", "_") for name in ADDRESS_FIELDS),
        "CLIENT_IP",
        "CF_CONNECTING_IPV6",
        "X_AZURE_SOCKETIP",
        "X_REMOTE_IP",
        "X_REMOTE_ADDR",
        "X_ORIGINATING_IP",
        # another target or method than the one that was matched
        "X_ORIGINAL_HOST",
        "X_ORIGINAL_METHOD",
        "X_ORIGINAL_URI",
        "X_ORIGINAL_URL",
        "X_REWRITE_URL",
        "X_HTTP_METHOD",
        "X_HTTP_METHOD_OVERRIDE",
        "X_METHOD_OVERRIDE",
        # httpoxy: becomes the variable HTTP_PROXY of a CGI program
        "PROXY",
    )
)
"""The environ keys that only a trusted proxy may set. Keys, not field names: ``X-Real-IP`` and
``X_Real_IP`` are one key, and so one decision. The rest of :data:`FAMILY` belongs to it."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"

_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'


# Many proxies leave the quotes off around a port or an IPv6 address, so ":[]" pass bare.
_BARE = r"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]++"

_PAIR = re.compile(rf"({_NAME})=({_QUOTED}|{_BARE})")

_ELEMENT = re.compile(
    rf"[ \t]*+(?:{_PAIR.pattern})?(?:[ \t]*+;[ \t]*+(?:{_PAIR.pattern})?)*+[ \t]*+"
)


def address_field(source: str) -> str:
    """Return the name of the field that *source* stands for, in lower case.

    :param source: One of :data:`ADDRESS_FIELDS`, or ``header:NAME`` for any other field that the
        proxies in front write the client's address to, and overwrite when the client sends it.
    :raises ValueError: It is neither; the message lists the names.
    """
    name = source.lower() if isinstance(source, str) else ""
    if name in ADDRESS_FIELDS:
        return name
    own = name.removeprefix("header:")
    if own != name and is_token(own) and own not in ("x-forwarded-for", "forwarded"):
        return own
    listed = ", ".join(f'"{known}"' for known in ("x-forwarded-for", "forwarded", *ADDRESS_FIELDS))
    raise ValueError(f'source is one of {listed}, or "header:NAME", not {source!r}')


def forged_keys(environ: Iterable[str]) -> list[str]:
    """Return those keys of *environ* that only a trusted proxy may set."""
    return [key for key in environ if key in CLIENT_FORGED or key.startswith(FAMILY)]


def forwarded_for(value: str) -> list[str]:
    """Return the entries of an ``X-Forwarded-For`` value, left to right, empty ones left out.

    :raises ValueError: There are more than :data:`MAX_ENTRIES`.
    """
    if value.count(",") >= MAX_ENTRIES:
        raise ValueError(f"X-Forwarded-For has more than {MAX_ENTRIES} entries")
    return [entry for entry in (part.strip(" \t") for part in value.split(",")) if entry]


def parse_forwarded(value: str) -> list[dict[str, str]]:
    """Return the elements of a ``Forwarded`` value (RFC 7239 section 4), left to right.

    The right end is what the nearest proxy wrote and the left end what the client may have made
    up, so reading goes from the right and stops at the first element that is malformed: nothing a
    client sends, an open quote say, can hide what was written after it.

    :returns: One dict for each element: lower-case parameter names, values without quotes.
    :raises ValueError: There are more than :data:`MAX_ENTRIES`.
    """
    if value.count(",") >= MAX_ENTRIES:
        raise ValueError(f"Forwarded has more than {MAX_ENTRIES} elements")
    elements: list[dict[str, str]] = []
    end = start = len(value)
    while start >= 0:
        start = value.rfind(",", 0, start)  # -1: the whole rest
        if _ELEMENT.fullmatch(value, start + 1, end) is None:
            continue  # a comma inside a quoted value, or the malformed element
        pairs = _PAIR.findall(value, start + 1, end)
        element = {name.lower(): _unquoted(text) for name, text in pairs}
        if len(element) < len(pairs):  # "MUST NOT occur more than once"
            break
        if element:  # empty elements of a list mean nothing (RFC 9110 section 5.6.1)
            elements.append(element)
        end = start
    return elements[::-1]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


@lru_cache(maxsize=4096)
def format_forwarded(for_: str, host: str = "", proto: str = "") -> str:
    """Return one ``Forwarded`` element: ``for="[2001:db8::1]";host=example.com;proto=https``.

    :param for_: The client's address; anything else, a Unix socket say, is told as ``unknown``.
    :param host: The ``Host`` field the client sent; empty leaves it out.
    :param proto: The scheme the client used; empty leaves it out.
    :raises ValueError: *host* or *proto* holds what no field value may hold.
    """
    address = address_of(for_.partition("%")[0]) or "unknown"
    pairs = [
        ("for", f"[{address}]" if ":" in address else address),
        ("host", host),
        ("proto", proto),
    ]
    return ";".join(f"{name}={_quoted(text)}" for name, text in pairs if text)


def _quoted(text: str) -> str:
    if re.fullmatch(_NAME, text):
        return text
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", text):
        raise ValueError(f"a field value cannot hold {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def forwarded_chain(
    peer: str, entries: Iterable[str], is_trusted: Callable[[str], bool]
) -> list[str]:
    """Return the part of *entries* that can be believed: the client, then the proxies it came by.

    Each hop vouches for the entry that it wrote, so reading goes from the right, from the peer on,
    and ends with the first entry that is not a trusted proxy, or before the first invalid one.

    :param peer: The address of the peer.
    :param entries: Addresses as the hops wrote them, left to right, ports allowed.
    :param is_trusted: Tells whether an address is a trusted proxy's.
    :returns: Normal forms of addresses; empty when the peer itself is the client.
    """
    chain: list[str] = []
    hop = peer
    for entry in reversed(list(entries)):
        address = address_of(entry) if is_trusted(hop) else None
        if address is None:
            break
        chain.append(address)
        hop = address
    return chain[::-1]


def client_of(peer: str, entries: Iterable[str], is_trusted: Callable[[str], bool]) -> str:
    """Return the client: the right-most of *entries* that is not a trusted proxy, else *peer*.

    :param peer: The address of the peer.
    :param entries: Addresses as the hops wrote them, left to right, ports allowed.
    :param is_trusted: Tells whether an address is a trusted proxy's.
    """
    return next(iter(forwarded_chain(peer, entries, is_trusted)), peer)
