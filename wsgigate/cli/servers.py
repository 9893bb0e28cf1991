"""The servers that can be had to serve a gateway."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["SERVERS", "server"]

SERVERS = {"gunicorn": "server", "granian": "granian"}
"""The extra that installs each, by its name; the first is usual."""


def server(name: str, command: str) -> ModuleType:
    """Return what has the server *name* serve a gateway.

    :param command: The command that needs it.
    :raises ValueError: It is not installed; says what to do.
    """
    try:
        return import_module(f"wsgigate.integrations.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        raise ValueError(
            f'{command} needs {name}: pip install "wsgigate[{SERVERS[name]}]"'
        ) from None
