"""What this process holds and must keep renewing: one thread for all of it, while there is any."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakSet

from wsgigate import process

__all__ = ["Leases"]


_log = logging.getLogger("wsgigate.leases")


class Leases:
    """The leases that this process holds for one purpose, renewed for as long as they are held.

    A process that was forked holds none of those of its parent.

    :param renew: ``renew(place, leases)`` keeps some that are in one place. Called in a thread.
    :param every: How many seconds are between two renewals; a lease is held for half of that, at
        least, before it is renewed.
    :param clock: Tells seconds; it never steps back.
    """

    def __init__(
        self,
        renew: Callable[[str, list[bytes]], object],
        every: float,
        clock: Callable[[], float],
    ) -> None:
        self._renew = renew
        self._every = every
        self._clock = clock
        self._held: dict[bytes, tuple[str, float]] = {}
        self._renewed = clock()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, lease: bytes, place: str) -> None:
        """Have *lease*, which is in *place*, renewed from now on."""
        self._held[lease] = (place, self._clock())
        if _renewer.thread is None or self not in _renewer.all:
            _renewer.start(self)

    def drop(self, lease: bytes) -> str | None:
        """Renew *lease* no more; return where it is, or None when it was dropped already.

        Takes no lock: it may run in the middle of anything, as part of a garbage collection.
        """
        held = self._held.pop(lease, None)
        return None if held is None else held[0]

    def stop(self) -> None:
        """Renew nothing until something is held again."""
        _renewer.forget(self)

    def renew(self) -> float:
        """Renew what is due; return in how many seconds to come back."""
        now = self._clock()
        wait = self._renewed + self._every - now
        if wait > 0:
            return wait
        self._renewed = now
        places: dict[str, list[bytes]] = {}
        for lease, (place, since) in list(self._held.items()):
            if since <= now - self._every / 2:
                places.setdefault(place, []).append(lease)
        for place, leases in places.items():
            try:
                self._renew(place, leases)
            except Exception:  # whatever it is, the other leases are to be renewed
                _log.exception("leases could not be renewed")
        return self._every

    def forget_all(self) -> None:
        """Hold nothing any more."""
        self._held.clear()


class _Renewer:
    """The thread of this process. It ends when nothing is held, and starts with the next lease."""

    def __init__(self) -> None:
        self.all: WeakSet[Leases] = WeakSet()
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def start(self, leases: Leases) -> None:
        with self._lock:
            self.all.add(leases)
            self._wake.set()  # it may have to come back sooner
            if self.thread is None:
                thread = threading.Thread(target=self._run, name="leases", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread is to be had: the next lease tries again
                self.thread = thread

    def forget(self, leases: Leases) -> None:
        with self._lock:
            self.all.discard(leases)

    def after_fork(self) -> None:
        for leases in list(self.all):
            leases.forget_all()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self.thread = None

    def _run(self) -> None:
        wake = self._wake
        while True:
            wake.clear()
            with self._lock:
                every = list(self.all)
            waits = [leases.renew() for leases in every]
            del every
            wake.wait(min(waits, default=0.0))
            if not self._needed():
                return

    def _needed(self) -> bool:
        """Return whether anything is held; if not, the next lease finds no thread."""
        with self._lock:
            this, self.thread = self.thread, None
            # in this order: who holds one first and looks for the thread then is not missed
            if any(len(leases) for leases in self.all):
                self.thread = this
            return self.thread is not None


_renewer = _Renewer()
process.renew_at_fork(_renewer)
