"""The allowed addresses of instances, in every form (H01 to H05)."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.client.destinations import (
    CombinedDestinations,
    Destinations,
    Forbidden,
    effective_addresses,
)

METADATA = "169.254.169.254"


def refused(destinations: Destinations, address: str, port: int = 80) -> str:
    """Return why an instance may not be at *address*, empty when it may."""
    try:
        destinations.check(ip_address(address), port)
    except Forbidden as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.9", "10.0.0.5", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("::1", "fd00::5", "fc00::1", "::ffff:10.0.0.5", "64:ff9b::10.0.0.5", "2002:a00:5::1"),
    ],
)
def test_loopback_and_private_addresses_are_allowed(address: str) -> None:
    assert refused(Destinations(), address) == ""


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "100.64.0.1", "192.0.2.1", "2001:db8::1", "fec0::1"]
)
def test_other_addresses_are_allowed_only_if_configured(address: str) -> None:
    assert "allowed networks" in refused(Destinations(), address)
    everywhere = Destinations(["0.0.0.0/0", "::/0"])
    assert refused(everywhere, address) == ""
    only = Destinations([address])
    assert refused(only, address) == ""
    assert "allowed networks" in refused(only, "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (METADATA, "link-local"),
        ("169.254.170.2", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("64:ff9b:1::1", "translated"),
        # the same in other forms
        (f"::ffff:{METADATA}", "link-local"),
        ("::ffff:a9fe:a9fe", "link-local"),
        (f"::ffff:0:{METADATA}", "link-local"),
        (f"::{METADATA}", "link-local"),
        (f"64:ff9b::{METADATA}", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2001:0:a9fe:a9fe::1", "link-local"),  # Teredo, the server
        ("2001:0:a00:5:0:0:5601:5601", "link-local"),  # Teredo, the client, inverted
        ("fd00::5efe:a9fe:a9fe", "link-local"),  # ISATAP
        ("fd00::200:5efe:a9fe:a9fe", "link-local"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("::ffff:224.0.0.1", "multicast"),
    ],
)
def test_some_addresses_are_never_allowed(address: str, why: str) -> None:
    for destinations in (Destinations(), Destinations(["0.0.0.0/0", "::/0", address])):
        assert why in refused(destinations, address)


@given(st.integers(0, 2**32 - 1))
def test_every_form_of_an_address_has_the_same_verdict(bits: int) -> None:
    four = ip_address(bits)
    destinations = Destinations(["0.0.0.0/0", "::/0"])
    plain = refused(destinations, str(four))
    for form in (
        ip_address(0xFFFF << 32 | bits),
        ip_address((0x0064FF9B << 96) | bits),
        ip_address((0x2002 << 112) | (bits << 80)),
        ip_address((0xFFFF << 48) | bits),
    ):
        assert effective_addresses(form) == (four,)
        assert refused(destinations, str(form)) == plain


def test_the_address_of_the_gateway_is_forbidden() -> None:  # H04
    here = Destinations(own=[("127.0.0.1", 3000), ("::1", 3001)])
    assert "gateway" in refused(here, "127.0.0.1", 3000)
    assert "gateway" in refused(here, "::ffff:127.0.0.1", 3000)
    assert "gateway" in refused(here, "::1", 3001)
    assert refused(here, "127.0.0.1", 3002) == ""
    assert refused(here, "127.0.0.2", 3000) == ""


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::"])
def test_a_gateway_that_listens_on_all_addresses_forbids_each_address_of_the_machine(
    unspecified: str,
) -> None:
    mine = {"10.0.0.7", "fd00::7"}
    destinations = Destinations(own=[(unspecified, 3000)], is_own=lambda each: str(each) in mine)
    assert "gateway" in refused(destinations, "10.0.0.7", 3000)
    assert "gateway" in refused(destinations, "fd00::7", 3000)
    assert refused(destinations, "10.0.0.7", 3001) == ""
    assert refused(destinations, "10.0.0.8", 3000) == ""


def test_the_addresses_of_the_machine_are_detected() -> None:
    destinations = Destinations(own=[("0.0.0.0", 3000)])
    assert "gateway" in refused(destinations, "127.0.0.1", 3000)
    assert "gateway" in refused(destinations, "127.3.2.1", 3000)
    assert refused(Destinations(["192.0.2.0/24"], own=[("0.0.0.0", 3000)]), "192.0.2.7", 3000) == ""


class Names:
    """A name service; notes what it is asked."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *, type: int) -> list[Any]:
        assert type == socket.SOCK_STREAM
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, type, 6, "", (address, port)) for address in self.names[host]]


def test_a_name_is_allowed_if_all_of_its_addresses_are() -> None:  # H03
    names = Names(
        good=["10.0.0.5", "fd00::5"], bad=["10.0.0.5", METADATA], none=[], zone=["fe80::1%eth0"]
    )
    destinations = Destinations(lookup=names)
    assert [str(each) for each in destinations.resolve("good", 80)] == ["10.0.0.5", "fd00::5"]
    for host in ("bad", "zone"):
        with pytest.raises(Forbidden, match="link-local"):
            destinations.resolve(host, 80)
    for host in ("none", "unknown"):
        with pytest.raises(OSError, match=r"no address|not known"):
            destinations.resolve(host, 80)


def test_an_address_is_not_resolved() -> None:
    names = Names()
    assert [str(each) for each in Destinations(lookup=names).resolve("10.0.0.5", 80)] == [
        "10.0.0.5"
    ]
    assert names.asked == []


def test_a_name_that_cannot_be_resolved_raises_the_error_of_the_resolver() -> None:
    with pytest.raises(OSError, match="name"):
        Destinations().resolve("a" * 64 + ".example", 80)


@pytest.mark.parametrize("entry", ["unix", "10.0.0.1/8", "somewhere", ""])
def test_an_invalid_network_is_rejected_by_the_constructor(entry: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says its own
        Destinations([entry])


def test_an_address_must_be_allowed_by_all_lists() -> None:
    vouched = CombinedDestinations(
        Destinations(["10.0.0.0/8"]), Destinations(["10.1.0.0/16", "127.0.0.1"])
    )

    def allowed(address: str) -> bool:
        try:
            vouched.check(ip_address(address), 80)
        except Forbidden:
            return False
        return True

    assert allowed("10.1.0.1")
    assert not allowed("10.2.0.1")
    assert not allowed("127.0.0.1")
    vouched.narrow(["10.1.2.0/24", "203.0.113.0/24"])
    assert allowed("10.1.2.1")
    assert not allowed("10.1.0.1")
    assert not allowed("203.0.113.1")
    vouched.narrow(["10.1.0.0/16"])
    assert allowed("10.1.0.1")
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        vouched.narrow(["10.0.0.0/99"])
