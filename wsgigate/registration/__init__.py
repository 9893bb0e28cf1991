"""Service registration: keeps a service registered at a registry while it serves.

Theory of operation
===================

``Registration(...).start()`` runs in every process that imports the service's module. These rules
must hold:

1. A process that does not serve registers nothing. Shells, management commands and task queues
   import the same module, so nothing happens until the process itself has the listening socket
   of the port, which is read from ``/proc`` without a connection (:func:`.process.holds`).
2. One process of a machine sends for all workers: the one with a lease in the store
   (:class:`MachineLeader`). Otherwise every worker would send heartbeats, and the first worker that
   exits would deregister a service that the others still offer. If the store fails, each worker
   sends: superfluous heartbeats do no harm, missing ones do.
3. The service never waits for a registry and never fails because of one. All requests run in one
   background thread (:mod:`.heartbeat`), errors are logged and retried, and only :meth:`stop` and
   the exit of the process wait, at most :data:`AT_MOST` seconds.
4. Deregistration belongs to the end of the service, not of a worker. A worker whose master still
   has the socket leaves the instance registered and releases the lease, so that another worker
   continues. The worker finds out from the parent process: it is the master if it has the socket
   as well, and it has ended if the parent's process id is another one.
5. On SIGTERM the order is: status DRAINING, a pause for gateways to notice, the original signal
   handler, deregistration. Without the pause, gateways would still send requests to a closed
   socket. A second SIGTERM is passed on at once.
6. A signal handler may interrupt any code, including code that holds a lock. It therefore only
   puts items on a ``SimpleQueue``, whose ``put`` is reentrant; the thread does the work.
7. A forked child is another process: it does not inherit the thread, the lease or the duty to
   deregister. :meth:`Registration.start` and :meth:`.Heartbeat.end` compare ``fork.pid``. They
   are not renewed at a fork, as gevent's patching renews too, and must not end a registration.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from wsgigate.coordination.leader import LeaderLease
from wsgigate.registration.entry import Entry, check_registry
from wsgigate.registration.heartbeat import Client, Heartbeat
from wsgigate.registration.process import DeferredSignals, holds
from wsgigate.rules.arguments import checked
from wsgigate.rules.registration import Phase, Wanted
from wsgigate.runtime import fork
from wsgigate.store import StoreError
from wsgigate.store.open import open_store

__all__ = ["AT_MOST", "MachineLeader", "Registration", "connector"]


LOG = logging.getLogger("wsgigate.registration")

LEASE = 6.0
"""Seconds after which another worker takes over from one that was killed."""

AT_MOST = 4.0
"""The most seconds that an exiting process waits for its registries."""

DEFAULT_REGISTRY = "http://127.0.0.1:3004"

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@checked
class Registration:
    """Keeps a service registered while it serves: ``Registration("users", port=3001).start()``.

    That line belongs in the module of the app, and every process that imports it may run it.
    Nothing happens until the process has the socket that listens at *port*: a shell, a management
    command or a task queue with the same module registers nothing. One worker of a machine sends
    for all, in one thread; when it dies, another one takes over. No request waits for a registry,
    nor does the start of the service. Failures of a registry are logged as
    ``wsgigate.registration`` and retried.

    On SIGTERM a server with one process is marked ``DRAINING`` and continues to serve for *drain*
    seconds, so that gateways stop sending requests; then the signal is passed on to the previous
    handler. A worker deregisters the service when its master no longer has the socket, as when
    gunicorn stops; when only the worker ends, the others continue. At exit the service is
    deregistered.

    :param service: The name of the service.
    :param port: The port at which others reach the instance.
    :param host: The name or address at which others reach it. Default: the address from which this
        machine reaches the registry.
    :param registry: The URL of the registry, or several for failover. Default: ``$REGISTRY_URL``,
        separated by commas, or else ``http://127.0.0.1:3004``.
    :param token: The token for the registry; never logged. Default: ``$REGISTRY_TOKEN``.
    :param ca: A file or folder of trusted certificate authorities, for ``https``. Default: those of
        ``requests``.
    :param instance_id: The id of the instance. Default: made from host and port.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to the other instances.
    :param version: The release of the service.
    :param zone: The availability zone.
    :param tags: Tags for discovery.
    :param metadata: Any other data, as a JSON object.
    :param health_check_path: The path of its health check.
    :param listens: The port at which this process listens, if it is not *port*; 0 if it listens at
        none, such as behind a Unix socket: then every process that runs this line takes part.
    :param drain: Seconds to continue to serve after SIGTERM; 0 for none.
    :param store: The URL of the store in which the workers of this machine elect a leader. While
        it fails, each worker sends its own heartbeats.
    :raises ValueError: An argument is invalid; the message names it.
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
            raise ValueError(f'tags must be a list such as ["eu", "blue"], got the text {tags!r}')
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
            raise ValueError(f"drain must be 0 to 300 seconds, got {drain!r}")
        self.connect = connector(self.entry, registry, token, ca)
        self._listens = port if listens is None else listens
        self._drain = drain
        # with the machine's name, as several machines may share a home folder
        machine = os.uname().nodename[:64]
        key = f"registration/{service}/{instance_id or port}/{machine}"
        self._leader = MachineLeader(store, key)
        self._heartbeat: Heartbeat | None = None
        self._signals = DeferredSignals(self._on_signal)
        self._leaves = True
        self._parent = 0  # the parent process, if it had the socket as well at the start
        self._pid = 0

    @property
    def phase(self) -> Phase:
        """The state of the registration, in the process that sends for the service."""
        return self._heartbeat.standing.phase if self._heartbeat else Phase.REGISTERING

    def start(self, *, leaves: bool = True) -> Self:
        """Start the background thread; a second call in the same process does nothing.

        :param leaves: Whether this process may deregister the service when it exits. ``False`` for
            workers whose master does; they release the lease at the first signal to exit.
        """
        if self._pid == fork.pid and self._heartbeat is not None:
            return self
        self._pid = fork.pid
        self._leaves = leaves
        self._heartbeat = Heartbeat(self.connect, ready=self._ready, lead=self._leader)
        self._signals.install(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        fork.at_exit(self._at_exit if leaves else self.release)
        self._heartbeat.start()
        return self

    def stop(self, timeout: float = AT_MOST) -> None:
        """Deregister the service, and stop the thread.

        :param timeout: The most seconds to wait for the registry.
        """
        self._stop(leave=True, timeout=timeout)

    def release(self) -> None:
        """Stop the thread, and leave the service registered: another process sends for it."""
        self._stop(leave=False, timeout=1.0)

    def _stop(self, *, leave: bool, timeout: float) -> None:
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.end(leave=leave, timeout=timeout)

    def _ready(self) -> bool:
        if not self._listens:
            return True
        if not holds(self._listens):
            return False
        self._parent = os.getppid() if holds(self._listens, os.getppid()) else 0
        return True

    def _master_serves(self) -> bool:
        """Return whether the service continues without this process: its master has the socket."""
        return (
            self._parent != 0
            and self._parent == os.getppid()
            and holds(self._listens, self._parent)
        )

    def _at_exit(self) -> None:
        self._stop(leave=not self._master_serves(), timeout=AT_MOST)

    def _on_signal(self, number: int) -> bool:
        """Handle a signal to exit, in the signal handler; return whether to defer the signal."""
        heartbeat = self._heartbeat
        if heartbeat is None:
            return False
        if not self._leaves:
            heartbeat.retire()
            return False
        if not heartbeat.begun:
            return False
        if self._parent:
            heartbeat.call(partial(self._drain_unless_master_serves, heartbeat))
            return False
        # also with a registration in flight: it may exist before its response arrives
        if number != signal.SIGTERM or not self._drain:
            return False
        heartbeat.call(partial(self._drain_and_pass_on, heartbeat))
        return True

    def _drain_unless_master_serves(self, heartbeat: Heartbeat) -> None:
        if not self._master_serves():
            heartbeat.want(Wanted.DRAINING)

    def _drain_and_pass_on(self, heartbeat: Heartbeat) -> None:
        heartbeat.want(Wanted.DRAINING)
        threading.Thread(
            target=self._pass_on, args=(heartbeat,), name="wsgigate-drain", daemon=True
        ).start()

    def _pass_on(self, heartbeat: Heartbeat) -> None:
        heartbeat.settled(AT_MOST)
        if heartbeat.drains:
            time.sleep(self._drain)
        if self._signals.ends(signal.SIGTERM):  # the process dies without running atexit
            heartbeat.end(leave=True, timeout=AT_MOST)
        self._signals.pass_on(signal.SIGTERM)


class MachineLeader:
    """Leader election among the processes of a machine, by a lease in a store.

    :param url: The URL of the store.
    :param key: The key of the lease.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._lease: LeaderLease | None = None
        self._warned = False

    def take(self) -> bool:
        """Return whether this process has the lease; ``True`` while the store fails."""
        try:
            if self._lease is None:
                self._lease = LeaderLease(open_store(self._url), self._key, ttl=LEASE)
            return self._lease.acquire()
        except (StoreError, ValueError) as error:
            if not self._warned:
                self._warned = True
                LOG.warning("Store unavailable: each worker sends its own heartbeats: %s", error)
            return True

    def release(self) -> None:
        """Release the lease, so that another process can take it at once."""
        if self._lease is not None:
            self._lease.release()


def connector(
    entry: Entry,
    registry: str | Sequence[str] | None = None,
    token: str | None = None,
    ca: str | None = None,
) -> Callable[[], Client]:
    """Return a function that returns the client for *entry*'s registries.

    Arguments are validated now; environment variables and files when the function is called, as an
    error in them must not stop the service from starting.

    :param registry: The URLs. Default: ``$REGISTRY_URL``.
    :param token: The token for the registries. Default: ``$REGISTRY_TOKEN``.
    :param ca: A file or folder of trusted certificate authorities.
    :raises ValueError: *registry* or *token* is invalid; the returned function raises it as well.
    """
    given = (registry,) if isinstance(registry, str) else registry
    registries = None if given is None else tuple(map(check_registry, given))
    if registries == ():
        raise ValueError("registry is empty: the URL of a registry, or several")
    if token:
        _check_token(token, "token")

    def connect() -> Client:
        # imported in the background thread: the import takes a while and must not delay the start
        from wsgigate.registration.client import RegistryClient

        secret = os.environ.get("REGISTRY_TOKEN", "") if token is None else token
        if secret:
            _check_token(secret, "REGISTRY_TOKEN")
        urls = _from_environment() if registries is None else registries
        return RegistryClient(urls, entry, secret, verify=ca or True)

    return connect


def _from_environment() -> tuple[str, ...]:
    text = os.environ.get("REGISTRY_URL", "") or DEFAULT_REGISTRY
    try:
        urls = tuple(check_registry(url.strip()) for url in text.split(",") if url.strip())
    except ValueError as error:
        raise ValueError(f"REGISTRY_URL: {error}") from None
    if not urls:
        raise ValueError("REGISTRY_URL is empty: the URL of a registry, or several, with commas")
    return urls


def _check_token(token: str, name: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{name} must be 1 to 4096 visible characters without spaces")
