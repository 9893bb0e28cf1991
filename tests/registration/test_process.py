"""Which process has a listening socket, and which can only connect to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.support.ports import free_port
from wsgigate.registration import process
from wsgigate.registration.process import accepts, holds


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_holds_is_true_for_the_listening_sockets_of_this_process(
    family: socket.AddressFamily, host: str
) -> None:
    # of the range for servers: any client may be given another one, or connect to itself
    port = free_port()
    with socket.create_server((host, port), family=family):
        assert holds(port)
        assert not holds(port, os.getppid())
        assert accepts(host, port)
        with socket.create_connection((host, port)) as connection:
            assert not holds(connection.getsockname()[1])
    assert not holds(port)
    assert not accepts(host, port)


def test_a_listener_whose_row_the_kernel_skipped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = process.read_listening, []

    def skips_at_first(port: int) -> set[str]:
        reads.append(port)
        return read(port) if len(reads) > 1 else set()

    monkeypatch.setattr(process, "read_listening", skips_at_first)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert holds(listener.getsockname()[1])
    assert len(reads) == 2


def test_holds_is_false_for_the_socket_of_another_process() -> None:
    code = (
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        port = int(other.stdout.readline())
        assert not holds(port)
        assert holds(port, other.pid)
        assert accepts("127.0.0.1", port)
        other.stdin.close()
        other.wait(30)
    assert not holds(port, other.pid)
