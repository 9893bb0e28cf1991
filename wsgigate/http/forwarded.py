"""The client address behind proxies: ``X-Forwarded-For`` and ``Forwarded`` (RFC 7239).

Pure functions of text. Their caller decides which proxies are trusted.

A header field such as ``X-Forwarded-For`` is forgeable: a client can send it, and each proxy
appends to what it got. Only the right-most entry is certain, and only if the peer is a trusted
proxy. So every function reads from the right, believes an entry only if a trusted proxy wrote it,
and stops at the first entry that is malformed or not a trusted proxy. Reading from the left, or
past a malformed element, would let a client choose its own address.
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
    "CLIENT_FORGED",
    "FAMILY",
    "MAX_ENTRIES",
    "UNIX",
    "AddressList",
    "IPAddress",
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


IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<four>[0-9.]{7,15}))(?::[0-9]{1,5})?", re.ASCII
)


@lru_cache(maxsize=4096)
def address_of(entry: str) -> str | None:
    """Return the address in an ``X-Forwarded-For`` entry or a ``for=`` value.

    Port and brackets are removed, and an IPv4-mapped IPv6 address (``::ffff:192.0.2.1``) becomes
    the IPv4 address.

    :returns: ``None`` for anything else: ``unknown``, ``_hidden``, a host name, a zone.
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


def _parse(text: str) -> IPAddress | None:
    """Return the address in *text*, an IPv4-mapped one as IPv4; None if it is not an address."""
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


UNIX = frozenset(("unix", "unix:"))
"""The names of the peer of a Unix socket in a list of addresses."""

_WITHOUT_ADDRESS = frozenset(("", "unix", "unix:", "localhost", "<local>"))
"""The address of a Unix socket's peer in servers: waitress ``localhost``, werkzeug ``<local>``."""


def is_near(address: str) -> bool:
    """Return whether *address* cannot be that of a client on the internet.

    This is so for a Unix socket, and for a private, loopback or link-local address.
    """
    if address in _WITHOUT_ADDRESS:
        return True
    parsed = _parse(address)
    return parsed is not None and not parsed.is_global


class AddressList:
    """A list of addresses and networks that supports ``address in addresses``.

    An IPv4-mapped IPv6 address equals the IPv4 address, on both sides, and an IPv6 zone (``%eth0``)
    is ignored. A text that is not an address is never in the list.

    :param entries: ``192.0.2.1``, ``10.0.0.0/8``, ``2001:db8::/32``; ``unix`` or ``unix:`` for the
        peer of a Unix socket, which has no address.
    :raises ValueError: An entry is none of these; the message names it.
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
    return f"{entry!r} has host bits set; the network is {str(loose)!r}"


MAX_ENTRIES = 32
"""Maximum number of proxies in one request; more are an attempt to waste CPU time."""

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
"""Fields in which proxies write only the client address."""

FAMILY = "HTTP_X_FORWARDED"
"""Only a proxy may set environ keys with this prefix, including unknown ones."""

CLIENT_FORGED = frozenset(
    "HTTP_" + name
    for name in (
        # the client and its request, as a proxy reports them
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
        # addresses, in product-specific fields
        *(name.upper().replace("-", "_") for name in ADDRESS_FIELDS),
        "CLIENT_IP",
        "CF_CONNECTING_IPV6",
        "X_AZURE_SOCKETIP",
        "X_REMOTE_IP",
        "X_REMOTE_ADDR",
        "X_ORIGINATING_IP",
        # another target or method than the matched one
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
"""The environ keys that only a trusted proxy may set, in addition to those of :data:`FAMILY`. Keys,
not field names: ``X-Real-IP`` and ``X_Real_IP`` are one key, and so one decision."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"

_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'


# Many proxies omit the quotes around a port or an IPv6 address, so ":[]" are allowed unquoted.
_BARE = r"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]++"

_PAIR = re.compile(rf"({_NAME})=({_QUOTED}|{_BARE})")

_ELEMENT = re.compile(
    rf"[ \t]*+(?:{_PAIR.pattern})?(?:[ \t]*+;[ \t]*+(?:{_PAIR.pattern})?)*+[ \t]*+"
)


def address_field(source: str) -> str:
    """Return the name of the field for *source*, in lower case.

    :param source: One of :data:`ADDRESS_FIELDS`, or ``header:NAME`` for any other field in which
        the proxies in front write the client address, and which they overwrite if a client sends
        it.
    :raises ValueError: *source* is neither; the message lists the names.
    """
    name = source.lower() if isinstance(source, str) else ""
    if name in ADDRESS_FIELDS:
        return name
    custom = name.removeprefix("header:")
    if custom != name and is_token(custom) and custom not in ("x-forwarded-for", "forwarded"):
        return custom
    listed = ", ".join(f'"{known}"' for known in ("x-forwarded-for", "forwarded", *ADDRESS_FIELDS))
    raise ValueError(f'source is one of {listed}, or "header:NAME", not {source!r}')


def forged_keys(environ: Iterable[str]) -> list[str]:
    """Return those keys of *environ* that only a trusted proxy may set."""
    return [key for key in environ if key in CLIENT_FORGED or key.startswith(FAMILY)]


def forwarded_for(value: str) -> list[str]:
    """Return the entries of an ``X-Forwarded-For`` value, left to right, without empty ones.

    :raises ValueError: There are more than :data:`MAX_ENTRIES`.
    """
    if value.count(",") >= MAX_ENTRIES:
        raise ValueError(f"X-Forwarded-For has more than {MAX_ENTRIES} entries")
    return [entry for entry in (part.strip(" \t") for part in value.split(",")) if entry]


def parse_forwarded(value: str) -> list[dict[str, str]]:
    """Return the elements of a ``Forwarded`` value (RFC 7239 section 4), left to right.

    The nearest proxy wrote the right end, and the client may have forged the left end. So the value
    is parsed from the right, up to the first malformed element: nothing that a client sends, such
    as an unbalanced quote, can hide what a proxy appended.

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

    :param for_: The client address; anything else, such as a Unix socket, becomes ``unknown``.
    :param host: The client's ``Host`` field; omitted if empty.
    :param proto: The scheme of the client's request; omitted if empty.
    :raises ValueError: *host* or *proto* contains a character that no field value may contain.
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
        raise ValueError(f"a field value cannot contain {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def forwarded_chain(
    peer: str, entries: Iterable[str], is_trusted: Callable[[str], bool]
) -> list[str]:
    """Return the trusted part of *entries*: the client, then the proxies between.

    Each trusted hop wrote one entry. So the entries are read from the right, starting with the
    peer, up to and including the first one that is not a trusted proxy, or up to an invalid one.

    :param peer: The address of the peer.
    :param entries: Addresses as the hops wrote them, left to right, ports allowed.
    :param is_trusted: Returns whether an address is a trusted proxy.
    :returns: Normalized addresses; empty if the peer is the client.
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
    """Return the client address: the right-most of *entries* that is no trusted proxy, else *peer*.

    :param peer: The address of the peer.
    :param entries: Addresses as the hops wrote them, left to right, ports allowed.
    :param is_trusted: Returns whether an address is a trusted proxy.
    """
    return next(iter(forwarded_chain(peer, entries, is_trusted)), peer)
