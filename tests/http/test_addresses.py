"""Addresses: their spellings, and lists of addresses and networks."""

from __future__ import annotations

import re

import pytest

from tests.support.objects import texts_kept
from wsgigate.http.forwarded import AddressList, address_of


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4:55", "1.2.3.4"),
        ("[::1]:1", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),  # D12
        ("[::FFFF:a00:1]:80", "10.0.0.1"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("example.com", None),
        ("junk", None),
        ('"', None),
        ("1.2.3.4:", None),
        ("1.2.3.4:x", None),
        ("1.2.3.4:123456", None),
        ("01.2.3.4", None),
        ("1.2.3", None),
        ("1.2.3.256", None),
        ("[1.2.3.4]", None),
        ("[::1", None),
        ("::1]", None),
        ("fe80::1%eth0", None),
        ("1.2.3.4\n", None),
        ("\u0661.2.3.4", None),
        ("9" * 10_000, None),
        ("16909060", None),
    ],
)
def test_an_entry_is_an_address_or_none(entry, address):
    """Security D10, D12; RFC 7239 section 6."""
    assert address_of(entry) == address


@pytest.mark.parametrize(
    ("entries", "address", "listed"),
    [
        ([], "1.2.3.4", False),
        ([], "", False),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),  # D12
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.0.0.1"], "10.0.0.1", True),
        (["::ffff:0:0/96"], "10.1.2.3", True),  # all of IPv4, and nothing else
        (["::ffff:0:0/96"], "::ffff:10.1.2.3", True),
        (["::ffff:0:0/96"], "2001:db8::1", False),
        (["::ffff:0:0/96"], "::1", False),
        (["::ffff:0:0/97"], "10.1.2.3", True),
        (["::ffff:0:0/97"], "128.0.0.1", False),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["2001:db8::/32", "192.0.2.1"], "2001:DB8::5", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["0.0.0.0/0"], "::1", False),
        (["0.0.0.0/0"], "unix", False),
        (["unix"], "", True),  # D14
        (["unix"], "unix", True),
        (["unix"], "127.0.0.1", False),
        (["127.0.0.1"], "localhost", False),
    ],
)
def test_an_address_is_listed_whatever_its_spelling(entries, address, listed):
    """Security D12, D14."""
    assert (address in AddressList(entries)) is listed


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (["10.0.0.0/8", "localhost"], "'localhost' is neither an IP address, nor a network"),
        (
            ["10.0.0.5/8"],
            "'10.0.0.5/8' has host bits set; the network is '10.0.0.0/8'",
        ),
        (["*"], r"'\*' is neither"),
        (["10.0.0.0/33"], "'10.0.0.0/33' is neither"),
        (["1.2.3.4:80"], "'1.2.3.4:80' is neither"),
        ([""], "'' is neither"),
        ([7], "an address or a network is a text, not 7"),
        ("10.0.0.1", "expected a list of addresses and networks, not the text '10.0.0.1'"),
    ],
)
def test_the_error_names_the_invalid_entry(entries, text):
    with pytest.raises(ValueError, match=text):
        AddressList(entries)


def test_a_list_remembers_a_bounded_number_of_answers():
    addresses = AddressList(["10.0.0.0/8"])
    for number in range(AddressList.CACHED + 100):
        assert f"10.0.{number >> 8}.{number & 255}" in addresses
    remembered = [text for text in texts_kept(addresses) if re.fullmatch(r"10\.0\.\d+\.\d+", text)]
    assert len(remembered) == AddressList.CACHED


def test_a_list_without_entries_is_false():
    assert not AddressList()
    assert AddressList(["unix"])
    assert repr(AddressList(["::1"])) == "AddressList(['::1'])"
