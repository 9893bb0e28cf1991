"""Where an instance may be: no registration makes the gateway call what it should not."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from wsgigate.http.forwarded import AddressList

__all__ = ["Address", "Destinations", "Forbidden", "PRIVATE", "Vouched"]


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *("::1/128", "fc00::/7"),
)
"""Loopback and private addresses (RFC 1918, RFC 4193): where instances may be unless said."""

_NEVER = (
    ("0.0.0.0/8", "an unspecified address"),
    ("::/128", "an unspecified address"),
    ("169.254.0.0/16", "a link-local address, as metadata services have"),
    ("fe80::/10", "a link-local address"),
    ("224.0.0.0/4", "a multicast address"),
    ("ff00::/8", "a multicast address"),
    ("240.0.0.0/4", "a reserved or broadcast address"),
    ("64:ff9b:1::/48", "a translated address (RFC 8215)"),  # to what, its network alone knows
    ("100.100.100.200/32", "a metadata service"),  # Alibaba
    ("168.63.129.16/32", "a metadata service"),  # Azure
    ("192.0.0.192/32", "a metadata service"),  # Oracle
    ("fd00:ec2::/32", "a metadata service"),  # AWS: ::254, ::23, ::250 and so on
    ("fd20:ce::254/128", "a metadata service"),  # Google
    ("fd00:c1::a9fe:a9fe/128", "a metadata service"),  # Oracle
    ("fd00:42::42/128", "a metadata service"),  # Scaleway
)

_FORBIDDEN = tuple((ipaddress.ip_network(network), why) for network, why in _NEVER)

_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # RFC 3056

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052

_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1

_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765 section 2.1

_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 section 6.1

Lookup: TypeAlias = Callable[..., Sequence[Any]]


class Forbidden(ValueError):
    """An instance may not be there; says why, without naming what it is the name of."""


class Destinations:
    """Where instances may be.

    Link-local, multicast and unspecified addresses and metadata services are forbidden whatever is
    allowed, in every form that IPv6 has for an IPv4 address. So is the gateway itself.

    :param allowed_networks: The addresses and networks that they may be in.
    :param own: Where the gateway itself listens: ``(address, port)`` each. An unspecified address
        stands for all that this machine has.
    :param is_own: Tells whether an address is one of this machine's.
    :param lookup: Finds the addresses of a name, as :func:`socket.getaddrinfo` does.
    :raises ValueError: An entry is no address or network; names it.
    """

    def __init__(
        self,
        allowed_networks: Iterable[str] = PRIVATE,
        own: Iterable[tuple[str, int]] = (),
        *,
        is_own: Callable[[Address], bool] | None = None,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        allowed = AddressList(allowed_networks)
        if "unix" in allowed.entries:
            raise ValueError("allowed_networks has addresses and networks, no sockets")
        self._allowed = allowed
        self._own = tuple((ipaddress.ip_address(host), port) for host, port in own)
        self._own_ports = {port for _, port in self._own}
        self._is_own = is_own or _is_own
        self._lookup = lookup

    @property
    def allowed_networks(self) -> tuple[str, ...]:
        """The addresses and networks that instances may be in."""
        return self._allowed.entries

    def check(self, address: Address, port: int) -> None:
        """See that an instance may be at *address* and *port*.

        :raises Forbidden: It may not.
        """
        for each in meant(address):
            for network, why in _FORBIDDEN:
                if each in network:
                    raise Forbidden(f"an instance can not be at {why}")
            if str(each) not in self._allowed:
                raise Forbidden("an instance can not be outside of the allowed networks")
            if port in self._own_ports and self._is_gateway(each, port):
                raise Forbidden("the gateway itself can not be an instance")

    def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """Return the addresses of *host*, all of which an instance may have.

        It may be others a moment later: whoever connects checks the one that is connected to.

        :param host: An address, or a name, which is looked up. That may take seconds.
        :raises Forbidden: One of them may not be an instance's.
        :raises OSError: The name has no address, or nobody can say.
        """
        try:
            found: list[Address] = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                entries = self._lookup(host, port, type=socket.SOCK_STREAM)
            except UnicodeError as error:
                raise OSError(f"no name that can be looked up: {error}") from error
            texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries)
            found = [ipaddress.ip_address(text) for text in texts]
        if not found:
            raise OSError("the name has no address")
        for address in found:
            self.check(address, port)
        return tuple(found)

    def _is_gateway(self, address: Address, port: int) -> bool:
        return any(
            port == own_port and (address == own or (own.is_unspecified and self._is_own(address)))
            for own, own_port in self._own
        )


class Vouched:
    """The destinations that everyone who vouches for an instance allows.

    An instance that a registry names has passed the registry's list when it registered. The
    gateway connects later, when a host name may resolve to another address, so the registry's list
    has to hold again then, together with the gateway's own for that service.

    :param lists: The lists that are known from the start; an address must be in each of them.
    """

    def __init__(self, *lists: Destinations) -> None:
        self._lists = lists
        self._told: Destinations | None = None
        self._networks: tuple[str, ...] | None = None

    @property
    def networks(self) -> tuple[str, ...] | None:
        """The networks that the source named last; ``None`` when it named none."""
        return self._networks

    def narrow(self, networks: Sequence[str]) -> None:
        """Require from now on that an address is in *networks* as well.

        :raises ValueError: An entry is no address or network.
        """
        given = tuple(networks)
        if given != self._networks:
            self._told = Destinations(given)
            self._networks = given

    def check(self, address: Address, port: int) -> None:
        """See that an instance may be at *address* and *port*.

        :raises Forbidden: One of the lists does not allow it.
        """
        for each in self._lists:
            each.check(address, port)
        if self._told is not None:
            self._told.check(address, port)


def meant(address: Address) -> tuple[Address, ...]:
    """Return the addresses that packets to *address* go to in the end.

    That is the IPv4 address inside, where an IPv6 address is but another form of one or the way to
    it: mapped, compatible, translated, NAT64, 6to4, ISATAP; for Teredo the server and the client.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    bits = int(address)
    if address in _NAT64 or address in _TRANSLATED:
        return (_four(bits),)
    if address in _COMPATIBLE and bits > 0xFFFF:  # below are ::, ::1 and what nobody has
        return (_four(bits),)
    if address in _SIX_TO_FOUR:
        return (_four(bits >> 80),)
    if address.teredo is not None:
        return tuple(address.teredo)
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return (address, _four(bits))
    return (ipaddress.IPv6Address(bits),)  # without a zone


def _four(bits: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bits & 0xFFFFFFFF)


def _is_own(address: Address) -> bool:
    """Tell whether this machine has *address*: then, and only then, a socket can be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True
