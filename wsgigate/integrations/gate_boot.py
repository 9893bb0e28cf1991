"""How a GateWorker begins: heedful of signals, and not at all where it would serve unsafely."""

from __future__ import annotations

import os
import queue
import signal
import time
from typing import Any

from gunicorn.arbiter import Arbiter

from wsgigate.integrations.gate_http1 import Http1Worker
from wsgigate.integrations.self_check import facts_of_gunicorn, tell
from wsgigate.rules.serving import findings

__all__ = ["TESTED", "BootingWorker"]

TESTED = ((27, 0), (28, 0))
"""The gunicorn releases it was tested with: from the first, before the second."""

_PAUSE = 0.05
_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class _Word:
    """What one of a master's workers has, whichever asks first, and the others have not."""

    def __init__(self) -> None:
        self._taken, given = os.pipe()
        os.set_blocking(self._taken, False)
        os.write(given, b"1")
        self._given = given  # open, or those who come late would read the end

    def take(self) -> bool:
        """Return whether it is this process's now."""
        try:
            return bool(os.read(self._taken, 1))
        except BlockingIOError:
            return False


class BootingWorker(Http1Worker):
    """gunicorn's threaded worker, which does not serve unsafely, and loses no signal at birth."""

    booted: bool
    _last_word: _Word | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Get ready to fork workers; called by the master at its start."""
        super().check_config(cfg, log)
        cls._last_word = _Word()

    def init_process(self) -> None:
        """Load the app and serve it.

        When several workers can not, only one of them says so. The master ends with the status of
        the first it sees (3: a worker failed to boot), and breaks down over the second, with a
        traceback and another status, if that has ended before it was told to.
        """
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            refused = isinstance(error, Exception) or error.code == Arbiter.WORKER_BOOT_ERROR
            if self.booted or not refused or self._last_word is None or self._last_word.take():
                raise
            self.log.error("Not booted either, and waiting to be told to exit: %r", error)
            self._await_the_end()

    def _await_the_end(self) -> None:
        while self.alive and self.is_parent_alive():
            self.notify()
            time.sleep(_PAUSE)

    def load_wsgi(self) -> None:
        """Load the app; for a gateway, see whether it is safe under these settings.

        :raises SystemExit: It is not, and the gateway is one that refuses then.
        """
        super().load_wsgi()
        mode = getattr(self.wsgi, "self_check", None)
        if mode is not None:
            facts = facts_of_gunicorn(self.cfg, worker="GateWorker", tested=TESTED)
            if tell(findings(facts), mode, self.log):
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR)  # ends the master too

    def init_signals(self) -> None:
        """Listen to signals, and to what came while the master's handlers were still in place.

        A worker that was just forked has them, and they put the signal into its copy of the
        master's queue, which nobody reads. gunicorn's master sends each signal once and then waits
        for ``graceful_timeout`` before it kills.
        """
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
