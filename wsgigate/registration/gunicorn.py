"""Service registration under gunicorn.

Workers are replaced while the service continues: one of them sends the heartbeats, and the master
deregisters the service, as only the master sees when it ends. The master defers SIGTERM until
gateways have had time to notice the status DRAINING, and only then lets gunicorn close the socket.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from wsgigate.registration import AT_MOST, Registration
from wsgigate.registration.heartbeat import Heartbeat
from wsgigate.rules.registration import Phase, RegistrationState, Wanted

__all__ = ["registered"]


log = logging.getLogger("gunicorn.error")

_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104

_Hook = Callable[..., Any]


def registered(
    service: str,
    *,
    drain: float = 2.0,
    post_worker_init: _Hook | None = None,
    when_ready: _Hook | None = None,
    on_reload: _Hook | None = None,
    on_exit: _Hook | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return gunicorn's settings for a service that registers itself.

    For ``gunicorn.conf.py``: ``globals().update(registered("users"))``. Port, host and scheme
    default to those of gunicorn's ``bind`` and ``certfile``. Invalid settings are logged, and the
    service starts without registration.

    :param service: The name of the service.
    :param drain: Seconds to continue to serve after SIGTERM, so that gateways stop sending
        requests; 0 for none.
    :param post_worker_init: Your own hook, which is called as well; so are *when_ready*,
        *on_reload* and *on_exit*.
    :param options: Other arguments of :class:`~wsgigate.registration.Registration`.
    """
    given = {**options, "drain": drain}

    def started(worker: Any) -> None:
        if post_worker_init is not None:
            post_worker_init(worker)
        registration = _registration(service, worker.cfg, given)
        if registration is not None:
            _log_as_gunicorn()
            registration.start(leaves=False)

    def attached(hook: _Hook | None) -> Callable[[Any], None]:
        def attach(server: Any) -> None:
            if hook is not None:
                hook(server)
            _log_as_gunicorn()
            registration = _registration(service, server.cfg, given)
            # the master's loop looks up this name for each SIGTERM
            server.handle_term = _Shutdown(server, registration, drain).handle_term

        return attach

    def exited(server: Any) -> None:
        shutdown = getattr(server.handle_term, "__self__", None)
        if isinstance(shutdown, _Shutdown):
            shutdown.deregister()
        if on_exit is not None:
            on_exit(server)

    return {
        "post_worker_init": started,
        "when_ready": attached(when_ready),
        "on_reload": attached(on_reload),
        "on_exit": exited,
    }


def _registration(service: str, cfg: Any, given: dict[str, Any]) -> Registration | None:
    """Return the registration for gunicorn's *cfg*; ``None`` if it is invalid."""
    addresses = [address for address in cfg.address if isinstance(address, tuple)]
    host, port = addresses[0][:2] if addresses else ("", 0)
    own = {
        "port": port,
        "host": None if host in _EVERYWHERE else host,
        "scheme": "https" if cfg.is_ssl else "http",
        "listens": 0,  # the worker has the socket before it has the app
    }
    try:
        return Registration(service, **(own | given))
    except (ValueError, TypeError) as error:
        log.error("Registration not started: %s", error)
        return None


def _log_as_gunicorn() -> None:
    own = logging.getLogger("wsgigate")
    if not own.handlers and not logging.getLogger().handlers:
        own.handlers = log.handlers
        own.setLevel(log.level)
        own.propagate = False


class _Shutdown:
    """The shutdown of a service, in its master process."""

    def __init__(self, server: Any, registration: Registration | None, drain: float) -> None:
        self._server = server
        self._registration = registration
        self._drain = drain
        self._heartbeat: Heartbeat | None = None
        self._original: Callable[[], None] = type(server).handle_term.__get__(server)

    def handle_term(self) -> None:
        """Defer SIGTERM until the service has drained; a second one takes effect at once."""
        if self._heartbeat is not None or self._other_master_serves() or not self._drain:
            self._original()
            return
        self._heartbeat = self._begin(Wanted.DRAINING)
        log.info("Draining for %s s", self._drain)
        threading.Thread(target=self._pass_on, name="wsgigate-drain", daemon=True).start()

    def deregister(self) -> None:
        """Deregister the service, after all workers have ended."""
        if self._other_master_serves():
            return
        heartbeat = self._heartbeat or self._begin(Wanted.GONE)
        heartbeat.end(leave=True, timeout=AT_MOST)

    def _begin(self, wanted: Wanted) -> Heartbeat:
        """Start to send the status of the service; its workers send heartbeats only."""
        assert self._registration is not None  # noqa: S101
        heartbeat = Heartbeat(
            self._registration.connect,
            wanted=wanted,
            standing=RegistrationState(Phase.REGISTERED, reported=Wanted.UP, sent=True),
        )
        heartbeat.start()
        return heartbeat

    def _pass_on(self) -> None:
        if (
            self._heartbeat is not None
            and self._heartbeat.settled(AT_MOST)
            and self._heartbeat.drains
        ):
            time.sleep(self._drain)
        os.kill(self._server.pid, signal.SIGTERM)

    def _other_master_serves(self) -> bool:
        """Return whether another master serves the same socket, or there is no registration."""
        # after SIGUSR2 the old master has the new one's pid, and the new master the old one's
        return bool(
            self._registration is None or self._server.reexec_pid or self._server.master_pid
        )
