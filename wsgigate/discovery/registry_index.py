"""Which instances of which services there are, by name, and how many: the bounds are kept here."""

from __future__ import annotations

from wsgigate.discovery.registry_changes import Action, Changes
from wsgigate.discovery.registry_layout import (
    EMPTY,
    KEPT,
    Keys,
    Service,
    Total,
    join,
    next_version,
    split,
)
from wsgigate.store import Store, update

__all__ = ["Full", "Index"]


class Full(Exception):
    """There is no room for one more; says of what, and how many there may be."""


class Index:
    """The names of services and the ids of instances in the store, with their versions.

    Several processes change it at once, and any of them may be killed between two steps. So whoever
    adds looks again afterwards whether it is there, and so does whoever removes whether it should
    have been: of two that meet, the later one sees the other. An instance is counted by the process
    that adds its id, and no more by the one that removes it.

    :param most_services: How many services there may be.
    :param most_of_one: How many instances one service may have.
    :param most_in_all: How many instances all services together may have.
    :ivar log: Where changes are written down.
    """

    def __init__(
        self, store: Store, keys: Keys, most_services: int, most_of_one: int, most_in_all: int
    ) -> None:
        self.log = Changes(store, keys)
        self._store = store
        self._keys = keys
        self._most_services = most_services
        self._most_of_one = most_of_one
        self._most_in_all = most_in_all

    def names(self) -> tuple[str, ...]:
        """Return the names of the services, sorted."""
        return split(self._store.get(self._keys.names)[0])

    def service(self, name: str) -> Service:
        """Return the version and the ids of the service *name*."""
        return Service.read(self._store.get(self._keys.service(name))[0])

    def reserve(self, name: str, instance_id: str) -> None:
        """Make room for one more instance.

        :raises Full: There is none.
        """
        self._add_name(name)
        try:
            self._count(1)
            try:
                if not self._add_id(name, instance_id):
                    self._count(-1)  # somebody else is about to register the same one
            except Full:
                self._count(-1)
                raise
        except Full:
            self._tidy(name)
            raise

    def publish(
        self, name: str, instance_id: str | None = None, action: Action | None = None
    ) -> None:
        """Make a change known: of one instance that is there, or of the service as a whole.

        :param action: What became of the instance; None when nothing but its silence has changed.
        """
        if instance_id is not None and action is not None:
            self.log.note(action, name, instance_id)

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = Service.read(old)
            adding = instance_id is not None and instance_id not in ids
            if instance_id is not None and adding:
                ids = tuple(sorted((*ids, instance_id)))
            new = Service(next_version(version, now), ids).to_bytes()
            return new, KEPT if ids else EMPTY, adding

        added = update(self._store, self._keys.service(name), change)
        if instance_id is not None:
            self._add_name(name, bounded=False)
        self._count(1 if added else 0, bounded=False)  # the last, as it tells of all the others
        if instance_id is not None and not self._is_there(name, instance_id):
            # removed meanwhile, by a process that saw less of it than is there now
            self.remove(name, instance_id)

    def remove(self, name: str, instance_id: str) -> None:
        """Forget an instance whose entry is gone, and make that known."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = Service.read(old)
            left = tuple(each for each in ids if each != instance_id)
            new = Service(next_version(version, now), left).to_bytes()
            return new, KEPT if left else EMPTY, len(left) < len(ids)

        self.log.note(Action.DELETED, name, instance_id)
        removed = update(self._store, self._keys.service(name), change)
        again = self._is_there(name, instance_id)
        if not again:
            self._tidy(name)
        self._count(-1 if removed else 0)
        if again:
            self.publish(name, instance_id, Action.ADDED)  # it has registered again meanwhile

    def recount(self, before: Total, instances: int) -> None:
        """Correct the number of all instances, if nothing has changed since it was *before*."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            if old is None or Total.read(old) != before or before.instances == instances:
                return old, 0.0, None
            return Total(before.version, instances).to_bytes(), KEPT, None

        update(self._store, self._keys.total, change)

    def total(self) -> Total:
        """Return the version of all services together, and how many instances there are."""
        return Total.read(self._store.get(self._keys.total)[0])

    def _is_there(self, name: str, instance_id: str) -> bool:
        return self._store.get(self._keys.instance(name, instance_id))[0] is not None

    def _add_id(self, name: str, instance_id: str) -> bool:
        most = self._most_of_one

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool | None]:
            version, ids = Service.read(old)
            if instance_id in ids:
                return old, 0.0, False
            if len(ids) >= most:
                return old, 0.0, None
            return Service(version, tuple(sorted((*ids, instance_id)))).to_bytes(), KEPT, True

        added = update(self._store, self._keys.service(name), change)
        if added is None:
            raise Full(f"a service has at most {most} instances")
        return added

    def _add_name(self, name: str, *, bounded: bool = True) -> None:
        most = self._most_services

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            names = split(old)
            if name in names:
                return old, 0.0, True
            if bounded and len(names) >= most:
                return old, 0.0, False
            return join(sorted((*names, name))), KEPT, True

        if not update(self._store, self._keys.names, change):
            raise Full(f"there are at most {most} services")

    def _tidy(self, name: str) -> None:
        """Forget the name of a service that has no instances."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            names = split(old)
            if name not in names:
                return old, 0.0, None
            return join(each for each in names if each != name), KEPT, None

        if not self.service(name).ids:
            update(self._store, self._keys.names, change)
            if self.service(name).ids:
                self._add_name(name, bounded=False)

    def _count(self, more: int, *, bounded: bool = True) -> None:
        """Count *more* instances, and give all services together a new version."""
        most = self._most_in_all if bounded else float("inf")

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, instances = Total.read(old)
            if more > 0 and instances + more > most:
                return old, 0.0, False
            new = Total(next_version(version, now), max(0, instances + more))
            return new.to_bytes(), KEPT, True

        if not update(self._store, self._keys.total, change):
            raise Full(f"there are at most {most} instances in all")
