"""Which worker of a machine logs what all of them see."""

from __future__ import annotations

import socket

from wsgigate.discovery.lease import Lease
from wsgigate.store import Store, StoreError

__all__ = ["Speaker"]

TTL = 15.0
"""Seconds for which the worker that has logged something logs what follows, too."""


class Speaker:
    """Chooses one worker of this machine to log a change that every worker sees for itself.

    The worker that asks first holds a lease in the store, and renews it by asking again. So a
    change that several workers see within some seconds is logged once, and its opposite by the
    same worker, in the right order. While the store fails, each worker logs for itself: twice is
    better than never.

    :param store: Where the workers meet.
    :param prefix: What its key in the store begins with; one for each gateway.
    """

    def __init__(self, store: Store, prefix: str = "log/") -> None:
        self._lease = Lease(store, f"{prefix}{socket.gethostname()[:64]}", ttl=TTL)
        self._holds = False

    def speaks(self) -> bool:
        """Return whether it is this worker that logs."""
        try:
            self._holds = self._lease.take()
            return self._holds
        except StoreError:
            return True

    def stop(self) -> None:
        """Leave it to another worker at once; a store that was not used is left alone."""
        if not self._holds:
            return
        self._holds = False
        try:
            self._lease.release()
        except StoreError:
            pass  # it runs out by itself
