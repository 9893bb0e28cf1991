"""G: responses, as far as it takes a server to show what becomes of them.

The rest of them is in tests/proxy. G36: the body that never seems to end is the gibibyte of
test_gateway; here is the one of many chunks.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from wsgigate.testing.backend import Received, reply

THEIRS = [
    ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("Server", "their/1.0"),
    ("X-Powered-By", "them"),
]


@pytest.mark.parametrize("fields", [[], THEIRS, THEIRS[:1] * 2])
def test_there_is_one_date_and_one_server(fields: list[tuple[str, str]], gate: Any) -> None:
    """G34: gunicorn's own, so that what an instance runs is not told; the rest passes."""
    _, back = gate.passed(gate.raw("/pub"), answer=reply(b"ok", fields=fields))
    assert len(back.values("Date")) == 1
    assert "1970" not in back.values("Date")[0]
    assert back.values("Server") == ["gunicorn"]
    assert back.values("X-Powered-By") == [value for _, value in fields[2:]]


ROUTES = """
[[routes]]
path = "/silent"
service = "svc"
response_fields = { remove = ["X-Powered-By"] }
"""


def test_the_field_that_names_an_instances_software_is_removed(make_gate: Any) -> None:
    """G34"""
    gate = make_gate(routes=ROUTES)
    _, back = gate.passed(gate.raw("/silent"), answer=reply(b"ok", fields=THEIRS))
    assert back.values("X-Powered-By") == []


MANY = 1_000_000


def memory(pid: int, what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("size", [1, 7])
def test_a_million_small_chunks_leave_memory_flat(size: int, gate: Any) -> None:
    """G36"""

    def answer(connection: socket.socket, _request: Received) -> bool:
        chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(MANY // 10_000):
            connection.sendall(chunk * 10_000)
        connection.sendall(b"0\r\n\r\n")
        return False

    gate.backend.answers = [answer]
    [worker] = gate.served.workers()
    before, lines = memory(worker, "VmRSS"), len(gate.log())
    count, ended = 0, b""
    with gate.connect() as sock:
        sock.sendall(gate.raw("/pub", "Connection: close"))
        while block := sock.recv(1 << 20):
            count += block.count(b"x")
            ended = (ended + block)[-7:]
    assert ended == b"\r\n0\r\n\r\n"
    assert size * MANY <= count < size * MANY + 100  # some are the head's
    assert memory(worker, "VmHWM") - before < 32 << 20
    gate.settled(lines, 1)
