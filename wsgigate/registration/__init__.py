"""A service says at a registry that it is there, for as long as it is."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

from wsgigate.coordination.leader import LeaderLease
from wsgigate.registration.connect import connector
from wsgigate.registration.entry import Entry
from wsgigate.registration.heartbeat import Keeper
from wsgigate.registration.process import DeferredSignals, holds
from wsgigate.rules.arguments import checked
from wsgigate.rules.registration import Phase, Wanted
from wsgigate.store import StoreError
from wsgigate.store.open import open_store

__all__ = ["AT_MOST", "Registration"]


LOG = logging.getLogger("wsgigate.registration")

LEASE = 6.0
"""Seconds after which another worker takes over from one that was killed."""

AT_MOST = 4.0
"""Seconds that a process which ends waits for its registries."""


@checked
class Registration:
    """Keep this service registered while it serves: ``Registration("users", port=3001).start()``.

    That line is for the module that has the app, and every process that loads it may run it.
    Nothing happens until the process has the socket that listens at *port*: a shell, a management
    command or a task queue with the same module registers nothing. Of several workers of a machine
    one speaks for all, in one thread; when it dies another takes over. No request and no start
    waits for a registry, and no failure of one is an error of the service: it is logged as
    ``wsgigate.registration``, and tried again.

    On SIGTERM a server of one process is marked ``DRAINING`` and goes on to serve for *drain*
    seconds, for gateways to take note; then whoever handled the signal before gets it. A worker
    lets go of its service when its master no longer has the socket, as when gunicorn ends; when
    only the worker ends, the others go on. At exit it is deregistered.

    :param service: The name of the service.
    :param port: Where others reach it.
    :param host: The name or address under which they do; by default the address by which this
        machine reaches the registry.
    :param registry: The URL of the registry, or of several that are asked in turn;
        ``$REGISTRY_URL``, with commas between them, or else ``http://127.0.0.1:3004``.
    :param token: What allows to register; ``$REGISTRY_TOKEN`` unless given. Never logged.
    :param ca: A file or folder of the authorities that vouch for the registry, for ``https``; the
        usual ones unless given.
    :param instance_id: Tells it from its siblings; made of host and port unless given.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to its siblings.
    :param version: Which release of the service it is.
    :param zone: Where it runs.
    :param tags: Words to find it by.
    :param metadata: What else is to be known of it, as JSON can say it.
    :param health_check_path: Where it answers whether it is well.
    :param listens: The port at which this process listens, if others reach it by another one; 0
        where it listens at none, such as behind a Unix socket: then every process that runs this
        line takes part.
    :param drain: Seconds to go on after SIGTERM; 0 for none.
    :param store: The URL of the store by which the workers of this machine agree on who speaks.
        One that fails costs only that: each worker then speaks for itself.
    :raises ValueError: An argument can not be right; says which.
    """

    def __init__(
        self,
        service: str,
        *,
        port: int,
        host: str | None = None,
        registry: str | Sequence[str] | None = None,
        token: str | None = None,
        ca: str | None = None,
        instance_id: str | None = None,
        scheme: str = "http",
        weight: int = 1,
        version: str | None = None,
        zone: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        health_check_path: str | None = None,
        listens: int | None = None,
        drain: float = 2.0,
        store: str = "lmdb:",
    ) -> None:
        if isinstance(tags, str):
            raise ValueError(f"tags are several words, got the text {tags!r}")
        self.entry = Entry(
            service=service,
            port=port,
            host=host,
            instance_id=instance_id,
            scheme=scheme,
            weight=weight,
            version=version,
            zone=zone,
            tags=tuple(tags),
            metadata=dict(metadata or {}),
            health_check_path=health_check_path,
        )
        if not 0 <= drain <= 300:
            raise ValueError(f"drain is 0 to 300 seconds, got {drain!r}")
        self.connect = connector(self.entry, registry, token, ca)
        self._listens = port if listens is None else listens
        self._drain = drain
        # with the machine in it, since several may have the same home
        machine = os.uname().nodename[:64]
        key = f"registration/{service}/{instance_id or port}/{machine}"
        self._lead = OneOfMachine(store, key)
        self._keeper: Keeper | None = None
        self._signals = DeferredSignals(self._asked)
        self._leaves = True
        self._parent = 0  # whoever had the socket as well when we began
        self._pid = 0

    @property
    def phase(self) -> Phase:
        """How the service stands, in a process that speaks for it."""
        return self._keeper.standing.phase if self._keeper else Phase.REGISTERING

    def start(self, *, leaves: bool = True) -> Self:
        """Begin, in the background; a second call in the same process changes nothing.

        :param leaves: Whether the service may be gone when this process is. Not so for workers
            whose master says when; they leave it to others as soon as they are told to end.
        """
        if self._pid == os.getpid() and self._keeper is not None:
            return self
        self._pid = os.getpid()
        self._leaves = leaves
        self._keeper = Keeper(self.connect, ready=self._ready, lead=self._lead)
        self._signals.install(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        atexit.register(self._at_exit if leaves else self.release)
        self._keeper.start()
        return self

    def stop(self, timeout: float = AT_MOST) -> None:
        """Deregister, and end what :meth:`start` began.

        :param timeout: Seconds to wait for the registry at most.
        """
        self._end(leave=True, timeout=timeout)

    def release(self) -> None:
        """End what :meth:`start` began, and leave the service registered: others speak for it."""
        self._end(leave=False, timeout=1.0)

    def _end(self, *, leave: bool, timeout: float) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None and self._pid == os.getpid():
            keeper.end(leave=leave, timeout=timeout)

    def _ready(self) -> bool:
        if not self._listens:
            return True
        if not holds(self._listens):
            return False
        self._parent = os.getppid() if holds(self._listens, os.getppid()) else 0
        return True

    def _stays(self) -> bool:
        """Return whether the service stays although this process ends: its master listens on."""
        return (
            self._parent != 0
            and self._parent == os.getppid()
            and holds(self._listens, self._parent)
        )

    def _at_exit(self) -> None:
        self._end(leave=not self._stays(), timeout=AT_MOST)

    def _asked(self, number: int) -> bool:
        """Take note, in a signal handler, that this process ends; return whether not just yet."""
        keeper = self._keeper
        if keeper is None:
            return False
        if not self._leaves:
            keeper.retire()
            return False
        if not keeper.begun:
            return False
        if self._parent:
            keeper.call(partial(self._drain_unless_it_stays, keeper))
            return False
        # also with a registration under way: it may be there before the answer is here
        if number != signal.SIGTERM or not self._drain:
            return False
        keeper.call(partial(self._drain_and_pass_on, keeper))
        return True

    def _drain_unless_it_stays(self, keeper: Keeper) -> None:
        if not self._stays():
            keeper.want(Wanted.DRAINING)

    def _drain_and_pass_on(self, keeper: Keeper) -> None:
        keeper.want(Wanted.DRAINING)
        threading.Thread(
            target=self._pass_on, args=(keeper,), name="wsgigate-drain", daemon=True
        ).start()

    def _pass_on(self, keeper: Keeper) -> None:
        keeper.settled(AT_MOST)
        if keeper.drains:
            time.sleep(self._drain)
        if self._signals.ends(signal.SIGTERM):  # nothing of ours would run after it
            keeper.end(leave=True, timeout=AT_MOST)
        self._signals.pass_on(signal.SIGTERM)


class OneOfMachine:
    """Which of the processes that share a store speaks for an instance: the one with the lease.

    :param url: The store's.
    :param key: What the lease is called there.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._lease: LeaderLease | None = None
        self._complained = False

    def take(self) -> bool:
        """Return whether this process has the lease; if nobody can know, it speaks as well."""
        try:
            if self._lease is None:
                self._lease = LeaderLease(open_store(self._url), self._key, ttl=LEASE)
            return self._lease.take()
        except (StoreError, ValueError) as error:
            if not self._complained:
                self._complained = True
                LOG.warning(
                    "each worker sends heartbeats of its own, for want of a store: %s", error
                )
            return True

    def release(self) -> None:
        """Let go of the lease, so that another has it at once."""
        try:
            if self._lease is not None:
                self._lease.release()
        except StoreError:
            pass  # it runs out
