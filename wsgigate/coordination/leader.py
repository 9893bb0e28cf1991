"""Leader leases: at most one worker at a time holds a name in the store.

Theory of operation
-------------------

A lease is a value in the store, written by compare-and-swap, that expires after ``ttl`` seconds.
The holder renews it before that; any worker takes it once it is absent. Rules:

1. The store's clock alone decides about expiry, so clocks of machines need not agree.
2. **Holding a lease is a belief that may be out of date.** A process that was suspended for longer
   than ``ttl`` (a paused virtual machine, swapping) resumes with the belief that it is the leader,
   while another has taken the lease. So what the leader alone may write is guarded twice: by
   :meth:`LeaderLease.held` just before, and by a swap against the value read at the start.
3. The owner's name is the process id and a random token, made anew after a fork: a child must not
   renew or release its parent's lease, and a reused process id must not look like its predecessor.
4. While the store fails there is no leader, and no worker may act as one. Logging is the exception:
   every worker logs, as a record written twice is better than none.

A write by the leader without the second guard, or an owner inherited over a fork, would break them:
two workers would act at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading

from wsgigate.runtime import fork
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.store import Store, StoreError
from wsgigate.telemetry.metrics import Counter

__all__ = ["LeaderLease", "LeaderThread", "LogLeader"]


CHANGES = Counter(
    "wsgigate_leader_changes",
    "How often a worker began to do a task for all workers, such as health checks.",
    ("task",),
)


class LeaderLease:
    """A name that at most one process holds at a time; see the rules above.

    :param store: The store shared by the workers.
    :param key: Key of the lease in the store.
    :param ttl: Seconds after which a holder that does not renew the lease loses it.
    """

    def __init__(self, store: Store, key: str, *, ttl: float = 5.0) -> None:
        self.key = key
        self.ttl = ttl
        self._store = store
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Take another name than the parent's, whose lease this process does not hold."""
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}".encode()

    @property
    def owner(self) -> bytes:
        """The name under which this process holds the lease; a forked child has another."""
        fork.notice_fork()  # two processes with one name would both be the leader
        return self._owner

    def acquire(self) -> bool:
        """Renew the lease, or acquire it if it is free; return whether this process holds it.

        :raises StoreError: The store failed; the holder is unknown.
        """
        me = self.owner
        swap = self._store.swap
        return swap(self.key, me, me, self.ttl) or swap(self.key, None, me, self.ttl)

    def held(self) -> tuple[bool, float]:
        """Return whether this process holds the lease right now, and the store's time.

        :raises StoreError: The store failed; the holder is unknown.
        """
        holder, now = self._store.get(self.key)
        return holder == self.owner, now

    def release(self) -> None:
        """Release the lease if this process holds it, so that another can acquire it at once.

        If the store fails, the lease expires after ``ttl``.
        """
        try:
            self._store.swap(self.key, self.owner, None, self.ttl)
        except StoreError:
            pass


class LeaderThread:
    """A thread in every worker, of which one leads: it does what must be done once for all.

    A subclass implements :meth:`round`, which the thread calls again and again, and
    :meth:`begin_anew`. The lease is released when the thread stops.

    :param name: The name of the thread.
    :param lease: The lease of the leader.
    :param task: What the leader does, for the log: "checks the health of instances". Default: a
        change of the leader is not logged.
    :param log: The logger for it.
    :ivar leading: Whether this worker leads, as far as it knows: see the rules above.
    """

    def __init__(
        self, name: str, lease: LeaderLease, *, task: str = "", log: logging.Logger | None = None
    ) -> None:
        self._lease = lease
        self._name = name.removeprefix("wsgigate-")
        self._task = task
        self._leader_log = log
        self.begin_anew()
        self._thread = SupervisedThread(name, self._run, self.begin_anew)

    def begin_anew(self) -> None:
        """Discard the state of an earlier thread, which may be that of the process forked from."""
        self.leading = False
        self._led = False  # when the lease was looked at last
        self._logged = False  # whether the log has it that this worker leads

    def round(self) -> float:
        """Do what is due; return the seconds until the next round. Raises nothing."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread of this process, unless it is running."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the thread of this process and release the lease.

        :param timeout: Seconds to wait for the thread; the lease of a thread that hangs expires.
        """
        self._thread.stop(timeout)

    def _lead(self) -> bool:
        """Renew the lease, or acquire it if it is free; return whether this worker leads.

        :raises StoreError: The store failed: no worker leads.
        """
        try:
            leads = self.leading = self._lease.acquire()
        except StoreError:
            self.leading = False
            raise
        if leads and not self._led:
            CHANGES.labels(self._name).add()
        self._led = leads
        if self._leader_log is not None and leads != self._logged:
            self._logged = leads
            does = self._task if leads else f"no longer {self._task}"
            self._leader_log.info("This worker %s for all workers", does)
        return leads

    def _run(self, stopping: threading.Event) -> None:
        try:
            while not stopping.is_set():
                stopping.wait(self.round())
        finally:
            self._lease.release()


LOG_LEASE = 15.0
"""Seconds for which the worker that has logged a change also logs the following ones."""


class LogLeader:
    """Elects one worker of this machine to log a change that every worker observes.

    The first worker that calls :meth:`may_log` takes a lease, and renews it by calling again. So a
    change that several workers observe within some seconds is logged once, and its opposite by the
    same worker, in the right order. While the store fails, every worker logs.

    :param store: The store shared by the workers.
    :param prefix: Prefix of the key in the store; one for each gateway.
    """

    def __init__(self, store: Store, prefix: str = "log/") -> None:
        self._lease = LeaderLease(store, f"{prefix}{socket.gethostname()[:64]}", ttl=LOG_LEASE)
        self._holds = False

    def may_log(self) -> bool:
        """Return whether this worker logs."""
        try:
            self._holds = self._lease.acquire()
            return self._holds
        except StoreError:
            return True

    def stop(self) -> None:
        """Let another worker log at once; a store that was never used is not opened."""
        if self._holds:
            self._holds = False
            self._lease.release()
