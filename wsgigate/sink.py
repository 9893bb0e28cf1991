"""Lines written by a thread of their own, so that a slow reader of them slows nobody else."""

from __future__ import annotations

import atexit
import io
import os
import select
import stat
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TextIO

from wsgigate import process
from wsgigate.records import LONGEST, Lines, Record

__all__ = ["Sink"]

AT_EXIT = 2.0
"""Seconds that the end of the process waits for what is not written yet."""

LINGER = 0.1
"""Seconds from the first line to the writing: one wake-up for all that come in between.

Each wake-up has the thread ask for the interpreter while requests use it, which costs them more
than all the rest of the log.
"""

_ROUND = 1000  # lines taken at a time
_BLOCK = 65536  # bytes written at a time to what is no pipe


class Sink:
    """A bounded queue of lines, and the thread that writes them to a stream.

    A record becomes a line at once, where it comes from: threads that work at the same time hinder
    each other, so the one that writes does nothing else. It starts with the first record of a
    process, and again in a child that was forked: what the parent had not written yet is the
    parent's to write. A record that finds the queue full, or that the stream does not take, is
    dropped and counted; the count is written as soon as something can be written again.

    :param stream: Where the lines go; ``None`` is ``sys.stdout``, whatever that is at the time:
        test runners and ``redirect_stdout`` put another stream in its place, and close it later.
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
        writer = self._writers.get(process.pid)
        return writer.dropped if writer is not None else 0

    def put(self, record: Record) -> None:
        """Have *record* written soon; never waits."""
        writer = self._writers.get(process.pid) or self._start()
        if len(writer.queue) < self._queue_size:
            writer.put(record)
        else:
            writer.lose(1)

    def flush(self, timeout: float = AT_EXIT) -> bool:
        """Wait until all is written or lost; return whether that came to pass in time."""
        writer = self._writers.get(process.pid)
        return writer is None or writer.flush(timeout)

    def close(self, timeout: float = AT_EXIT) -> bool:
        """Flush and end the thread; the next record starts another. The stream stays open."""
        writer = self._writers.pop(process.pid, None)
        return writer is None or writer.stop(timeout)

    def _start(self) -> _Writer:
        # No lock: a thread of the parent may have held it at the fork, and never lets go here.
        pid = process.pid
        fresh = _Writer(self._stream, self._lines, self._now, self._queue_size // 2)
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
            weakref.finalize(self, fresh.add, None).atexit = False
        return writer


class _Writer:
    """The thread of one process; knows its Sink's settings, not the Sink, which may vanish."""

    def __init__(
        self,
        stream: TextIO | None,
        lines: Callable[[TextIO], Lines],
        now: Callable[[], float],
        many: int,
    ) -> None:
        self.queue: deque[bytes | threading.Event | None] = deque()
        self.dropped = 0
        self.thread = threading.Thread(target=self._run, name="wsgigate-log", daemon=True)
        self._stream = stream
        self._follows = stream is None
        self._make_lines = lines
        self._now = now
        self._many = many
        self._pid = process.pid
        self._lock = threading.Lock()
        self._idle = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._reported = 0
        self._output: _Output | None = None
        self._lines: Lines | None = None

    def put(self, record: Record) -> None:
        try:
            lines = self._lines
            if lines is None or (self._follows and sys.stdout is not self._stream):
                lines = self._opened()
            line = lines.line(record)
        except Exception:  # no stream, or a value that is none: the log never fails anyone
            self.lose(1)
            return
        queue = self.queue
        queue.append(line)
        if self._idle:
            self._wake.set()
        if len(queue) > self._many and not self._hurry.is_set():
            self._hurry.set()

    def add(self, item: threading.Event | None) -> None:
        """Queue what is no line: an event to set when all before it is written, or the end."""
        self.queue.append(item)
        self._hurry.set()
        self._wake.set()

    def lose(self, count: int) -> None:
        with self._lock:
            self.dropped += count
        if self._idle:
            self._wake.set()

    def flush(self, timeout: float) -> bool:
        if not self.thread.is_alive():
            return not self.queue
        written = threading.Event()
        self.add(written)
        return written.wait(timeout)

    def flush_at_exit(self) -> None:
        if self._pid == process.pid:
            self.flush(AT_EXIT)

    def stop(self, timeout: float) -> bool:
        self.add(None)
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        queue = self.queue
        going_on = True
        while going_on:
            self._idle = True
            if not queue:  # looked at after the flag: whoever adds from here on sees it
                self._wake.wait()
            self._idle = False
            self._wake.clear()
            if len(queue) < _ROUND:
                self._hurry.wait(LINGER)
            self._hurry.clear()
            items = [queue.popleft() for _ in range(min(len(queue), _ROUND))]
            going_on = None not in items
            self._write(items)
        atexit.unregister(self.flush_at_exit)

    def _write(self, items: list[bytes | threading.Event | None]) -> None:
        batch: list[bytes] = []
        size = 0
        most = self._output.most if self._output is not None else LONGEST
        for item in items:
            if isinstance(item, bytes):
                if size + len(item) > most:
                    self._out(batch)
                    batch, size = [], 0
                batch.append(item)
                size += len(item)
            elif item is not None:
                self._out(batch)
                batch, size = [], 0
                item.set()
        self._out(batch)

    def _out(self, batch: list[bytes]) -> None:
        """Write the lines of *batch* at once, after the number of those that were lost before."""
        try:
            lost = self.dropped - self._reported
            if not batch and not lost:
                return
            lines = self._opened()
            if self._output is None:
                self._output = _Output(self._current())
            if lost:
                self._output.write(lines.dropped(self._now(), lost))
                self._reported += lost
            if batch:
                self._output.write(b"".join(batch))
        except Exception:  # a full disk, a reader that left, a stream that was closed
            self.lose(len(batch))

    def _opened(self) -> Lines:
        with self._lock:
            if self._follows and sys.stdout is not self._stream:
                self._stream, self._lines, self._output = sys.stdout, None, None
            if self._lines is None:
                self._lines = self._make_lines(self._current())
            return self._lines

    def _current(self) -> TextIO:
        if self._stream is None:
            raise ValueError("there is no sys.stdout")
        return self._stream


class _Output:
    """A text stream that takes bytes, unbuffered where it can: what is a line stays a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        # Not its file descriptor: the number of a closed file may be a client's connection by now.
        self._raw: io.RawIOBase | None = raw if isinstance(raw, io.RawIOBase) else None
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._torn = False
        self.most = LONGEST  # a longer write to a pipe may be mixed with those of other workers
        if self._raw is not None:
            stream.flush()
            try:
                mode = os.fstat(self._raw.fileno()).st_mode
            except OSError:  # no file at all
                mode = 0
            if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
                self.most = _BLOCK

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
