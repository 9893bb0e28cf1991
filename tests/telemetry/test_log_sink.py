"""Writing the access log never delays a request and never fails one."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import threading
import weakref

import pytest

from wsgigate.telemetry.access_log import JsonLines, Record, Sink

RECORD = Record(
    1.0, None, "192.0.2.1", "GET", "/", "", "200 OK", 0, 0.0,
    None, None, None, None, None, None, False,
)  # fmt: skip


class Stream(io.StringIO):
    """A stream that can be blocked and broken, and remembers what was written at a time."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error = None
        self.writes = []

    def write(self, text):
        self.entered.set()
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        self.writes.append(text)
        return super().write(text)


PATIENCE = 30.0
"""Seconds for which a test waits for the thread that writes."""


def sink_of(stream, queue_size=10_000):
    return Sink(stream, lambda stream: JsonLines(), queue_size=queue_size, now=lambda: 2.0)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_records_come_out_in_order():
    stream = Stream()
    sink = sink_of(stream)
    for number in range(2500):
        sink.put(RECORD._replace(bytes=number))
    assert sink.close(PATIENCE)
    assert [line["bytes"] for line in lines(stream)] == list(range(2500))
    assert sink.dropped == 0


def test_lines_are_written_whole_and_many_at_a_time():
    """A write of up to 4096 bytes to a pipe is not mixed with those of other workers."""
    stream = Stream()
    sink = sink_of(stream)
    stream.open.clear()
    sink.put(RECORD)
    assert stream.entered.wait(30)
    for _ in range(1000):
        sink.put(RECORD._replace(subject="x" * 300))
    stream.open.set()
    assert sink.close(PATIENCE)
    assert all(len(text) <= 4096 and text.endswith("\n") for text in stream.writes)
    assert len(stream.writes) < 150


def test_a_stuck_reader_costs_records_not_requests():
    """L05."""
    stream = Stream()
    sink = sink_of(stream, queue_size=10)
    stream.open.clear()
    sink.put(RECORD)
    assert stream.entered.wait(30)
    for _ in range(25):
        sink.put(RECORD)
    assert sink.dropped == 15
    assert sink.flush(timeout=0) is False
    stream.open.set()
    assert sink.close(PATIENCE)
    written = lines(stream)
    assert {"time": "1970-01-01T00:00:02.000Z", "event": "log records dropped", "count": 15} in (
        written
    )
    assert len(written) == 12


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed file")],
    ids=lambda error: type(error).__name__,
)
def test_a_broken_stream_costs_records_not_requests(error):
    """L05."""
    stream = Stream()
    stream.error = error
    sink = sink_of(stream)
    for _ in range(3):
        sink.put(RECORD)
        assert sink.flush(PATIENCE)
    assert sink.dropped == 3
    stream.error = None
    sink.put(RECORD)
    assert sink.close(PATIENCE)
    report, record = lines(stream)
    assert report["count"] == 3
    assert record["status"] == 200


def test_the_loss_is_reported_once():
    stream = Stream()
    stream.error = OSError()
    sink = sink_of(stream)
    sink.put(RECORD)
    assert sink.flush(PATIENCE)
    stream.error = None
    assert sink.flush(PATIENCE)
    assert sink.flush(PATIENCE)
    assert [line["count"] for line in lines(stream)] == [1]
    assert sink.dropped == 1
    sink.close(PATIENCE)


def test_a_stream_that_is_closed_is_not_written_to():
    stream = Stream()
    stream.close()
    sink = sink_of(stream)
    sink.put(RECORD)
    assert sink.flush(PATIENCE)
    assert sink.dropped == 1
    sink.close(PATIENCE)


def test_without_a_stdout_records_are_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    sink = sink_of(None)
    sink.put(RECORD)
    assert sink.flush(PATIENCE)
    assert sink.dropped == 1
    sink.close(PATIENCE)


def test_stdout_is_the_one_of_the_first_use(monkeypatch):
    sink = sink_of(None)
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    sink.put(RECORD)
    assert sink.close(PATIENCE)
    assert len(lines(stream)) == 1


def test_a_record_that_cannot_be_written_does_not_stop_the_others():
    stream = Stream()
    sink = sink_of(stream)
    sink.put(RECORD._replace(duration="no number"))
    sink.put(RECORD)
    assert sink.close(PATIENCE)
    assert [line.get("event") for line in lines(stream)] == ["log records dropped", None]


def writers():
    return {each for each in threading.enumerate() if each.name == "wsgigate-log"}


def test_nothing_starts_before_the_first_record():
    before = writers()
    sink = sink_of(Stream())
    assert sink.flush(PATIENCE) is True
    assert sink.close(PATIENCE) is True
    assert sink.dropped == 0
    assert writers() <= before


def test_a_closed_sink_writes_again_at_the_next_record():
    stream = Stream()
    sink = sink_of(stream)
    sink.put(RECORD)
    assert sink.close(PATIENCE)
    sink.put(RECORD)
    assert sink.close(PATIENCE)
    assert len(lines(stream)) == 2
    assert not stream.closed


def test_a_collected_sink_leaves_no_thread():
    before = writers()
    sink = sink_of(Stream())
    sink.put(RECORD)
    assert sink.flush(PATIENCE)
    (thread,) = writers() - before
    gone = weakref.ref(sink)
    del sink
    gc.collect()
    assert gone() is None
    thread.join(30)
    assert not thread.is_alive()


def test_many_threads_start_one_writer():
    before = writers()
    stream = Stream()
    sink = sink_of(stream)
    start = threading.Barrier(16)

    def put():
        start.wait()
        for _ in range(50):
            sink.put(RECORD)

    threads = [threading.Thread(target=put) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writers() - before) == 1
    assert sink.close(PATIENCE)
    assert len(lines(stream)) == 800


def test_a_file_is_written_without_buffers(tmp_path):
    with open(tmp_path / "log", "w", encoding="utf-8") as file:
        file.write("before\n")
        sink = sink_of(file)
        sink.put(RECORD)
        assert sink.close(PATIENCE)
        text = (tmp_path / "log").read_text()
    assert text.startswith('before\n{"time"')
    assert text.endswith("}\n")


def test_a_line_torn_by_a_full_disk_is_not_continued(tmp_path):
    class Disk(io.FileIO):
        room = 10

        def write(self, data):
            if self.room == 0:
                raise OSError(28, "No space left on device")
            written = super().write(bytes(data)[: self.room])
            self.room -= written
            return written

    raw = Disk(tmp_path / "log", "w")
    with io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8") as stream:
        sink = sink_of(stream)
        sink.put(RECORD)
        assert sink.flush(PATIENCE)
        assert sink.dropped == 1
        raw.room = 10**6
        sink.put(RECORD)
        assert sink.close(PATIENCE)
    torn, report, record = (tmp_path / "log").read_text().splitlines()
    assert torn == '{"time":"1'
    assert json.loads(report)["count"] == 1
    assert json.loads(record)["status"] == 200


def test_a_pipe_that_does_not_wait_is_waited_for():
    read, write = os.pipe()
    os.set_blocking(write, False)
    with open(read, "rb") as reader, open(write, "w", encoding="ascii") as stream:
        sink = sink_of(stream)
        for _ in range(1000):
            sink.put(RECORD)  # more than a pipe holds
        got = b""
        while got.count(b"\n") < 1000:
            got += reader.read1(65536)
        assert sink.close(PATIENCE)
        assert sink.dropped == 0


def test_lines_go_to_the_standard_output_of_the_moment(capsys, monkeypatch):
    sink = sink_of(None)

    def written():
        sink.put(RECORD)
        assert sink.flush(PATIENCE)
        return capsys.readouterr().out.count('"path":')

    assert written() == 1
    other = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", other)
        assert written() == 0
    assert other.getvalue().count('"path":') == 1
    other.close()
    assert written() == 1
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        sink.put(RECORD)
    sink.put(RECORD)
    assert sink.flush(PATIENCE)
    told = capsys.readouterr().out
    assert told.count('"path":') == 1
    assert '"log records dropped","count":1' in told
    sink.close(PATIENCE)
