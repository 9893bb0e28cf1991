"""The PROXY protocol: the client's address as a load balancer in front reports it. No I/O.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, version 1 (a line of text) and
version 2 (binary).
"""

from __future__ import annotations

import socket
import struct
from typing import Literal, NamedTuple

__all__ = ["BadPreamble", "Preamble", "ProxyProtocolMode", "read_preamble"]


_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_LONGEST_LINE = 107

ProxyProtocolMode = Literal["off", "v1", "v2", "auto"]


class BadPreamble(ValueError):
    """What the peer sent first is no valid preamble."""


class Preamble(NamedTuple):
    """What a preamble says.

    :ivar size: Bytes of the preamble.
    :ivar protocol: ``TCP4``, ``TCP6``; ``LOCAL`` or ``UNKNOWN`` without addresses.
    :ivar client: The client's address and port; None where the balancer itself is the client.
    :ivar server: The address and port that it connected to.
    """

    size: int
    protocol: str
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None


def read_preamble(data: bytes, mode: ProxyProtocolMode) -> Preamble | None:
    """Read the preamble that *data* begins with.

    :param mode: The versions that are accepted.
    :returns: None until more has arrived. A size of 0 means that there is no preamble.
    :raises BadPreamble: It is malformed.
    """
    if mode in ("v2", "auto") and _SIGNATURE.startswith(data[:12]):
        return _read_binary(data) if len(data) >= 16 else None
    if mode in ("v1", "auto") and b"PROXY ".startswith(data[:6]):
        return _read_line(data) if len(data) >= 6 else None
    return Preamble(0, "")


def _read_line(data: bytes) -> Preamble | None:
    end = data.find(b"\r\n", 0, _LONGEST_LINE)
    if end < 0:
        if len(data) >= _LONGEST_LINE:
            raise BadPreamble("a line that is too long")
        return None
    parts = data[:end].decode("latin-1").split(" ")
    if parts[1] == "UNKNOWN":
        return Preamble(end + 2, "UNKNOWN")
    families = {"TCP4": socket.AF_INET, "TCP6": socket.AF_INET6}
    if len(parts) != 6 or parts[1] not in families:
        raise BadPreamble("a malformed line")
    _, protocol, client, server, *ports = parts
    try:
        for address in (client, server):
            socket.inet_pton(families[protocol], address)
    except OSError:
        raise BadPreamble("a malformed address") from None
    if not all(port.isascii() and port.isdigit() and int(port) < 65536 for port in ports):
        raise BadPreamble("a malformed port")
    return Preamble(end + 2, protocol, (client, int(ports[0])), (server, int(ports[1])))


def _read_binary(data: bytes) -> Preamble | None:
    version, family, length = struct.unpack_from(">BBH", data, 12)
    if version >> 4 != 2 or version & 15 > 1:
        raise BadPreamble("an unknown version or command")
    size = 16 + length
    if len(data) < size:
        return None
    if version & 15 == 0:
        return Preamble(size, "LOCAL")
    if family >> 4 == 0:
        return Preamble(size, "UNKNOWN")
    if family == 0x11 and length >= 12:
        width, kind, protocol = 4, socket.AF_INET, "TCP4"
    elif family == 0x21 and length >= 36:
        width, kind, protocol = 16, socket.AF_INET6, "TCP6"
    else:
        raise BadPreamble("an address that is neither IPv4 nor IPv6 over TCP")
    client = socket.inet_ntop(kind, data[16 : 16 + width])
    server = socket.inet_ntop(kind, data[16 + width : 16 + 2 * width])
    ports = struct.unpack_from(">HH", data, 16 + 2 * width)
    return Preamble(size, protocol, (client, ports[0]), (server, ports[1]))
