"""The processes of the drill: three instances that are ill-treated, and the gateway before them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Failed", "Gateway", "Instance"]

HERE = Path(__file__).resolve().parent
NAMES = ("a", "b", "c")
START_SECONDS = 20.0
STOP_SECONDS = 10.0


class Failed(Exception):
    """The drill cannot start; the message says why."""


class _Process:
    def __init__(self, name: str, port: int, output: Path) -> None:
        self.name = name
        self.port = port
        self._output = output
        self._popen: subprocess.Popen[bytes] | None = None

    def _start(self, command: list[str], environ: Mapping[str, str]) -> None:
        with self._output.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=HERE,  # where there is no gunicorn.conf.py that would be obeyed
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches the drill alone, which then stops the others
            )

    def _signal(self, number: int) -> None:
        if self._popen is not None:
            try:
                os.killpg(self._popen.pid, number)
            except ProcessLookupError:
                pass

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()
        self._popen = None

    def wait_until_up(self) -> None:
        """Return once it listens.

        :raises Failed: It does not.
        """
        until = time.monotonic() + START_SECONDS
        while True:
            if self._popen is None or self._popen.poll() is not None:
                raise Failed(
                    f"{self.name} ended, with the output:\n{self._output.read_text()[-2000:]}"
                )
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise Failed(f"{self.name} does not listen on port {self.port}") from None
            time.sleep(0.02)


class Instance(_Process):
    """One instance of the service, and all that can happen to it."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        super().__init__(name, port, folder / f"output-{name}")
        self.url = f"http://127.0.0.1:{port}"
        self.journal = folder / f"journal-{name}"

    def start(self) -> None:
        """Start it, the first time or after it was killed."""
        command = [sys.executable, "instance.py", self.name, str(self.port), str(self.journal)]
        self._start(command, os.environ)

    def kill(self) -> None:
        """Kill it, with whatever it is at."""
        self._kill()

    def hang(self) -> None:
        """Stop it where it is: the system goes on to accept connections for it."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def fail(self) -> None:
        """Have it answer 500 to all but its health check."""
        self._signal(signal.SIGUSR1)

    def mend(self) -> None:
        self._signal(signal.SIGUSR2)

    def stop(self) -> None:
        self._kill()


class Gateway(_Process):
    """The gateway, this one or any other.

    :param command: What starts it; finds its own port as ``GATEWAY_PORT`` in its environment, and
        the instances as ``INSTANCE_A``, ``INSTANCE_B`` and ``INSTANCE_C``.
    :param environ: Further variables.
    """

    def __init__(
        self,
        command: str,
        port: int,
        instances: list[Instance],
        folder: Path,
        environ: Mapping[str, str],
    ) -> None:
        super().__init__("the gateway", port, folder / "output-gateway")
        self._command = shlex.split(command)
        self._environ = {
            **os.environ,
            **environ,
            "GATEWAY_PORT": str(port),
            "STORE_URL": f"lmdb:{folder / 'store'}",
            **{f"INSTANCE_{each.name.upper()}": each.url for each in instances},
        }

    def start(self) -> None:
        """Start it."""
        self._start(self._command, self._environ)

    def stop(self) -> None:
        """Stop it as an operator would, and kill what is left of it."""
        if self._popen is not None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        self._kill()


def check_ports(first: int, count: int) -> None:
    """See that the ports from *first* on can be used.

    :raises Failed: One cannot.
    """
    for port in range(first, first + count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise Failed(
                    f"port {port} cannot be used ({error.strerror}): stop what listens there, or"
                    " use other ports with --port-base"
                ) from None


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the journals, the gateway's store and what all of them write."""
    return tempfile.TemporaryDirectory(prefix="wsgigate-drill-")
