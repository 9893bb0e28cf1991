"""Reloading the gateway's file on request: how a worker validates it, and signals its server.

Theory of operation. The main process of a server reloads on SIGHUP: it reads the file, and starts
workers that use it. It stays with the previous configuration if the file is invalid, but reports
that to its log only. So the worker that gets the request validates the file first, as the main
process does: in a process of its own (``wsgigate check``), which also imports what the file names.
Only a valid file is worth a signal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.masked import config_hash

__all__ = ["ServerReload", "validate_file"]

LONGEST_CHECK = 60.0
"""Maximum seconds for the validation of a file."""


class ServerReload:
    """Reloads the file of a gateway in the server that this worker belongs to.

    :param path: The file.
    :param main: Returns the id of the main process of the server; 0 if it has ended.
    :param server: The server, as ``wsgigate check --server`` names it.
    """

    def __init__(self, path: str, main: Callable[[], int], server: str = "gunicorn") -> None:
        self._path = path
        self._main = main
        self._server = server

    def hash(self) -> str:
        """Return the hash of the configuration in the file; empty if the file is invalid."""
        try:
            return config_hash(load(self._path))
        except ConfigError:
            return ""

    def errors(self) -> list[str]:
        """Validate the file as ``wsgigate check`` does, which takes about a second.

        :returns: The errors, each with its key; none for a valid file.
        """
        failure, _ = validate_file(self._path, self._server)
        lines = [line.removeprefix(f"{self._path}: ") for line in failure.splitlines()]
        return [line for line in lines if line and not line.startswith("warning: ")]

    def signal(self) -> bool:
        """Send SIGHUP to the main process; return whether there is one."""
        main = self._main()
        if main <= 1:
            return False
        try:
            os.kill(main, signal.SIGHUP)
        except OSError:
            return False
        return True


def validate_file(path: str, server: str = "gunicorn") -> tuple[str, str]:
    """Validate the file in a separate process; return its errors, and a warning about its store.

    Each is empty where there is none. A gateway whose store is unavailable can serve.
    """
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "wsgigate", "check", "--server", server, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_CHECK,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: cannot be checked: {error}", ""
    output = done.stderr.strip()
    if done.returncode:
        return output or f"check: exit {done.returncode}", ""
    of_store = f"{path}: warning: store.url: "
    return "", next((line for line in output.splitlines() if line.startswith(of_store)), "")
