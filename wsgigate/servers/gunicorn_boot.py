"""The boot of a GateWorker: unsupported settings, the self-check, early signals, and failures.

Theory of operation
-------------------

- gunicorn's master sends each signal once. A worker that was just forked still has the master's
  handlers, which queue the signal in the worker's copy of the master's queue, where no code reads
  it. ``init_signals`` therefore installs the worker's handlers first and drains that queue second;
  the other order would lose a signal that arrives in between.
- The master ends with the status of the first worker it reaps (3: a worker failed to boot). If a
  second one exits before the master has signalled it, the master fails with a traceback and another
  status. So when several workers fail to boot, one exits with ``WORKER_BOOT_ERROR``, and the others
  wait for the master's signal.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from typing import Any

from gunicorn.arbiter import Arbiter

from wsgigate.server_check import facts_of_gunicorn, findings, log_findings
from wsgigate.servers.gunicorn_loop import LoopWorker

__all__ = ["TESTED", "BootingWorker", "OnceToken"]


TESTED = ((27, 0), (28, 0))
"""The supported gunicorn releases: from the first (inclusive) to the second (exclusive)."""

_PAUSE = 0.05
"""Seconds between two heartbeats of a worker that failed to boot and waits for its signal."""

_UNSUPPORTED = (
    "permit_obsolete_folding",
    "strip_header_spaces",
    "permit_unconventional_http_version",
    "do_handshake_on_connect",
)
"""Settings without effect: those of leniency, and one that would let a client block the loop."""

_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class OnceToken:
    """A token in a pipe that exactly one of the forked workers can take."""

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.write(write_end, b"1")
        self._write_end = write_end  # stays open: later readers must get EAGAIN, not end of file

    def take(self) -> bool:
        """Return whether this process has taken the token."""
        try:
            return bool(os.read(self._read_end, 1))
        except BlockingIOError:
            return False


class BootingWorker(LoopWorker):
    """A worker that checks its server's settings at boot, and loses no signal during the fork."""

    booted: bool
    _boot_error: OnceToken | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Prepare for forking workers; the master calls this at its start."""
        for name in _UNSUPPORTED:
            if getattr(cfg, name):
                log.warning("GateWorker does not support gunicorn's setting %s", name)
        cls._boot_error = OnceToken()

    def init_process(self) -> None:
        """Load the app and serve it; of several workers that fail to boot, one exits."""
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            refused = isinstance(error, Exception) or error.code == Arbiter.WORKER_BOOT_ERROR
            if self.booted or not refused or self._boot_error is None or self._boot_error.take():
                raise
            self.log.error(
                "Worker failed to boot, as another one did; waiting for the master's signal: %r",
                error,
            )
            self._wait_for_stop()

    def _wait_for_stop(self) -> None:
        while self.alive and self._has_master():
            self.notify()
            time.sleep(_PAUSE)

    def load_wsgi(self) -> None:
        """Load the app; for a gateway, run the self-check of the server's settings.

        :raises SystemExit: The settings are unsafe, and ``gateway.self_check`` is ``refuse``.
        """
        super().load_wsgi()
        mode = getattr(self.wsgi, "self_check", None)
        if mode is not None:
            facts = facts_of_gunicorn(self.cfg, worker="GateWorker", tested=TESTED)
            if log_findings(findings(facts), mode, self.log):
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR)  # which ends the master, too

    def init_signals(self) -> None:
        """Install the signal handlers, then handle the signals that arrived before."""
        inherited = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        super().init_signals()
        signals = getattr(inherited, "SIG_QUEUE", None)
        while signals is not None:
            try:
                number = signals.get_nowait()
            except queue.Empty:
                return
            if number in _STOP:
                self.handle_exit(number, None)
