"""What an Eureka client has to be told that has fetched everything within the last minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from wsgigate.discovery.registry_changes import Action, Name, Noted, is_same
from wsgigate.rules.registry import Registered

__all__ = ["Action", "Changed", "delta"]

Changed: TypeAlias = tuple[Action, Registered]


def delta(
    entries: Iterable[Registered],
    noted: Noted,
    removed: Callable[[list[Name]], list[Registered | None]],
) -> list[Changed]:
    """Return the changes, one for each instance.

    An instance that was removed and has registered again as it was is ADDED: the client either
    missed its removal, and has it, or adds it. Where changes may be missing from the log, all
    other instances are ADDED as well. A client that has them already ignores that, or replaces
    them by what they are.

    :param entries: All instances, at least as new as *noted*.
    :param noted: The changes that were written down.
    :param removed: Returns instances as they were when they were removed.
    """
    there = {(entry.service, entry.instance_id): entry for entry in entries}
    names = list(noted.actions)
    gone = [name for name in names if Action.DELETED in noted.actions[name]]
    were = dict(zip(gone, removed(gone), strict=True))
    changed: list[Changed] = []
    for name in names:
        entry, was = there.get(name), were.get(name)
        if entry is None:
            if was is not None:
                changed.append((Action.DELETED, was))
        elif Action.MODIFIED in noted.actions[name] or (
            was is not None and not is_same(was, entry)
        ):
            changed.append((Action.MODIFIED, entry))
        else:
            changed.append((Action.ADDED, entry))
    if not noted.complete:
        changed += [(Action.ADDED, there[name]) for name in there if name not in noted.actions]
    return changed
