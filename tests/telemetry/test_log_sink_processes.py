"""The log at the end of a process, and in the children that it forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

FORK_WARNING = "ignore:This process:DeprecationWarning"


def run(script):
    head = """
        import os, sys
        from wsgigate.telemetry.access_log import JsonLines, Record
        from wsgigate.telemetry.access_log import Sink
        RECORD = Record(1.0, None, "192.0.2.1", "GET", "/", "", "200 OK", 0, 0.0,
                        None, None, None, None, None, None, False)
        sink = Sink(None, lambda stream: JsonLines(), queue_size=1000, now=lambda: 2.0)
    """
    done = subprocess.run(
        # Python 3.12 and newer warn of a fork while there are threads, which is what is tried here
        [sys.executable, "-W", FORK_WARNING, "-c", textwrap.dedent(head) + textwrap.dedent(script)],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_records_that_wait_at_exit_are_written():
    written = run("for number in range(500): sink.put(RECORD._replace(bytes=number))")
    assert [line["bytes"] for line in written] == list(range(500))


def test_a_forked_child_writes_its_own_records_and_none_of_its_parents():
    written = run(
        """
        for number in range(100):
            sink.put(RECORD._replace(service="parent", bytes=number))
        children = []
        for child in ("first", "second"):
            pid = os.fork()
            if pid == 0:
                for number in range(100):
                    sink.put(RECORD._replace(service=child, bytes=number))
                assert sink.flush(30)
                sys.exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        """
    )
    for name in ("parent", "first", "second"):
        assert [line["bytes"] for line in written if line["service"] == name] == list(range(100))
    assert len(written) == 300


def test_a_stuck_reader_delays_the_exit_of_a_process_for_two_seconds_at_most():
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                textwrap.dedent(
                    """
                    from wsgigate.telemetry.access_log import JsonLines, Record
                    from wsgigate.telemetry.access_log import Sink
                    record = Record(1.0, None, "", "GET", "/" + "x" * 500, "", "200 OK", 0, 0.0,
                                    None, None, None, None, None, None, False)
                    sink = Sink(None, lambda stream: JsonLines(), queue_size=1000, now=lambda: 2.0)
                    for _ in range(1000):
                        sink.put(record)
                    """
                ),
            ],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=15,
        )
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == 0, done.stderr
