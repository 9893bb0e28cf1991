"""Where the lines of the access log go besides a stream: a rotating file, syslog, the journal.

Theory of operation. The thread that writes the log opens an output with the first line, closes it
when it fails, and opens it again with the next lines: a syslog server that is restarted, or a disk
that was full, costs the lines of that time only. Nothing here is used by the thread of a request.

Several workers write to one file and rotate it. These rules keep a line from being lost or torn:

- The file is opened with ``O_APPEND``, and lines are written whole in one call.
- A writer locks the file that it has open (``flock``), compares that file's inode with that of the
  path after it has the lock, and writes or rotates before it releases the lock. So it never writes
  to a file that another worker has rotated away and removed, two workers never rotate one file
  twice, and ``logrotate`` is followed without a signal.

The locks belong to the open file, so the kernel releases those of a killed worker.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from wsgigate.runtime.logs import FailureLog
from wsgigate.telemetry.access_log import LineFormat, Record
from wsgigate.telemetry.log_formats import level_of

__all__ = [
    "FACILITIES",
    "HandlerOutput",
    "JournalLines",
    "JournalOutput",
    "RotatingFile",
    "SyslogLines",
    "SyslogOutput",
    "syslog_address",
]


_log = logging.getLogger("wsgigate")


class RotatingFile:
    """A file that all workers append to, rotated by size and by time: ``access.log.1`` and so on.

    :param path: The file.
    :param max_size: Bytes at which it is rotated; ``None`` for no bound.
    :param every: Seconds: it is rotated when an interval of this length, counted from 1970 in UTC,
        is over; ``None`` for never.
    :param backups: Rotated files that are kept.
    :param now: Returns the Unix time in seconds.
    """

    most = 65536

    def __init__(
        self,
        path: str,
        *,
        max_size: int | None = None,
        every: float | None = None,
        backups: int = 7,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = self._real = path
        self._max_size = max_size
        self._every = every
        self._backups = backups
        self._now = now
        self._file = -1
        self._trouble = FailureLog(_log, "%s is rotated again, after %.0f s", path)

    def write(self, lines: Sequence[bytes]) -> int:
        """Append *lines*; return 0.

        :raises OSError: They cannot be written.
        """
        data = b"".join(lines)
        try:
            self._locked(len(data))
            try:
                self._append(data)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError:
            self.close()
            raise
        return 0

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _locked(self, more: int) -> None:
        """Open the file of the path, rotated if it is due, and lock it."""
        for _ in range(100):
            if self._file < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._real = os.path.realpath(self._path)  # a symbolic link stays one
                self._file = os.open(self._real, flags, 0o640)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            status = self._current()
            if status is None:
                self.close()
                continue
            if not self._due(status, more):
                return
            try:
                self._rotate()
            except OSError as error:  # lines matter more than the size of the file
                why = "%s cannot be rotated, and goes on growing: %s"
                self._trouble.failed(why, self._path, error)
                return
            self._trouble.ended()
        raise OSError(f"{self._path} is replaced all the time")

    def _current(self) -> os.stat_result | None:
        """Return the status of the open file; ``None`` if the path names another one by now."""
        mine = os.fstat(self._file)
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return None
        return mine if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino) else None

    def _due(self, status: os.stat_result, more: int) -> bool:
        if not status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        if self._max_size is not None and status.st_size + more > self._max_size:
            return True
        every = self._every
        return every is not None and int(status.st_mtime // every) < int(self._now() // every)

    def _rotate(self) -> None:
        """Rename the locked file and the older ones, and close it."""
        last = 1
        while last < self._backups and os.path.exists(f"{self._real}.{last}"):
            last += 1
        for number in range(last - 1, 0, -1):
            os.replace(f"{self._real}.{number}", f"{self._real}.{number + 1}")
        if self._backups:
            os.replace(self._real, f"{self._real}.1")
        else:
            os.unlink(self._real)
        self.close()

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            if len(rest) < len(data):
                self._cut_off(len(data) - len(rest))
            raise

    def _cut_off(self, written: int) -> None:
        """Remove the beginning of a line that a full disk has cut; the lock is still held.

        Any worker may write the next line, which would continue that one.
        """
        with suppress(OSError):  # no regular file
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)


# syslog (RFC 5424), over a Unix socket, UDP (RFC 5426) or TCP (RFC 6587, octet counting)

FACILITIES = {
    name: number
    for number, name in enumerate(
        (
            *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
            *("authpriv", "ftp", "ntp", "audit", "alert", "clock"),
            *(f"local{number}" for number in range(8)),
        )
    )
}

_SEVERITIES = {"ERROR": 3, "WARN": 4, "INFO": 6}  # RFC 5424, 6.2.1

_PORTS = {"udp": 514, "tcp": 601}


def syslog_address(url: str) -> tuple[str, str, int]:
    """Return the kind, the host or path, and the port that a URL of a syslog server names.

    :param url: ``unix:/dev/log``, ``udp://HOST[:PORT]`` or ``tcp://HOST[:PORT]``.
    :raises ValueError: It is malformed; the message begins with ``syslog``.
    """
    wrong = ValueError(
        f'syslog: expected "unix:/dev/log", "udp://HOST:514" or "tcp://HOST:601", not {url[:64]!r}'
    )
    if url.startswith("unix:/"):
        return "unix", url.removeprefix("unix:"), 0
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    rest = (parts.path, parts.query, parts.fragment, parts.username)
    if parts.scheme not in _PORTS or not parts.hostname or any(rest):
        raise wrong
    return parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port


class SyslogLines:
    """Wraps the lines of another format in messages of RFC 5424.

    :param lines: The format of their text.
    :param facility: One of :data:`FACILITIES`.
    :param name: The name of the application.
    """

    def __init__(self, lines: LineFormat, facility: str, name: str = "wsgigate") -> None:
        self._lines = lines
        self._facility = FACILITIES[facility] * 8
        host = re.sub(r"[^\x21-\x7e]", "", socket.gethostname())[:255] or "-"
        self._origin = f"{host} {name} {os.getpid()}"

    def line(self, record: Record) -> bytes:
        return self._message(_SEVERITIES[level_of(record)], record.time, self._lines.line(record))

    def dropped(self, now: float, count: int) -> bytes:
        return self._message(4, now, self._lines.dropped(now, count))

    def _message(self, severity: int, now: float, line: bytes) -> bytes:
        second, millisecond = divmod(int(now * 1000), 1000)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        head = f"<{self._facility + severity}>1 {when}.{millisecond:03d}Z {self._origin} access - "
        return head.encode("ascii") + line[:-1]


class _Socket:
    """Sends each line as a message of its own, and connects again after a failure."""

    most = 65536
    _socket: socket.socket | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        """Send *lines*; return how many were lost."""
        sent = 0
        for _ in range(2):  # a server that was restarted is noticed by a failure to send only
            try:
                if self._socket is None:
                    self._socket = self._connected()
                for line in lines[sent:]:
                    self._send(self._socket, line)
                    sent += 1
            except OSError:
                self.close()
                continue
            break
        return len(lines) - sent

    def close(self) -> None:
        """Close the socket."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def _connected(self) -> socket.socket:
        raise NotImplementedError

    def _send(self, opened: socket.socket, line: bytes) -> None:
        opened.sendall(line)


_TIMEOUT = 5.0  # seconds that the writing thread waits for a server


class SyslogOutput(_Socket):
    """A syslog server.

    :param url: Where it is, see :func:`syslog_address`.
    :raises ValueError: *url* is malformed.
    """

    def __init__(self, url: str) -> None:
        self._kind, self._host, self._port = syslog_address(url)

    def _connected(self) -> socket.socket:
        if self._kind == "tcp":
            return socket.create_connection((self._host, self._port), _TIMEOUT)
        if self._kind == "unix":
            return _unix_datagrams(self._host)
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        opened.settimeout(_TIMEOUT)
        opened.connect(address)
        return opened

    def _send(self, opened: socket.socket, line: bytes) -> None:
        opened.sendall(b"%d %s" % (len(line), line) if self._kind == "tcp" else line)


def _unix_datagrams(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        opened.settimeout(_TIMEOUT)
        opened.connect(path)
    except BaseException:
        opened.close()
        raise
    return opened


JOURNAL = "/run/systemd/journal/socket"


class JournalLines:
    """Messages of journald's native protocol: the line as ``MESSAGE``, and fields to search by.

    :param lines: The format of the text.
    """

    def __init__(self, lines: LineFormat) -> None:
        self._lines = lines

    def line(self, record: Record) -> bytes:
        status = record.status[:3] if record.status[:3].isdecimal() else None
        fields = (
            ("HTTP_METHOD", record.method),
            ("HTTP_STATUS", status),
            ("REQUEST_ID", record.request_id),
            ("TRACE_ID", record.trace_id),
            ("CLIENT", record.client),
            ("ROUTE", record.route),
            ("SERVICE", record.service),
            ("INSTANCE", record.instance),
        )
        known = [(name, str(value)[:256]) for name, value in fields if value]
        severity = _SEVERITIES[level_of(record)]
        return self._message(severity, self._lines.line(record), known)

    def dropped(self, now: float, count: int) -> bytes:
        return self._message(4, self._lines.dropped(now, count), [])

    def _message(self, severity: int, line: bytes, fields: Sequence[tuple[str, str]]) -> bytes:
        known = [("PRIORITY", str(severity)), ("SYSLOG_IDENTIFIER", "wsgigate"), *fields]
        parts = [_journal_field("MESSAGE", line[:-1])]
        parts += [
            _journal_field(name, value.encode("utf-8", "backslashreplace")) for name, value in known
        ]
        return b"".join(parts)


def _journal_field(name: str, value: bytes) -> bytes:
    """Return a field with its length, so that no value can begin another field."""
    return b"%s\n%s%s\n" % (name.encode("ascii"), struct.pack("<Q", len(value)), value)


class JournalOutput(_Socket):
    """journald's native socket.

    :param path: The socket.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path

    def _connected(self) -> socket.socket:
        return _unix_datagrams(self._path)


_access_log = logging.getLogger("wsgigate.access")


class HandlerOutput:
    """A handler of :mod:`logging`; each line is the message of a record of ``wsgigate.access``.

    :param handler: The handler.
    """

    most = 65536

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler

    def write(self, lines: Sequence[bytes]) -> int:
        """Pass *lines* on; return how many the handler did not accept."""
        lost = 0
        for line in lines:
            text = line[:-1].decode("utf-8", "replace")
            record = _access_log.makeRecord(_access_log.name, logging.INFO, "", 0, text, (), None)
            try:
                self._handler.handle(record)
            except Exception:  # any handler may be given, and the log must go on
                lost += 1
        return lost

    def close(self) -> None:
        """Flush the handler; it belongs to the application."""
        self._handler.flush()
