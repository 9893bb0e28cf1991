"""Real servers of the tests: a Redis (or Valkey) in a process of its own, on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import redis

from tests.support.ports import free_port

BINARIES = {name: path for name in ("redis", "valkey") if (path := shutil.which(f"{name}-server"))}
"""The servers there are, by name."""


BUS = 10_000
"""How far the bus of a cluster's server is above its port."""


class Server:
    """One server; it is killed in the end, whatever it does then.

    :param folder: Where its files go.
    :param options: Its configuration, as on its command line; ``"--sentinel"`` may be among them.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        binary: str | None = None,
        port: int | None = None,
        tls: bool = False,
    ) -> None:
        assert "redis" in BINARIES, "the tests need redis-server: apt-get install redis-server"
        self.folder = folder
        self.port = free_port(also=BUS) if port is None else port
        self.binary = binary or BINARIES["redis"]
        self.options = options
        self.tls = tls
        self.log = ""
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        """Where it is; slow machines that run tests are given time to answer."""
        return f"redis://127.0.0.1:{self.port}/0?socket_timeout=10&socket_connect_timeout=10"

    @property
    def impatient(self) -> str:
        """The same, waiting for a hung server for a second."""
        return f"redis://127.0.0.1:{self.port}/0?socket_timeout=1&socket_connect_timeout=1"

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until it takes connections."""
        options = [
            "--tls-port" if self.tls else "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
        ]
        options += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        options += ["--port", "0"] if self.tls else []
        self.process = subprocess.Popen(
            [self.binary, *options, *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if ready:
            self.until("Ready to accept connections")

    def until(self, words: str) -> str:
        """Return the line of its log that has *words*, as soon as there is one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if words in line:
                return line
        self.stop()
        raise AssertionError(f"the server ended:\n{self.log}")

    def admin(self, **settings: object) -> redis.Redis:
        """Return a client of redis-py's own, to look and to meddle with."""
        return redis.Redis("127.0.0.1", self.port, **settings)

    def pause(self) -> None:
        """Stop it in its tracks: it answers nothing, but its connections stay."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it, as a machine that fails does."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
