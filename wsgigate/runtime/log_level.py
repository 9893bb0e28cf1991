"""How much the package logs, and where to in a process that has not said so itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence

__all__ = ["LEVELS", "adopt", "set_up"]


LEVELS = ("debug", "info", "warning", "error", "critical")
"""The levels by the names that the file and the command line use."""

FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"

_TIMES = "%Y-%m-%d %H:%M:%S %z"

_own = logging.getLogger("wsgigate")


def set_up(level: str | None = None) -> None:
    """Have this process log what changes, unless it has been told how to log.

    A level that the package's logger has already (a server's, or one set in Python) stays. Where
    no handler would take its records, they go to the standard error; Python alone would drop all
    below a warning. Handlers of the application are left as they are.

    :param level: One of :data:`LEVELS`; ``None`` for ``info`` where this function adds the
        handler, and for the application's own level elsewhere.
    """
    if level is not None and _own.level == logging.NOTSET:
        _own.setLevel(level.upper())
    if not _own.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(FORMAT, _TIMES))
        _own.addHandler(handler)
        if _own.level == logging.NOTSET:
            _own.setLevel(logging.INFO)


def adopt(handlers: Sequence[logging.Handler], level: str | int) -> None:
    """Have the package log through a server's *handlers* at the server's *level*.

    Handlers that the application has set up, and a level of the package's logger, stay.
    """
    if not _own.hasHandlers():
        _own.handlers = list(handlers)
        _own.propagate = False
    if _own.level == logging.NOTSET:
        _own.setLevel(level.upper() if isinstance(level, str) else level)
