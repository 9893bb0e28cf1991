"""Large files by HTTP/1.1, sent as they are taken and taken as they come; nothing is on a disk.

``python -m benchmarks.servers.files PORT``. ``GET /NUMBER?SIZE`` answers with SIZE bytes of
:func:`benchmarks.downloads.content`, ``PUT`` with the length and the check sum of what came,
``GET /count`` with how many files have been asked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import zlib

from benchmarks.downloads import PERIOD, content

BLOCK = 1 << 18


class Files:
    def __init__(self) -> None:
        self.begun = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, target, _ = head.decode("latin-1").split(" ", 2)
                if method == "PUT":
                    await self.take(head, reader, writer)
                elif target == "/count":
                    _answer(writer, b"%d" % self.begun)
                else:
                    await self.give(target, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def give(self, target: str, writer: asyncio.StreamWriter) -> None:
        number, _, size = target[1:].partition("?")
        left = int(size)
        self.begun += 1
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
        block = memoryview(content(int(number), BLOCK))
        while left:
            writer.write(block[:left])
            left -= min(left, BLOCK)
            await writer.drain()

    async def take(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fields = head.decode("latin-1").lower().split("\r\n")
        [length] = [int(line[15:]) for line in fields if line.startswith("content-length:")]
        received, sum_ = 0, 0
        while received < length and (data := await reader.read(BLOCK)):
            received += len(data)
            sum_ = zlib.crc32(data, sum_)
        _answer(writer, json.dumps([received, sum_]).encode())


def _answer(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # so do those it accepts
    server = await asyncio.start_server(Files().serve, sock=listener, limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    assert BLOCK % PERIOD == 0
    asyncio.run(main(int(sys.argv[1])))
