"""The log level of the package, and its handler where the application has none."""

from __future__ import annotations

import logging
from collections.abc import Sequence

__all__ = ["LEVELS", "adopt", "set_up"]


LEVELS = ("debug", "info", "warning", "error", "critical")
"""The names of the levels in the configuration file and on the command line."""

FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"

_TIMES = "%Y-%m-%d %H:%M:%S %z"

_logger = logging.getLogger("wsgigate")


def set_up(level: str | None = None) -> None:
    """Set up logging for this process, unless the application has done so.

    A level that the package's logger already has (set by a server or in Python) stays. Where no
    handler would receive its records, they go to the standard error; Python alone would drop all
    below a warning. Handlers of the application stay as they are.

    :param level: One of :data:`LEVELS`. ``None``: ``info`` if this function adds the handler, else
        the application's own level.
    """
    if level is not None and _logger.level == logging.NOTSET:
        _logger.setLevel(level.upper())
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(FORMAT, _TIMES))
        _logger.addHandler(handler)
        if _logger.level == logging.NOTSET:
            _logger.setLevel(logging.INFO)


def adopt(handlers: Sequence[logging.Handler], level: str | int) -> None:
    """Log the package's records through a server's *handlers* at the server's *level*.

    Handlers set up by the application, and a level of the package's logger, stay as they are.
    """
    if not _logger.hasHandlers():
        _logger.handlers = list(handlers)
        _logger.propagate = False
    if _logger.level == logging.NOTSET:
        _logger.setLevel(level.upper() if isinstance(level, str) else level)
