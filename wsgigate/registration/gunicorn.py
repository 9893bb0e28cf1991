"""A service under gunicorn that says at a registry that it is there.

Workers come and go, and the service stays: one of them sends the heartbeats, and it is the master
that knows when the service ends. It holds SIGTERM back until gateways have taken note, and only
then lets gunicorn close the socket.
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
from wsgigate.registration.heartbeat import Keeper
from wsgigate.rules.registration import Phase, Standing, Wanted

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

    To be had in ``gunicorn.conf.py``: ``globals().update(registered("users"))``. Port, host and
    scheme are those of gunicorn's ``bind`` and ``certfile`` unless given. What is wrong with them
    is told to the log, and the service starts all the same.

    :param service: The name of the service.
    :param drain: Seconds to go on after SIGTERM, for gateways to take note; 0 for none.
    :param post_worker_init: A hook of your own, called besides; so are *when_ready*, *on_reload*
        and *on_exit*.
    :param options: What else :class:`~wsgigate.registration.Registration` takes.
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
            # looked up by the master's loop for each SIGTERM, by this name
            server.handle_term = _Departure(server, registration, drain).handle_term

        return attach

    def exited(server: Any) -> None:
        departure = getattr(server.handle_term, "__self__", None)
        if isinstance(departure, _Departure):
            departure.leave()
        if on_exit is not None:
            on_exit(server)

    return {
        "post_worker_init": started,
        "when_ready": attached(when_ready),
        "on_reload": attached(on_reload),
        "on_exit": exited,
    }


def _registration(service: str, cfg: Any, given: dict[str, Any]) -> Registration | None:
    """Return the registration of what *cfg* binds, or None when there is nothing to register."""
    places = [place for place in cfg.address if isinstance(place, tuple)]
    host, port = places[0][:2] if places else ("", 0)
    own = {
        "port": port,
        "host": None if host in _EVERYWHERE else host,
        "scheme": "https" if cfg.is_ssl else "http",
        "listens": 0,  # the worker has the socket before it has the app
    }
    try:
        return Registration(service, **(own | given))
    except (ValueError, TypeError) as error:
        log.error("nothing is registered: %s", error)
        return None


def _log_as_gunicorn() -> None:
    own = logging.getLogger("wsgigate")
    if not own.handlers and not logging.getLogger().handlers:
        own.handlers = log.handlers
        own.setLevel(log.level)
        own.propagate = False


class _Departure:
    """The end of a service, as its master sees it coming."""

    def __init__(self, server: Any, registration: Registration | None, drain: float) -> None:
        self._server = server
        self._registration = registration
        self._drain = drain
        self._keeper: Keeper | None = None
        self._original: Callable[[], None] = type(server).handle_term.__get__(server)

    def handle_term(self) -> None:
        """Put SIGTERM off until the service drains; the second one is not."""
        if self._keeper is not None or self._stays() or not self._drain:
            self._original()
            return
        self._keeper = self._begin(Wanted.DRAINING)
        log.info("Draining for %s s", self._drain)
        threading.Thread(target=self._pass_on, name="wsgigate-drain", daemon=True).start()

    def leave(self) -> None:
        """Deregister the service: all workers have ended."""
        if self._stays():
            return
        keeper = self._keeper or self._begin(Wanted.GONE)
        keeper.end(leave=True, timeout=AT_MOST)

    def _begin(self, wanted: Wanted) -> Keeper:
        """Speak for the service; its workers do no more than to repeat that it lives."""
        assert self._registration is not None  # noqa: S101
        keeper = Keeper(
            self._registration.connect,
            wanted=wanted,
            standing=Standing(Phase.REGISTERED, told=Wanted.UP, sent=True),
        )
        keeper.start()
        return keeper

    def _pass_on(self) -> None:
        if self._keeper is not None and self._keeper.settled(AT_MOST) and self._keeper.drains:
            time.sleep(self._drain)
        os.kill(self._server.pid, signal.SIGTERM)

    def _stays(self) -> bool:
        """Return whether another master serves at the same socket, or nothing is registered."""
        # after SIGUSR2 the old master has the pid of the new one, and the new one that of the old
        return bool(
            self._registration is None or self._server.reexec_pid or self._server.master_pid
        )
