"""What has changed of late, so that a client that knows the rest need not be told all again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from enum import StrEnum
from operator import attrgetter
from typing import TypeAlias

from wsgigate.rules.registry import Registered

__all__ = ["Action", "Changed", "History"]


class Action(StrEnum):
    """What became of an instance, in Eureka's words."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


Changed: TypeAlias = tuple[Action, Registered]
_Name: TypeAlias = tuple[str, str]

_lasting = attrgetter(
    *(
        field.name
        for field in fields(Registered)
        if field.name not in ("last_heartbeat", "silent_since")
    )
)
"""Returns what of an entry a heartbeat does not change."""


class History:
    """The changes of the last minutes, seen by looking again and again.

    Every worker keeps its own. One that has not watched for as long as a delta reaches back, as it
    has just started or there was too much to remember, has none to tell, but everything: for a
    client that adds what it is told to what it knows, that is a delta too. What it can not see from
    it, that something is gone, it sees by the hash code that comes along, and asks for all.

    No method is safe to be called by two threads at once.

    :param reach: Seconds that a delta reaches back. Clients ask every 30 seconds.
    :param most: How many changes are remembered.
    """

    def __init__(self, *, reach: float = 180.0, most: int = 4096) -> None:
        self.reach = reach
        self.most = most
        self._since: float | None = None
        self._known: dict[_Name, Registered] = {}
        self._changes: dict[_Name, tuple[float, Action, Registered]] = {}

    def look(self, entries: Iterable[Registered], now: float) -> None:
        """Learn that *entries* are all there are.

        :param now: The time, in seconds that only go forward.
        """
        before, self._known = self._known, {_name(entry): entry for entry in entries}
        if self._since is None:
            self._since = now
            return
        changes = self._changes
        for name, entry in self._known.items():
            old = before.pop(name, None)
            if old is None:
                changes[name] = now, Action.ADDED, entry
            elif old is not entry and _lasting(old) != _lasting(entry):
                changes[name] = now, Action.MODIFIED, entry
        for name, old in before.items():
            changes[name] = now, Action.DELETED, old
        if len(changes) > self.most:
            changes.clear()
            self._since = now

    def delta(self, now: float) -> list[Changed] | None:
        """Return what a client has to be told that was told everything within the reach.

        That is ``None`` where nobody here can know: such a client is to be told everything again.
        """
        changes = self._changes
        for name in [name for name, (when, *_) in changes.items() if now - when > self.reach]:
            del changes[name]
        if self._since is None or now - self._since < self.reach:
            return None
        return [(action, entry) for _, action, entry in changes.values()]


def _name(entry: Registered) -> _Name:
    return entry.service, entry.instance_id
