"""A service that answers every request after a while, however many it has.

``python -m benchmarks.servers.slow PORT SECONDS``.
"""

from __future__ import annotations

import asyncio
import socket
import sys

HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))
"""Where its instances listen: a worker opens at most 1000 connections to one."""

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


class _Service(asyncio.Protocol):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            self._received = b""
            asyncio.get_running_loop().call_later(self._seconds, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def main(port: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    for host in HOSTS:
        listener = socket.create_server((host, port), backlog=4096)
        await loop.create_server(lambda: _Service(seconds), sock=listener)
    await loop.create_future()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
