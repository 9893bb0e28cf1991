"""The access log reaches files, syslog, the journal and handlers whole, over real sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreter import run_alone
from tests.telemetry.test_access_log import PLAIN
from wsgigate.telemetry.access_log import JsonLines
from wsgigate.telemetry.log_outputs import (
    HandlerOutput,
    JournalLines,
    JournalOutput,
    RotatingFile,
    SyslogLines,
    SyslogOutput,
    syslog_address,
)
from wsgigate.testing import FakeClock

HOSTILE = PLAIN._replace(client="a\n<0>1 forged", subject="x\nPRIORITY=0\n", service="\ud800\n")


def test_lines_are_appended_to_a_file(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "access.log"))
    assert file.write([b"a\n", b"b\n"]) == 0
    file.close()
    assert file.write([b"c\n"]) == 0
    file.close()
    assert (tmp_path / "access.log").read_text() == "a\nb\nc\n"
    assert (tmp_path / "access.log").stat().st_mode & 0o137 == 0


def test_a_file_is_rotated_by_size(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "log"), max_size=10, backups=2)
    for number in range(7):
        file.write([b"line%d\n" % number])
    file.close()
    names = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert names == {"log": "line6\n", "log.1": "line5\n", "log.2": "line4\n"}


def test_a_file_without_backups_begins_again(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "log"), max_size=10, backups=0)
    for number in range(3):
        file.write([b"line%d\n" % number])
    file.close()
    assert [each.read_text() for each in tmp_path.iterdir()] == ["line2\n"]


def test_a_file_is_rotated_by_time(tmp_path: Path) -> None:
    clock = FakeClock(1_750_000_000.0)
    path = tmp_path / "log"
    file = RotatingFile(str(path), every=86_400, now=clock)
    file.write([b"yesterday\n"])
    os.utime(path, (clock(), clock()))
    file.write([b"too\n"])
    os.utime(path, (clock(), clock()))
    clock.advance(86_400)
    file.write([b"today\n"])
    file.close()
    assert path.read_text() == "today\n"
    assert (tmp_path / "log.1").read_text() == "yesterday\ntoo\n"


def test_a_file_that_another_program_rotates_is_followed(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "log"))
    file.write([b"a\n"])
    (tmp_path / "log").rename(tmp_path / "old")
    file.write([b"b\n"])
    (tmp_path / "log").unlink()
    file.write([b"c\n"])
    file.close()
    assert (tmp_path / "old").read_text() == "a\n"
    assert (tmp_path / "log").read_text() == "c\n"


def test_a_symbolic_link_stays_and_its_target_is_rotated(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "logs" / "real")
    file = RotatingFile(str(tmp_path / "log"), max_size=3)
    file.write([b"a\n"])
    file.write([b"b\n"])
    file.close()
    assert (tmp_path / "log").is_symlink()
    assert (tmp_path / "log").read_text() == "b\n"
    assert (tmp_path / "logs" / "real.1").read_text() == "a\n"


def test_a_full_disk_loses_lines_and_tears_none() -> None:
    file = RotatingFile("/dev/full")
    with pytest.raises(OSError, match="No space"):
        file.write([b"a\n"])


WORKER = """
import sys
from wsgigate.telemetry.log_outputs import RotatingFile
path, name = sys.argv[1:]
file = RotatingFile(path, max_size=2000, backups=1000)
sys.stdin.readline()
for number in range(100):
    lines = [b"%s %d %d %s\\n" % (name.encode(), number, part, b"x" * 50) for part in range(3)]
    assert file.write(lines) == 0
file.close()
"""


def test_processes_that_rotate_one_file_lose_and_tear_no_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, path, name], stdin=subprocess.PIPE)
        for name in "abcd"
    ]
    try:
        for worker in workers:
            assert worker.stdin
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        assert [worker.wait(300) for worker in workers] == [0] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(60)
            assert worker.stdin
            worker.stdin.close()
    files = list(tmp_path.iterdir())
    assert len(files) > 10
    assert all(each.stat().st_size <= 2000 for each in files)
    lines = [line for each in files for line in each.read_text().splitlines()]
    assert all(re.fullmatch(r"[a-d] \d+ [0-2] x{50}", line) for line in lines)
    assert len(lines) == len(set(lines)) == 4 * 100 * 3


RFC5424 = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([\x21-\x7e]+) "
    rb"wsgigate (\d+) access - (.*)"
)


@contextlib.contextmanager
def datagrams(family: int, address: object) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind(address)  # type: ignore[arg-type]
        server.settimeout(30)
        yield server


@pytest.mark.parametrize(("status", "severity"), [("200 OK", 6), ("404 X", 4), ("502 X", 3)])
def test_a_message_of_rfc_5424(status: str, severity: int) -> None:
    line = SyslogLines(JsonLines(), "local0").line(HOSTILE._replace(status=status))
    found = RFC5424.fullmatch(line)
    assert found
    assert int(found[1]) == 16 * 8 + severity
    assert found[2] == b"2025-06-15T15:06:40.123Z"
    assert json.loads(found[5])["client"] == HOSTILE.client
    dropped = SyslogLines(JsonLines(), "daemon").dropped(0.0, 3)
    assert dropped.startswith(b"<28>1 1970-")


def test_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    output = SyslogOutput(f"unix:{path}")
    assert output.write([b"lost"]) == 1
    with datagrams(socket.AF_UNIX, path) as server:
        assert output.write([b"a", b"b"]) == 0
        assert [server.recv(99), server.recv(99)] == [b"a", b"b"]
    os.unlink(path)
    with datagrams(socket.AF_UNIX, path) as server:  # a server that was restarted
        assert output.write([b"c"]) == 0
        assert server.recv(99) == b"c"
    output.close()


def test_syslog_over_udp() -> None:
    with datagrams(socket.AF_INET, ("127.0.0.1", 0)) as server:
        output = SyslogOutput(f"udp://127.0.0.1:{server.getsockname()[1]}")
        assert output.write([b"a", b"b"]) == 0
        assert [server.recv(99), server.recv(99)] == [b"a", b"b"]
        output.close()


def test_syslog_over_tcp_has_the_length_of_each_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        output = SyslogOutput(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        assert output.write([b"first", b"second line"]) == 0
        output.close()
        peer, _ = server.accept()
        with peer, peer.makefile("rb") as stream:
            assert stream.read() == b"5 first11 second line"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("unix:/dev/log", ("unix", "/dev/log", 0)),
        ("udp://logs", ("udp", "logs", 514)),
        ("tcp://[::1]:6514", ("tcp", "::1", 6514)),
        ("tcp://logs", ("tcp", "logs", 601)),
    ],
)
def test_the_address_of_a_syslog_server(url: str, found: object) -> None:
    assert syslog_address(url) == found


@pytest.mark.parametrize(
    "url", ["", "logs", "unix:log", "http://logs", "udp://", "udp://a:x", "udp://a/b", "tcp://u@a"]
)
def test_a_malformed_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^syslog: expected"):
        SyslogOutput(url)


def read_journal(data: bytes) -> dict[str, bytes]:
    """Parse a message of the native protocol, in which each field has its length."""
    found: dict[str, bytes] = {}
    while data:
        name, _, rest = data.partition(b"\n")
        [length] = struct.unpack("<Q", rest[:8])
        assert rest[8 + length : 9 + length] == b"\n"
        assert name.decode("ascii") not in found
        found[name.decode("ascii")] = rest[8 : 8 + length]
        data = rest[9 + length :]
    return found


def test_the_journal_gets_fields_that_no_value_can_forge(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    lines = JournalLines(JsonLines())
    with datagrams(socket.AF_UNIX, path) as server:
        output = JournalOutput(path)
        record = HOSTILE._replace(status="502 X", trace_id="t1", route="orders")
        assert output.write([lines.line(record), lines.dropped(0.0, 3)]) == 0
        found = read_journal(server.recv(65536))
        dropped = read_journal(server.recv(65536))
        output.close()
    assert (found["PRIORITY"], found["HTTP_STATUS"], found["TRACE_ID"]) == (b"3", b"502", b"t1")
    assert (found["CLIENT"], found["ROUTE"]) == (HOSTILE.client.encode(), b"orders")
    assert found["SYSLOG_IDENTIFIER"] == b"wsgigate"
    assert json.loads(found["MESSAGE"])["subject"] == HOSTILE.subject
    assert json.loads(dropped["MESSAGE"])["count"] == 3


def test_a_journal_that_is_away_loses_lines(tmp_path: Path) -> None:
    assert JournalOutput(str(tmp_path / "none")).write([b"a", b"b"]) == 2


def test_a_handler_of_logging_gets_each_line() -> None:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "bad":
                raise RuntimeError
            kept.append((record.name, record.getMessage()))

    kept: list[tuple[str, str]] = []
    output = HandlerOutput(Kept())
    assert output.write([b"a %s\n", b"bad\n", b"c\n"]) == 1
    output.close()
    assert kept == [("wsgigate.access", "a %s"), ("wsgigate.access", "c")]


def test_two_threads_of_two_loggers_may_rotate_one_file(tmp_path: Path) -> None:
    def write(name: str) -> None:
        file = RotatingFile(str(tmp_path / "log"), max_size=100, backups=1000)
        for number in range(100):
            file.write([f"{name} {number}\n".encode()])
        file.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lines = [line for each in tmp_path.iterdir() for line in each.read_text().splitlines()]
    assert len(set(lines)) == len(lines) == 200


def test_a_line_that_a_full_disk_has_cut_is_continued_by_no_worker(tmp_path: Path) -> None:
    run_alone(
        """
import resource, sys
from wsgigate.telemetry.log_outputs import RotatingFile

one, other = RotatingFile(sys.argv[1]), RotatingFile(sys.argv[1])
one.write([b"a" * 79 + b"\\n"])
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
try:
    one.write([b"b" * 79 + b"\\n"])
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    other.write([b"c" * 79 + b"\\n"])
assert open(sys.argv[1]).read().split() == ["a" * 79, "c" * 79]
""",
        str(tmp_path / "access.log"),
    )


def test_a_file_that_cannot_be_rotated_loses_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, blocked = tmp_path / "access.log", tmp_path / "access.log.1" / "a"
    blocked.mkdir(parents=True)
    file = RotatingFile(str(path), max_size=10, backups=1)
    for number in range(4):
        file.write([b"line %d\n" % number])
    assert path.read_text().splitlines() == [f"line {number}" for number in range(4)]
    blocked.rmdir()
    blocked.parent.rmdir()
    file.write([b"line 4\n"])
    file.close()
    assert path.read_text() == "line 4\n"
    begun, ended = caplog.messages
    assert begun.startswith(f"{path} cannot be rotated, and goes on growing: ")
    assert ended.startswith(f"{path} is rotated again, after ")
