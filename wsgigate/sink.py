"""Lines written by a thread of their own, so that a slow reader of them slows nobody else."""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TextIO

from wsgigate.records import LONGEST, Lines, Record

__all__ = ["Sink"]

AT_EXIT = 2.0
"""Seconds that the end of the process waits for what is not written yet."""

LINGER = 0.01
"""Seconds from the first record to the writing: one wake-up for all that come in between."""

_ROUND = 1000  # records taken at a time


class Sink:
    """A bounded queue of records, and the thread that writes them to a stream.

    The thread starts with the first record of a process, and again in a child that was forked: what
    the parent had not written yet is the parent's to write. A record that finds the queue full, or
    that the stream does not take, is dropped and counted; the count is written as soon as something
    can be written again.

    :param stream: Where the lines go; ``None`` is ``sys.stdout`` as it is then.
    :param lines: Makes what turns records into lines for a stream.
    :param queue_size: How many records wait at most.
    :param now: Tells the time, in seconds since 1970.
    """

    def __init__(
        self,
        stream: TextIO | None,
        lines: Callable[[TextIO], Lines],
        *,
        queue_size: int,
        now: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._lines = lines
        self._queue_size = queue_size
        self._now = now
        self._writers: dict[int, _Writer] = {}  # at most the one of this process

    @property
    def dropped(self) -> int:
        """How many records this process has lost."""
        writer = self._writers.get(os.getpid())
        return writer.dropped if writer is not None else 0

    def put(self, record: Record) -> None:
        """Have *record* written soon; never waits."""
        writer = self._writers.get(os.getpid()) or self._start()
        if writer.queue.qsize() < self._queue_size:
            writer.queue.put(record)
        else:
            writer.lose(1)

    def flush(self, timeout: float = AT_EXIT) -> bool:
        """Wait until all is written or lost; return whether that came to pass in time."""
        writer = self._writers.get(os.getpid())
        return writer is None or writer.flush(timeout)

    def close(self, timeout: float = AT_EXIT) -> bool:
        """Flush and end the thread; the next record starts another. The stream stays open."""
        writer = self._writers.pop(os.getpid(), None)
        return writer is None or writer.stop(timeout)

    def _start(self) -> _Writer:
        # No lock: a thread of the parent may have held it at the fork, and never lets go here.
        pid = os.getpid()
        fresh = _Writer(self._stream, self._lines, self._now)
        writer = self._writers.setdefault(pid, fresh)
        if writer is fresh:
            for other in [each for each in self._writers if each != pid]:
                self._writers.pop(other, None)
            try:
                fresh.thread.start()
            except RuntimeError:  # no more threads, or the interpreter is on its way out
                self._writers.pop(pid, None)
                return fresh
            atexit.register(fresh.flush_at_exit)
            weakref.finalize(self, fresh.queue.put, None).atexit = False
        return writer


class _Writer:
    """The thread of one process; knows its Sink's settings, not the Sink, which may vanish."""

    def __init__(
        self, stream: TextIO | None, lines: Callable[[TextIO], Lines], now: Callable[[], float]
    ) -> None:
        self.queue: SimpleQueue[Record | threading.Event | None] = SimpleQueue()
        self.dropped = 0
        self.thread = threading.Thread(target=self._run, name="wsgigate-log", daemon=True)
        self._stream = stream
        self._make_lines = lines
        self._now = now
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._reported = 0
        self._output: _Output | None = None
        self._lines: Lines | None = None

    def lose(self, count: int) -> None:
        with self._lock:
            self.dropped += count

    def flush(self, timeout: float) -> bool:
        if not self.thread.is_alive():
            return self.queue.empty()
        written = threading.Event()
        self.queue.put(written)
        self._hurry.set()
        return written.wait(timeout)

    def flush_at_exit(self) -> None:
        if self._pid == os.getpid():
            self.flush(AT_EXIT)

    def stop(self, timeout: float) -> bool:
        self.queue.put(None)
        self._hurry.set()
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        going_on = True
        while going_on:
            items = [self.queue.get()]
            if self.queue.empty():
                self._hurry.wait(LINGER)
            self._hurry.clear()
            try:
                while len(items) < _ROUND:
                    items.append(self.queue.get_nowait())
            except Empty:
                pass
            going_on = None not in items
            self._write(items)
        atexit.unregister(self.flush_at_exit)

    def _write(self, items: list[Record | threading.Event | None]) -> None:
        batch: list[bytes] = []
        size = 0
        for item in items:
            if isinstance(item, Record):
                try:
                    line = self._opened().line(item)
                except Exception:  # no stream, or a value that is none: the log never fails anyone
                    self.lose(1)
                    continue
                if size + len(line) > LONGEST:
                    self._out(batch)
                    batch, size = [], 0
                batch.append(line)
                size += len(line)
            elif item is not None:
                self._out(batch)
                batch, size = [], 0
                item.set()
        self._out(batch)

    def _out(self, batch: list[bytes]) -> None:
        """Write the lines of *batch* at once, after the number of those that were lost before."""
        try:
            lost = self.dropped - self._reported
            if lost:
                line = self._opened().dropped(self._now(), lost)
                if self._output is not None:
                    self._output.write(line)
                    self._reported += lost
            if batch and self._output is not None:
                self._output.write(b"".join(batch))
        except Exception:  # a full disk, a reader that left, a stream that was closed
            self.lose(len(batch))

    def _opened(self) -> Lines:
        if self._lines is None:
            stream = self._stream if self._stream is not None else sys.stdout
            self._output = _Output(stream)
            self._lines = self._make_lines(stream)
        return self._lines


class _Output:
    """A text stream that takes bytes, unbuffered where it can: what is a line stays a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        # Not its file descriptor: the number of a closed file may be a client's connection by now.
        self._raw: io.RawIOBase | None = raw if isinstance(raw, io.RawIOBase) else None
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._torn = False
        if self._raw is not None:
            stream.flush()

    def write(self, data: bytes) -> None:
        if self._raw is None:
            self._stream.write(data.decode(self._encoding))
            self._stream.flush()
            return
        if self._torn:  # by a disk that was full: the next line does not continue that one
            self._write_raw(self._raw, b"\n")
            self._torn = False
        self._write_raw(self._raw, data)

    def _write_raw(self, raw: io.RawIOBase, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = raw.write(rest)
                if written is None:  # a pipe that was told not to wait
                    poll = select.poll()
                    poll.register(raw.fileno(), select.POLLOUT)
                    poll.poll(1000)
                else:
                    rest = rest[written:]
        except BaseException:
            self._torn = self._torn or 0 < len(rest) < len(data)
            raise
