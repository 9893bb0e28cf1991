"""Files that are read again when they change, such as lists of credentials."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from wsgigate.runtime import fork
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.logs import FailureLog

__all__ = ["LARGEST", "ReloadedFile", "UnreadableFile"]

T = TypeVar("T")

LARGEST = 16 * 1024 * 1024
"""The largest file that is read by default, in bytes."""

SETTLES = 0.1
"""Seconds for which a file that is written in place must be unchanged: it may be incomplete."""

_MOST_LOGGED = 20


class UnreadableFile(Exception):
    """The file cannot be read or parsed, and never was; the message names it and the cause."""


class ReloadedFile(Generic[T]):
    """A file that is parsed again when its content has changed.

    An invalid entry is logged, and left out; the others are in force. A file that cannot be read or
    parsed leaves what was read last in force, as a deployment must not lock everybody out for the
    moment of a write. Nothing is opened before the first :meth:`look`.

    :param path: The file.
    :param parse: Returns what the content means, and the errors of its entries. It raises
        ValueError if the whole content is invalid.
    :param what: What the file is, for the log, such as ``the file of API keys``.
    :param logger: The logger that receives errors.
    :param largest: The largest size in bytes.
    :param absent: What an absent file means; that it is absent is logged once. Default: it is an
        error.
    :param clock: Returns monotonic seconds.
    :param now: Returns the Unix time in seconds.
    :ivar value: What was read last; None before.
    """

    def __init__(
        self,
        path: str,
        parse: Callable[[bytes], tuple[T, Sequence[str]]],
        *,
        what: str,
        logger: logging.Logger,
        largest: int = LARGEST,
        absent: T | None = None,
        clock: Callable[[], float] = steady,
        now: Callable[[], float] = wall,
    ) -> None:
        self.path = path
        self.value: T | None = None
        self._parse = parse
        self._what = what
        self._logger = logger
        self._largest = largest
        self._absent = absent
        self._now = now
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._version: object = None
        self._invalid: tuple[object, str] | None = None
        self._trouble = FailureLog(
            logger, f"{what[:1].upper()}{what[1:]} %s can be read again, after %.0f s", path,
            clock=clock,
        )  # fmt: skip

    @property
    def failing(self) -> bool:
        """Whether the file could not be read or parsed at the last look."""
        return self._trouble.since is not None

    def first(self) -> T:
        """Read the file and return what it means, for a caller that cannot begin without it.

        Its errors are the caller's to report; they are not logged.

        :raises OSError: It cannot be read.
        :raises ValueError: It cannot be parsed.
        """
        with self._lock, open(self.path, "rb") as file:
            return self._accept(_signature(os.fstat(file.fileno())), file.read(self._largest + 1))

    def look(self) -> object:
        """Read the file if it has changed; return a value that differs after each change.

        :raises UnreadableFile: It cannot be read or parsed, and never was.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            with self._lock:
                return self._missing()
        except OSError as error:
            return self._failed(error.strerror or str(error))
        seen = _signature(status)
        if self.value is not None:
            if seen == self._version:
                self._trouble.ended()
                return seen
            in_place = isinstance(self._version, tuple) and self._version[:2] == seen[:2]
            if in_place and 0 <= self._now() - status.st_mtime < SETTLES:
                return self._version
        if self._invalid is not None and self._invalid[0] == seen:
            return self._failed(self._invalid[1])  # without reading the same content again
        with self._lock:  # a slow thread must not put older content in place of newer
            return self._load()

    def forget(self) -> None:
        """Read the file again at the next look, as this process has changed it."""
        self._version = object()

    def _missing(self) -> object:
        if self._absent is None or self.value is not None:
            if self._version is None and self.value is not None:
                return None
            return self._failed("it does not exist")
        if self.value is None:
            self._logger.warning(
                "%s%s %s does not exist, and counts as empty until it does",
                self._what[:1].upper(),
                self._what[1:],
                self.path,
            )
        self.value, self._version = self._absent, None
        return None

    def _load(self) -> object:
        try:
            with open(self.path, "rb") as file:
                seen = _signature(os.fstat(file.fileno()))
                if self.value is not None and seen == self._version:
                    return seen  # another thread has just read it
                data = file.read(self._largest + 1)
        except OSError as error:
            return self._failed(error.strerror or str(error))
        try:
            self._accept(seen, data)
        except ValueError as error:
            self._invalid = seen, str(error)
            return self._failed(str(error))
        return seen

    def _accept(self, seen: object, data: bytes) -> T:
        if len(data) > self._largest:
            raise ValueError(f"it is larger than {_size(self._largest)}")
        value, errors = self._parse(data)
        self._invalid = None
        self._trouble.ended()
        for why in errors[:_MOST_LOGGED]:
            self._logger.error("In %s %s, %s; this entry is ignored", self._what, self.path, why)
        self.value = value  # before the version: a thread that sees the new version has the value
        self._version = seen
        return value

    def _failed(self, why: str) -> object:
        self._trouble.failed(f"{self._what[:1].upper()}{self._what[1:]} %s: %s", self.path, why)
        if self.value is None:
            raise UnreadableFile(f"{self._what} {self.path}: {why}")
        return self._version


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"


def _signature(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
