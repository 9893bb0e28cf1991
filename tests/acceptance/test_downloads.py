"""Downloads and uploads at scale: a thousand at once, and files larger than 32 bits can count."""

from __future__ import annotations

import socket
import zlib
from pathlib import Path

import pytest

from benchmarks.downloads import KINDS, PERIOD, content, measure, resident, running

COUNT = 1000
KIB = 1 << 10
GIB = 1 << 30
LARGE = 4 * GIB + 5


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_holds_a_thousand_slow_downloads(kind: str) -> None:
    """All have begun to arrive before any is at its end; then all of them arrive whole."""
    held = measure(kind, count=COUNT, size=1024 * KIB)  # more than the kernel and the worker buffer
    assert held.begun == COUNT
    assert held.ended == 0
    if kind == "gevent":
        assert held.threads < 20
    else:
        assert COUNT < held.threads < COUNT + 20
    assert held.each < 384 * KIB  # buffers and a thread, whatever the size of the file


def test_four_gibibytes_pass_each_way_in_constant_memory(tmp_path: Path) -> None:
    with running("GateWorker", tmp_path, most=4) as (port, worker, _):
        _download(port, 1 << 20)
        _upload(port, 1 << 20)
        before = resident(worker)
        _download(port, LARGE)
        _upload(port, LARGE)
        assert resident(worker, "VmHWM") - before < 16 << 20


def _download(port: int, size: int) -> None:
    """Have a file arrive; all of it is counted, and the first bytes of each block compared."""
    expected = content(7, PERIOD) * 2
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"GET /files/7?{size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert f"\r\nContent-Length: {size}\r\n".encode() in head
        received = 0
        while received < size:
            got = client.recv_into(buffer)
            start, length = received % PERIOD, min(got, PERIOD)
            assert got
            assert buffer[:length] == expected[start : start + length]
            received += got
        assert received == size


def _upload(port: int, size: int) -> None:
    """Send a file; the service tells its length and its check sum."""
    block = content(7, 1 << 20)
    sum_, left = 0, size
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        head = f"PUT /files/7 HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        client.sendall(head.encode())
        while left:
            piece = block[:left]
            client.sendall(piece)
            sum_ = zlib.crc32(piece, sum_)
            left -= len(piece)
        expected = f"[{size}, {sum_}]".encode()
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"]"):
            data = client.recv(65536)
            assert data
            answer += data
        assert answer.endswith(expected)
