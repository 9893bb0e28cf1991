"""A lease in the store: one of all workers has it, until it lets go or falls silent."""

from __future__ import annotations

import os
import secrets
import socket

from wsgigate.store import Store, StoreError

__all__ = ["LeaderLease", "LogLeader"]


class LeaderLease:
    """A name that at most one process holds at a time.

    Holding it is a belief that may be out of date: a process that was stopped for longer than the
    lease lives wakes up believing. What the holder alone may write is therefore guarded twice: by
    :meth:`held` just before, and by a swap against the value it knew when it began.

    :param store: Where the workers meet.
    :param key: The name.
    :param ttl: Seconds until a holder that does not renew it has lost it.
    """

    def __init__(self, store: Store, key: str, *, ttl: float = 5.0) -> None:
        self.key = key
        self.ttl = ttl
        self._store = store
        self._pid = 0
        self._owner = b""

    @property
    def owner(self) -> bytes:
        """How this process signs; a forked one signs otherwise than its parent."""
        if self._pid != os.getpid():
            self._owner = f"{os.getpid()}-{secrets.token_hex(8)}".encode()
            self._pid = os.getpid()
        return self._owner

    def take(self) -> bool:
        """Renew the lease, or take it when nobody holds it; return whether it is ours.

        :raises StoreError: The store failed, and nothing is known.
        """
        me = self.owner
        swap = self._store.swap
        return swap(self.key, me, me, self.ttl) or swap(self.key, None, me, self.ttl)

    def held(self) -> tuple[bool, float]:
        """Return whether the lease is ours right now, and the store's time.

        :raises StoreError: The store failed, and nothing is known.
        """
        holder, now = self._store.get(self.key)
        return holder == self.owner, now

    def release(self) -> None:
        """Let go of the lease if it is ours, so that another takes it without waiting.

        :raises StoreError: The store failed; the lease ends by itself.
        """
        self._store.swap(self.key, self.owner, None, self.ttl)


# Which worker of a machine logs what all of them see.

LOG_LEASE = 15.0
"""Seconds for which the worker that has logged something logs what follows, too."""


class LogLeader:
    """Chooses one worker of this machine to log a change that every worker sees for itself.

    The worker that asks first holds a lease in the store, and renews it by asking again. So a
    change that several workers see within some seconds is logged once, and its opposite by the
    same worker, in the right order. While the store fails, each worker logs for itself: twice is
    better than never.

    :param store: Where the workers meet.
    :param prefix: What its key in the store begins with; one for each gateway.
    """

    def __init__(self, store: Store, prefix: str = "log/") -> None:
        self._lease = LeaderLease(store, f"{prefix}{socket.gethostname()[:64]}", ttl=LOG_LEASE)
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
