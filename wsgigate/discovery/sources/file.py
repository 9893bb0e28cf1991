"""File source, for a file that another program writes; and a source of fixed instances."""

from __future__ import annotations

import json
import math
import os
import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, SourceError, read_list

__all__ = ["Static", "WatchedFile"]


class Static:
    """A source of fixed instances.

    :param instances: URLs or :class:`~wsgigate.discovery.Instance` objects.
    :raises ValueError: A URL is invalid, or given twice.
    """

    name = "static"

    def __init__(self, instances: Sequence[Instance | str]) -> None:
        made = [Instance(item) if isinstance(item, str) else item for item in instances]
        if len({instance.url for instance in made}) != len(made):
            raise ValueError("instances must not contain a URL twice")
        self._instances = tuple(made)

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances."""
        return Found(self._instances, math.inf, certain=True)

    def close(self) -> None:
        """Do nothing."""


LOOK_EVERY = 0.25
"""Seconds between two checks of the file."""

_MOST_BYTES = 1 << 20

_Signature = tuple[int, int, int, int]


class WatchedFile:
    """A source that reads a file, and reads it again soon after it has changed.

    A file that was replaced (written beside the old one, then renamed) is complete and is read at
    once. A file that is written in place is read when it was unchanged between two checks, as it
    may be incomplete until then. A file that cannot be read, or has no list of instances, is an
    error, and is checked again. An empty list is certain.

    :param path: The file: JSON or TOML, by its suffix.
    :param parse: Parses the text of files of other formats; raises ValueError if it is invalid.
    :raises ValueError: The suffix is neither ``.json`` nor ``.toml``, and *parse* is not given.
    """

    def __init__(self, path: str | Path, *, parse: Callable[[str], object] | None = None) -> None:
        self._path = Path(path)
        self.name = f"file:{path}"
        if parse is None:
            parse = {".json": json.loads, ".toml": tomllib.loads}.get(self._path.suffix)
        if parse is None:
            raise ValueError(f"the name of the file must end in .json or .toml, got {str(path)!r}")
        self._parse = parse
        self.close()

    def close(self) -> None:
        """Forget the last content."""
        self._seen: _Signature | None = None
        self._read: _Signature | None = None
        self._result: Found | SourceError | None = None

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances in the file, which is read only when it has changed."""
        try:
            with open(self._path, "rb") as file:
                self.look(file)
        except OSError as error:
            self._seen = None
            why = f"the file cannot be read: {error.strerror}"
            raise SourceError(why, again_in=LOOK_EVERY) from error
        if isinstance(self._result, Found):
            return self._result
        raise self._result or SourceError("the file is being written", again_in=LOOK_EVERY)

    def look(self, file: BinaryIO) -> None:
        """Read *file* if it has changed, and is not being written."""
        signature = _signature(file)
        before, self._seen = self._seen, signature
        written = before is not None and before[:2] == signature[:2] and before != signature
        if written or signature == self._read:
            return  # it may be incomplete; or it is unchanged
        data = file.read(_MOST_BYTES + 1)
        if _signature(file) != signature:
            return
        self._read = signature
        try:
            self._result = Found(self._listed(data), LOOK_EVERY, certain=True)
        except SourceError as error:
            error.again_in = LOOK_EVERY
            self._result = error

    def _listed(self, data: bytes) -> tuple[Instance, ...]:
        if len(data) > _MOST_BYTES:
            raise SourceError(f"the file is larger than {_MOST_BYTES >> 20} MiB")
        try:
            document = self._parse(data.decode())
        except (ValueError, RecursionError) as error:  # also for invalid UTF-8, JSON and TOML
            raise SourceError(f"the file cannot be parsed: {error}") from None
        return read_list(document)


def _signature(file: BinaryIO) -> _Signature:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
