"""Many health checks at a time in one thread, however long each of them takes."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from wsgigate import process
from wsgigate.discovery import Instance
from wsgigate.discovery.asking import Found
from wsgigate.proxy.check import Steps, steps
from wsgigate.proxy.dial import Check, Contexts, Verify
from wsgigate.proxy.names import Names, literal
from wsgigate.rules.health import HealthCheck, Outcome

__all__ = ["Prober", "Manner"]

LOG = logging.getLogger("wsgigate.health")


class _Flight:
    """A check under way.

    :ivar watched: The socket that is watched for it.
    :ivar until: When it has waited long enough for what it waits for.
    """

    __slots__ = ("found", "steps", "until", "watched")

    def __init__(self, steps: Steps, found: Found) -> None:
        self.steps = steps
        self.found = found
        self.until = 0.0
        self.watched: int | None = None


class Manner(NamedTuple):
    """How the instances of a service are connected to.

    :ivar verify: Whether and against which file or folder of authorities TLS is verified.
    :ivar server_name: The name to ask for and verify by TLS; the host's unless given.
    :ivar allowed: Asked about each address just before it is connected to.
    """

    verify: Verify = True
    server_name: str | None = None
    allowed: Check | None = None


_PLAIN = Manner()


class Prober:
    """Ask instances whether they are well, over TCP, HTTP, TLS and Unix sockets.

    A check that hangs costs a socket and no thread. The thread starts with the first check, in a
    forked process with the first check there, and ends with :meth:`stop`.

    :param manners: How instances are connected to, by service.
    :param clock: Seconds of a clock that never steps back.
    :raises ValueError: A file or folder of authorities can not be used.
    """

    def __init__(
        self,
        manners: Mapping[str, Manner] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manners = dict(manners or {})
        self._contexts = Contexts()
        self._clock = clock
        for manner in self._manners.values():
            if isinstance(manner.verify, str):
                try:
                    self._contexts.get(manner.verify, None)
                except OSError as error:
                    told = f"verify names no usable authorities: {manner.verify!r}: {error}"
                    raise ValueError(told) from error
        self._round: _Round | None = None
        process.renew_at_fork(self)

    def ask(
        self,
        service: str,
        instance: Instance,
        check: HealthCheck,
        found: Found,
    ) -> None:
        """Start a check of *instance*; one thread at a time may.

        :param found: Called with the outcome, in the thread that checks, soon after the check's
            timeout at the latest; not at all when :meth:`stop` comes before.
        """
        parts = urlsplit(instance.url)
        host = parts.hostname or ""
        manner = self._manners.get(service, _PLAIN)
        unix = instance.scheme == "http+unix"
        secure = not unix and (check.scheme or instance.scheme) == "https"
        tls = self._contexts.get(manner.verify, None) if secure else None
        name = manner.server_name or host
        if check.host and manner.server_name is None and literal(host, 0) is not None:
            name = urlsplit(f"//{check.host}").hostname or host  # certificates are for names
        name = name.rstrip(".")
        flight = _Flight(steps(instance, check, name, tls, self._clock, manner.allowed), found)
        going = self._round
        if going is None or not going.lives():
            going = _Round(self._clock)
            going.start()
            self._round = going
        going.begin(flight)
        if unix:  # it has no ports
            going.tell(flight, [(socket.AF_UNIX, unquote(parts.netloc))])
            return
        port = check.port or parts.port or (443 if instance.scheme == "https" else 80)
        address = literal(host, port)
        if address is not None:
            going.tell(flight, [address])
        else:
            going.names.look_up(host, port, partial(going.tell, flight))

    def stop(self) -> None:
        """End the thread, and abandon the checks under way."""
        going, self._round = self._round, None
        if going is not None:
            going.stop()

    def after_fork(self) -> None:
        """Close what the parent had open."""
        going, self._round = self._round, None
        if going is not None:
            going.close()


class _Round:
    """The thread of one process, and what belongs to it alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.names = Names()
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._inbox: deque[Callable[[], None]] = deque()
        self._flights: set[_Flight] = set()
        self._timers: list[tuple[float, int, _Flight]] = []
        self._numbers = count()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name="wsgigate-health-prober", daemon=True
        )

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no thread is to be had
            self.close()
            raise

    def lives(self) -> bool:
        """Tell whether the thread still runs."""
        return self._thread.is_alive()

    def begin(self, flight: _Flight) -> None:
        """Have *flight* begun."""
        self._do(lambda: self._begin(flight))

    def tell(self, flight: _Flight, answer: list[tuple[int, object]] | Exception) -> None:
        """Have *flight* go on with the addresses of its instance, or with why there are none."""
        self._do(lambda: self._go_on(flight, answer))

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _do(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._wake()

    def _wake(self) -> None:
        try:
            self._mouth.send(b"\0")
        except OSError:
            pass  # it is awake, or has ended

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        """Close all that is open, once the thread has ended or is another process's."""
        for flight in self._flights:
            try:
                flight.steps.close()
            except ValueError:
                pass  # forked from in the middle of a step, which never ends here
        self._selector.close()
        self._ear.close()
        self._mouth.close()

    def _turn(self) -> None:
        """Wait for something to happen, and see to all that has."""
        timers = self._timers
        timeout = max(0.0, timers[0][0] - self._clock()) if timers else None
        ready = self._selector.select(timeout)
        now = self._clock()  # not later: what comes while this thread is held up still counts
        for key, _ in ready:
            if key.data is not None:
                self._go_on(key.data, None)
            else:
                self._listen()
        while self._inbox:
            self._inbox.popleft()()
        while timers and timers[0][0] <= now:
            until, _, flight = heappop(timers)
            if flight in self._flights and flight.until == until:
                flight.until = 0.0
                self._go_on(flight, TimeoutError("the deadline has passed"))

    def _listen(self) -> None:
        try:
            while self._ear.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _begin(self, flight: _Flight) -> None:
        self._flights.add(flight)
        self._go_on(flight, None)

    def _go_on(self, flight: _Flight, answer: object) -> None:
        """Have *flight* do what it can, and watch what it waits for then."""
        if flight not in self._flights:
            return  # its time was up
        if flight.watched is not None:
            self._selector.unregister(flight.watched)
            flight.watched = None
        try:
            if isinstance(answer, Exception):
                wait = flight.steps.throw(answer)
            else:
                wait = flight.steps.send(answer)
        except StopIteration as end:
            self._end(flight, end.value)
            return
        except Exception as error:
            self._end(flight, error)
            return
        if wait.sock is not None:
            self._selector.register(wait.sock, wait.events, flight)
            flight.watched = wait.sock.fileno()
        if flight.until != wait.until:
            flight.until = wait.until
            heappush(self._timers, (wait.until, next(self._numbers), flight))

    def _end(self, flight: _Flight, outcome: Outcome | Exception) -> None:
        self._flights.discard(flight)
        try:
            flight.found(outcome)
        except Exception:
            LOG.exception("A health result could not be taken")
