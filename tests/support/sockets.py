"""Reading from sockets."""

from __future__ import annotations

import socket

__all__ = ["read_to_end"]


def read_to_end(connection: socket.socket) -> bytes:
    """Return what arrives until the peer closes the connection; a reset is an error."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
