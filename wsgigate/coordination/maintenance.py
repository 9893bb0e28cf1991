"""Maintenance mode of the gateway, a service or a route, shared by all workers of a store."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.logs import ChangeLog, FailureLog, one_line
from wsgigate.store import MisconfiguredStore, Store, StoreError, update
from wsgigate.store.open import OpenedStore

__all__ = ["GATEWAY", "MaintenanceSwitch", "Notice", "check_scope", "noticed", "read", "switched"]


GATEWAY = "gateway"
"""The scope that covers all routes."""

LONGEST = 10 * 365 * 86_400.0
"""Maximum duration in seconds; also the time to live of the stored value."""

MOST = 60_000
"""Maximum bytes of all notices together; a value of a store is at most 64 KiB."""

_SCOPE = re.compile(r"gateway|(?:service|route):[^\x00-\x1f\x7f]{1,200}")

_MESSAGE = re.compile(r"[^\x00-\x1f\x7f]{0,300}")


class Notice(NamedTuple):
    """The notice on a scope that is out of service.

    :ivar since: The store's time at which it was taken out of service, in seconds.
    :ivar until: The time at which it returns to service; ``None`` if only on command.
    :ivar message: One sentence for clients; empty for the default.
    """

    since: float
    until: float | None = None
    message: str = ""


def check_scope(scope: str) -> str:
    """Return *scope*: ``gateway``, ``service:NAME`` or ``route:NAME``.

    :raises ValueError: *scope* is none of these.
    """
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise ValueError(f"scope: gateway, service:NAME or route:NAME, not {scope!r}")
    return scope


def read(value: bytes | None) -> dict[str, Notice]:
    """Return the notices in *value* by scope; none if it is malformed."""
    try:
        notices = json.loads(value or b"{}")
        return {
            check_scope(scope): Notice(
                float(since), None if until is None else float(until), str(message)
            )
            for scope, (since, until, message) in notices.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def switched(
    value: bytes | None,
    scope: str,
    now: float,
    *,
    on: bool,
    lasts: float | None = None,
    message: str = "",
) -> bytes | None:
    """Return *value* with *scope* switched; ``None`` if no notice is left.

    Notices that are over are removed. A scope switched on again keeps its *since*.

    :param on: Whether to take the scope out of service, or return it.
    :param lasts: Seconds after which it returns to service; ``None`` for no end.
    :raises ValueError: An argument is invalid; the message names it.
    """
    check_scope(scope)
    if lasts is not None and not 0 < lasts <= LONGEST:
        raise ValueError(f"for: more than 0 seconds and at most ten years, not {lasts!r}")
    if not isinstance(message, str) or not _MESSAGE.fullmatch(message):
        raise ValueError("message: a text of one line, at most 300 characters")
    notices = {key: one for key, one in read(value).items() if _lasting(one, now)}
    if on:
        before = notices.get(scope)
        since = now if before is None else before.since
        notices[scope] = Notice(since, None if lasts is None else now + lasts, message)
    else:
        notices.pop(scope, None)
    if not notices:
        return None
    made = json.dumps(notices, separators=(",", ":")).encode()
    if on and len(made) > MOST:
        raise ValueError(f"scope: all notices together may take {MOST} bytes; remove others first")
    return made


def noticed(notices: Mapping[str, Notice], scopes: Iterable[str], now: float) -> Notice | None:
    """Return the notice of the first of *scopes* that is out of service."""
    for scope in scopes:
        notice = notices.get(scope)
        if notice is not None and _lasting(notice, now):
            return notice
    return None


def _lasting(notice: Notice, now: float) -> bool:
    return notice.until is None or now < notice.until


LOG = logging.getLogger("wsgigate.maintenance")


class _KnownNotices(NamedTuple):
    notices: Mapping[str, Notice]
    read: float
    ahead: float
    """Seconds by which the store's clock is ahead of this process's."""


@checked
class MaintenanceSwitch:
    """The maintenance mode of a gateway, shared by every worker of a store.

    All notices are one value, which a worker reads again at most every *staleness* seconds; a
    request in between costs a look at the clock. While the store fails the last value read applies.

    :param store: The shared store: a store, or the URL of one.
    :param name: Name of the gateway: gateways of the same name share the notices of a store.
    :param staleness: Seconds for which the value is not read again, 0 to 1.
    :param may_log: Returns whether this worker logs the changes, which every worker sees, including
        the end of a notice by time.
    :param clock: Returns monotonic seconds.
    :ivar store_errors: Number of failures of the store.
    :raises ValueError: An argument is invalid; the message names it.
    """

    PREFIX = "maintenance/"

    def __init__(
        self,
        store: Store | str,
        *,
        name: str = "gateway",
        staleness: float = 0.5,
        may_log: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = steady,
    ) -> None:
        if not isinstance(staleness, (int, float)) or not 0 <= staleness <= 1:
            raise ValueError(f"staleness: 0 to 1 second, not {staleness!r}")
        if store is None:
            raise ValueError("store: a store or the URL of one, not None")
        self.store_errors = 0
        self._opened = OpenedStore(store)
        self._key = self.PREFIX + name
        self._staleness = staleness
        self._clock = clock
        self._known: _KnownNotices | None = None
        self._switches = 0
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._may_log = may_log
        self._seen: dict[str, Notice] = {}
        self._changes = ChangeLog(LOG, clock=clock)
        self._trouble = FailureLog(
            LOG, "Maintenance notices can be read again, after %.0f s", clock=clock
        )

    def on(self, scope: str, *, lasts: float | None = None, message: str = "") -> None:
        """Take *scope* out of service.

        :param scope: ``gateway``, ``service:NAME`` or ``route:NAME``.
        :param lasts: Seconds after which it returns to service; ``None``: only by :meth:`off`.
        :param message: One sentence for clients.
        :raises ValueError: An argument is invalid; the message names it.
        :raises StoreError: The store failed; the scope may be out of service or not.
        """
        self._switch(scope, True, lasts, message)

    def off(self, scope: str) -> None:
        """Return *scope* to service; does nothing if it is in service.

        :raises ValueError: *scope* is malformed.
        :raises StoreError: The store failed; the scope may be in service or not.
        """
        self._switch(scope, False, None, "")

    def status(self) -> dict[str, Notice]:
        """Return the notices on all scopes that are out of service now.

        :raises StoreError: The store failed.
        """
        value, now = self._opened.get(self._key)
        notices = read(value)
        return {scope: one for scope, one in notices.items() if noticed(notices, [scope], now)}

    def notice(self, scopes: Iterable[str]) -> tuple[Notice, float] | None:
        """Return the notice of the first of *scopes* that is out of service.

        :returns: The notice and the seconds until it ends, 0 if it has no end. ``None`` if all
            scopes are in service.
        :raises MisconfiguredStore: The store has not worked so far, and cannot be used until its
            configuration changes.
        """
        now = self._clock()
        known = self._known
        if known is None or now - known.read >= self._staleness:
            switches = self._switches
            known = self._read(known, now)
            with self._lock:
                if switches == self._switches:  # else it may be what was there before a switch
                    self._known = known
        if not known.notices:
            return None
        there = now + known.ahead
        found = noticed(known.notices, scopes, there)
        if found is None:
            return None
        return found, 0.0 if found.until is None else found.until - there

    def known(self) -> dict[str, Notice]:
        """Return the notices known to this worker, also while the store fails."""
        self.look()
        known = self._known
        if known is None:
            return {}
        now = self._clock() + known.ahead
        return {s: one for s, one in known.notices.items() if noticed(known.notices, [s], now)}

    def look(self) -> None:
        """Read the notices if that is due, and log changes and errors of the store.

        For a worker without requests; with requests :meth:`notice` does it.
        """
        try:
            self.notice(())
        except MisconfiguredStore as error:
            self._trouble.failed("%s", error)

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._opened.close()

    def _read(self, known: _KnownNotices | None, now: float) -> _KnownNotices:
        try:
            value, there = self._opened.get(self._key)
        except StoreError as error:
            self._opened.check_outage(error, "Maintenance notices cannot be read")
            self.store_errors += 1
            self._trouble.failed("Maintenance notices cannot be read: %s", error)
            return _KnownNotices({}, now, 0.0) if known is None else known._replace(read=now)
        self._trouble.ended()
        notices = read(value)
        if notices or self._seen:
            self._log_changes(notices, there)
        return _KnownNotices(notices, now, there - now)

    def _log_changes(self, notices: Mapping[str, Notice], now: float) -> None:
        """Log the scopes that went out of service, or returned to it, by *now*."""
        active = {scope: one for scope, one in notices.items() if noticed(notices, [scope], now)}
        before, self._seen = self._seen, active
        if active == before or not self._may_log():
            return
        for scope in active.keys() - before.keys():
            until, message = active[scope].until, active[scope].message
            self._changes.log(
                logging.WARNING,
                scope,
                "%s is out of service for maintenance%s%s",
                one_line(scope),
                "" if until is None else f" for {max(0.0, until - now):.0f} s",
                f": {one_line(message)}" if message else "",
            )
        for scope in before.keys() - active.keys():
            self._changes.log(logging.WARNING, scope, "%s is back in service", one_line(scope))

    def _switch(self, scope: str, on: bool, lasts: float | None, message: str) -> None:
        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            return switched(old, scope, now, on=on, lasts=lasts, message=message), LONGEST, None

        switched(None, scope, 0.0, on=on, lasts=lasts, message=message)  # checks them
        update(self._opened.open(), self._key, change)
        with self._lock:
            self._switches += 1
            self._known = None  # applies in this worker at once
