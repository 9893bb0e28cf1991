"""The preambles of the PROXY protocol, in both versions."""

from __future__ import annotations

import socket
import struct

import pytest

from wsgigate.servers.proxy_protocol import BadPreamble, Preamble, ProxyProtocolMode, read_preamble

LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 4100 80\r\n"
SIX = b"PROXY TCP6 2001:db8::7 2001:db8::1 4100 80\r\n"


def binary(
    family: int = 0x11, addresses: tuple[str, str] = ("192.0.2.7", "192.0.2.1"), command: int = 0x21
) -> bytes:
    kind = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    data = b"".join(socket.inet_pton(kind, each) for each in addresses)
    data += struct.pack(">HH", 4100, 80) + b"\x04\x00\x01x"
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack(">BBH", command, family, len(data)) + data


V4 = ("TCP4", ("192.0.2.7", 4100), ("192.0.2.1", 80))
V6 = ("TCP6", ("2001:db8::7", 4100), ("2001:db8::1", 80))


@pytest.mark.parametrize(
    ("data", "mode", "expected"),
    [
        (LINE, "v1", V4),
        (SIX, "auto", V6),
        (b"PROXY UNKNOWN whatever\r\n", "v1", ("UNKNOWN", None, None)),
        (binary(), "v2", V4),
        (binary(0x21, ("2001:db8::7", "2001:db8::1")), "auto", V6),
        (binary(command=0x20), "v2", ("LOCAL", None, None)),
        (binary(0x00), "v2", ("UNKNOWN", None, None)),
    ],
)
def test_a_preamble_is_read_once_it_is_complete(
    data: bytes, mode: ProxyProtocolMode, expected: tuple[str, object, object]
) -> None:
    for end in range(1, len(data)):
        assert read_preamble(data[:end], mode) is None
    found = read_preamble(data + b"GET", mode)
    assert found is not None
    assert (found.size, found[1:]) == (len(data), expected)


@pytest.mark.parametrize(
    ("data", "mode"),
    [(LINE, "off"), (LINE, "v2"), (binary(), "v1"), (b"GET / HTTP/1.1", "auto"), (b"P!", "auto")],
)
def test_what_is_no_preamble_is_left(data: bytes, mode: ProxyProtocolMode) -> None:
    assert read_preamble(data, mode) == Preamble(0, "")


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4100\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.256 4100 80\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 4100 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4100 65536\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 4100 80\r\n",
        b"PROXY " + b"x" * 200,
        binary(command=0x31),
        binary(command=0x22),
        binary(0x12),
        binary(0x31),
        binary(0x21),
    ],
)
def test_a_malformed_preamble_is_an_error(data: bytes) -> None:
    with pytest.raises(BadPreamble):
        read_preamble(data, "auto")
