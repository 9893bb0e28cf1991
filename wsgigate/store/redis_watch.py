"""Keeps an eye on one server: while it fails, nobody waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from wsgigate.rules.outage import Outage
from wsgigate.store import MisconfiguredStore, StoreError

__all__ = ["Watch"]

LOG = logging.getLogger("wsgigate.store")


class Watch:
    """Lets callers ask a server, or fail at once while it rests; see :class:`Outage`.

    One log record tells that it rests, one that it answers again.

    :param shown: What the server is called, without secrets.
    :param clock: Seconds of a clock that never steps back.
    :param chance: Gives numbers in [0, 1).
    """

    def __init__(
        self,
        shown: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shown = shown
        self._clock = clock
        self._chance = chance
        self._outage = Outage()
        self._reason = ""
        self._kind: type[StoreError] = StoreError
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Return when the server may be asked.

        :raises StoreError: It is left alone for now.
        """
        if not self._outage.failures:
            return
        with self._lock:
            now = self._clock()
            if self._outage.admit(now):
                return
            left = self._outage.until - now
        raise self._kind(f"{self._reason}; it is asked again in {left:.1f} s")

    def failed(self, reason: str, *, lasting: bool = False) -> StoreError:
        """Take note of why a call failed; return the error for its caller.

        :param lasting: Whether waiting does not help.
        """
        with self._lock:
            self._reason = f"the store {self._shown} fails: {reason}"
            self._kind = MisconfiguredStore if lasting else StoreError
            told, kind = self._reason, self._kind
            began = self._outage.failed(self._clock(), self._chance())
        if began:
            LOG.error("%s; until it answers again, nobody waits for it", told)
        return kind(told)

    def answered(self) -> None:
        """Take note that the server answered."""
        if not self._outage.failures:
            return
        with self._lock:
            lasted = self._clock() - self._outage.since
            ended = self._outage.succeeded()
        if ended:
            LOG.warning("the store %s answers again after %.1f s", self._shown, lasted)
