"""API keys that all workers share: where they are kept, and how a worker looks one up.

Theory of operation
-------------------

Keys are kept in the store, or in a file. Both have a *version*: a random mark in the store, which
each change replaces, or the identity of the file's content (its inode, size and time). A worker
reads the version at most every *staleness* seconds, and keeps what it has looked up for as long as
the version stays the same. So a request costs a hash and a lookup in memory, and a key that was
created, rotated or revoked is that in every worker within *staleness*.

Rules that must hold:

1. The version is written after the record, or a worker could keep an old record under the new
   version. It is random, so that no earlier version comes back.
2. The record decides. The entry of a digest in the store only names the record to read, and the
   record must contain the digest.
3. Everything that a client can cause is bounded: junk fails the checksum before anything is looked
   up; a refused key is looked up once per version; an address that sends many different unknown
   keys is not looked up any more for a while; each cache has a size.
4. What fails is refused: a record that cannot be read, a store without an answer.

The times of last use are written in the background, at most once a minute per key and worker. They
have keys of their own in the store: a request never changes a record, so it cannot undo a
revocation that happens at the same time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import struct
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from typing import Annotated, NamedTuple, Protocol
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.api_keys import (
    LONGEST_KEY,
    PREFIX,
    KeyRecord,
    Secret,
    check_prefix,
    digest_of,
    document_of,
    identity_of,
    is_id,
    is_well_formed,
    new_id,
    new_key,
    record_of,
    revoked,
    rotated,
    valid_until,
    why_invalid,
)
from wsgigate.auth.identity import Identity
from wsgigate.auth.throttle import Guesses, GuessRules
from wsgigate.http.wsgi import client_address
from wsgigate.rules.arguments import Pattern, checked
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.files import LARGEST, ReloadedFile, UnreadableFile
from wsgigate.runtime.logs import RepeatLog, one_line
from wsgigate.runtime.threads import BackgroundQueue
from wsgigate.store import Change, Store, StoreError, update
from wsgigate.store.open import Namespaced, OpenedStore

__all__ = [
    "ApiKeys",
    "IssuedKey",
    "KeyRejected",
    "UnknownRecord",
    "UnreadableKeys",
    "read_file",
]

_log = logging.getLogger("wsgigate.api_keys")

LASTING = 10 * 365 * 86_400.0
"""Seconds for which a store keeps a record after its last change."""

KEPT = 90 * 86_400.0
"""Seconds for which a store keeps a revoked or expired record, for lists and the log."""

RECHECK = 30.0
"""Maximum seconds for which a valid key is not looked up again, whatever the version is."""

USED_EVERY = 60.0
"""Seconds between two records of the use of a key by one worker."""

UNKNOWN = GuessRules(most=60, window=60.0)
"""How many different unknown keys an address may send before they are looked up no more."""

_MOST_ADDRESSES = 10_000
_LONGEST_ADDRESS = 64
_USED = struct.Struct(">d")


class KeyRejected(Exception):
    """A key is not valid; the message is the reason, for the log only.

    :ivar wait: Seconds after which to try again, if too many unknown keys came from the address of
        the client; else 0.
    """

    def __init__(self, reason: str, wait: int = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class UnknownRecord(ValueError):
    """There is no key with this id."""


class IssuedKey(NamedTuple):
    """A new key.

    :ivar key: The key itself. It is not kept anywhere, and cannot be shown again.
    """

    key: str
    record: KeyRecord


# Where records are kept.


class _Records(Protocol):
    def version(self) -> object:
        """Return a value that differs after each change of a record.

        :raises StoreError: It cannot be read.
        """

    def find(self, digest: str) -> KeyRecord | None:
        """Return the record that contains *digest*.

        :raises StoreError: It cannot be read.
        """

    def change(self, id_: str, make: Callable[[KeyRecord | None], KeyRecord]) -> KeyRecord:
        """Replace the record *id_* by the result of *make*, atomically; return it.

        :raises StoreError: It cannot be written.
        """

    def all(self) -> list[KeyRecord]:
        """Return the records, by id.

        :raises StoreError: They cannot be read.
        """


class _StoredRecords:
    """Records in a store: one value per record, and one per digest, which names the record."""

    PREFIX = "api-keys/"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._damaged = RepeatLog(_log, logging.ERROR)

    def version(self) -> object:
        return self._store.get(f"{self.PREFIX}version")[0]

    def find(self, digest: str) -> KeyRecord | None:
        named = self._store.get(f"{self.PREFIX}secret/{digest}")[0]
        if named is None:
            return None
        id_ = named.decode("ascii", "replace")
        value = self._store.get(f"{self.PREFIX}record/{id_}")[0]
        return None if value is None else self._read(id_, value)

    def change(self, id_: str, make: Callable[[KeyRecord | None], KeyRecord]) -> KeyRecord:
        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, KeyRecord]:
            made = make(None if old is None else self._read(id_, old))
            value = json.dumps(document_of(made), separators=(",", ":")).encode("ascii")
            return value, _lasting(made, now), made

        made: KeyRecord = update(self._store, f"{self.PREFIX}record/{id_}", change)
        named = id_.encode("ascii")
        for secret in made.secrets:
            keep: Change[None] = lambda old, now: (named, LASTING, None)  # noqa: E731
            update(self._store, f"{self.PREFIX}secret/{secret.sha256}", keep)
        mark = secrets.token_bytes(16)
        renew: Change[None] = lambda old, now: (mark, LASTING, None)  # noqa: E731
        update(self._store, f"{self.PREFIX}version", renew)
        return made

    def all(self) -> list[KeyRecord]:
        prefix = f"{self.PREFIX}record/"
        found = [
            self._read(key.removeprefix(prefix), value) for key, value in self._store.items(prefix)
        ]
        return [record for record in found if record is not None]

    def _read(self, id_: str, value: bytes) -> KeyRecord | None:
        """Return the record in *value*; None, which refuses its key, for a damaged one."""
        try:
            record = record_of(json.loads(value))
            if record.id != id_:
                raise ValueError("id: is that of another record")
        except (ValueError, RecursionError) as error:
            self._damaged.log(
                "The record of API key %s in the store is damaged (%s), so the key is refused; "
                "create another one",
                one_line(id_),
                one_line(str(error)),
            )
            return None
        return record


def _lasting(record: KeyRecord, now: float) -> float:
    """Return for how many seconds a store keeps *record*."""
    if record.revoked is not None:
        return KEPT
    return LASTING if record.expires is None else max(record.expires - now, 0.0) + KEPT


class UnreadableKeys(StoreError):
    """The file of the keys cannot be read or written; the message names it and the cause."""


def read_file(path: str, data: bytes) -> tuple[list[KeyRecord], list[str]]:
    """Return the records in the content of a file, and the errors of entries that are invalid.

    :param path: The name of the file: its suffix is ``.json`` or ``.toml``.
    :raises ValueError: The file has no list of keys; the message says why, without its content.
    """
    try:
        text = data.decode("utf-8")
        document = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be parsed: {error}") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it has no list "keys"; an empty file is {"keys": []}')
    records: dict[str, KeyRecord] = {}
    digests: dict[str, str] = {}
    errors = []
    for index, entry in enumerate(entries):
        named = entry.get("id") if isinstance(entry, dict) else None
        label = f"keys[{index}]" + (f" ({named[:64]})" if isinstance(named, str) else "")
        try:
            record = record_of(entry)
            if record.id in records:
                raise ValueError(f"id: {record.id} is the id of an earlier entry, too")
            for secret in record.secrets:
                other = digests.get(secret.sha256)
                if other is not None:
                    raise ValueError(f"sha256: is the key of {other}, too")
        except ValueError as error:
            errors.append(f"{label}: {error}")
            continue
        records[record.id] = record
        digests |= dict.fromkeys((each.sha256 for each in record.secrets), record.id)
    return list(records.values()), errors


class _Listed(NamedTuple):
    records: Mapping[str, KeyRecord]
    digests: Mapping[str, KeyRecord]


class _FileRecords:
    """Records in a file, by id and by digest; one that cannot be parsed changes nothing."""

    def __init__(self, path: str, clock: Callable[[], float], now: Callable[[], float]) -> None:
        if not path.endswith((".json", ".toml")):
            raise ValueError(f"file: expected the name of a .json or .toml file, not {path!r}")
        self._path = path
        self._file = ReloadedFile(
            path,
            self._parsed,
            what="the file of API keys",
            logger=_log,
            absent=_Listed({}, {}),  # the command that creates the first key makes it
            clock=clock,
            now=now,
        )

    def _parsed(self, data: bytes) -> tuple[_Listed, list[str]]:
        records, errors = read_file(self._path, data)
        digests = {secret.sha256: record for record in records for secret in record.secrets}
        return _Listed({record.id: record for record in records}, digests), errors

    def version(self) -> object:
        try:
            return self._file.look()
        except UnreadableFile as error:
            raise UnreadableKeys(str(error)) from None

    def find(self, digest: str) -> KeyRecord | None:
        found = None if self._file.value is None else self._file.value.digests.get(digest)
        if found is None:
            self.version()  # a key that was just created is valid at once
            found = None if self._file.value is None else self._file.value.digests.get(digest)
        return found

    def all(self) -> list[KeyRecord]:
        self.version()
        records = () if self._file.value is None else self._file.value.records.values()
        return sorted(records, key=lambda record: record.id)

    def change(self, id_: str, make: Callable[[KeyRecord | None], KeyRecord]) -> KeyRecord:
        from wsgigate.store.lmdb_files import alone  # it needs flock(2), which Windows lacks

        if self._path.endswith(".toml"):
            raise ValueError(
                f"file: {self._path} is TOML, which is read but not written, as its comments "
                "would be lost; edit it, or use a .json file"
            )
        path = os.path.realpath(self._path)
        try:
            with alone(os.path.dirname(path)):
                made = self._rewrite(path, id_, make)
        except OSError as error:
            raise UnreadableKeys(
                f"the file {path} cannot be written: {error.strerror or error}"
            ) from error
        self._file.forget()
        return made

    def _rewrite(
        self, path: str, id_: str, make: Callable[[KeyRecord | None], KeyRecord]
    ) -> KeyRecord:
        try:
            with open(path, "rb") as file:
                data = file.read()
                status: os.stat_result | None = os.fstat(file.fileno())
        except FileNotFoundError:
            data, status = b'{"keys": []}', None
        records, errors = read_file(path, data)
        if errors:
            raise ValueError(f"file: {path}: {errors[0]}; correct the entry first")
        by_id = {record.id: record for record in records}
        made = make(by_id.get(id_))
        by_id[id_] = made
        document = {"keys": [document_of(record) for record in by_id.values()]}
        written = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        if len(written) > LARGEST:  # the workers would go on with what they have read before
            raise ValueError(
                f"file: {path} would be larger than {LARGEST >> 20} MiB; remove the entries of "
                "revoked and expired keys, or keep the keys in the store"
            )
        _replace(path, written, status)
        return made


def _replace(path: str, content: bytes, old: os.stat_result | None) -> None:
    """Write *content* to a new file, and rename it to *path*: readers see the old or the new one.

    :param old: The file that is replaced, whose owner and mode the new one gets. Without one it is
        readable for its owner, which is that of the folder if this process may give it away.
    """
    folder = os.path.dirname(path)
    draft = f"{path}.{secrets.token_hex(8)}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            owner = os.stat(folder) if old is None else old
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                try:
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                except PermissionError:
                    pass
            os.fchmod(file.fileno(), 0o600 if old is None else old.st_mode & 0o777)
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # otherwise a power failure may bring a revoked key back
    finally:
        os.close(directory)


# The keys.


class _CachedKey:
    """A valid key that a worker has looked up."""

    __slots__ = ("id", "identity", "until", "used")

    def __init__(self, record: KeyRecord, until: float, used: float) -> None:
        self.id = record.id
        self.identity = identity_of(record)
        self.until = until
        self.used = used


class _CachedKeys:
    """What a worker has looked up under one version."""

    __slots__ = ("keys", "previous", "read", "refused", "since", "version")

    def __init__(self, version: object, now: float, previous: dict[bytes, _CachedKey]) -> None:
        self.version = version
        self.read = now
        self.since = now
        self.keys: dict[bytes, _CachedKey] = {}
        self.previous = previous
        """Keys that were valid before: they are looked up again, also during a flood."""
        self.refused: dict[bytes, str] = {}


@checked
class ApiKeys:
    """The API keys of a gateway, shared by every worker.

    Only SHA-256 digests of keys are kept, so a key is shown once, when it is created or rotated.

    :param store: The shared store: a store, or the URL of one. It keeps the keys, unless there is a
        *file*, and when each was last used.
    :param file: The file that keeps the keys instead, ``.json`` or ``.toml``. It is read again when
        it changes. Keys are created, rotated and revoked in a ``.json`` file only.
    :param prefix: The prefix of new keys. Keys with another prefix, such as an earlier one, stay
        valid.
    :param namespace: Identifies the keys where several share a store; all users of the same
        namespace share them. Default: all users of the store share one set of keys.
    :param staleness: Seconds for which the version of the keys is not read again, 0 to 60; 0 reads
        it each time.
    :param cache_size: Maximum number of valid keys remembered, and of rejected ones.
    :param clock: Returns monotonic seconds.
    :param now: Returns the Unix time in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        *,
        file: str | None = None,
        prefix: Annotated[str, Pattern(PREFIX, 'a word such as "acme"')] = "wg",
        namespace: str | None = None,
        staleness: float = 0.5,
        cache_size: int = 10_000,
        clock: Callable[[], float] = steady,
        now: Callable[[], float] = wall,
    ) -> None:
        if not isinstance(staleness, (int, float)) or not 0 <= staleness <= 60:
            raise ValueError(f"staleness: 0 to 60 seconds, not {staleness!r}")
        if isinstance(cache_size, bool) or not isinstance(cache_size, int) or cache_size < 1:
            raise ValueError(f"cache_size: a number of keys, 1 or more, not {cache_size!r}")
        if store is None and file is None:
            raise ValueError("store: a store, the URL of one, or file is required")
        self.prefix = check_prefix(prefix)
        self._opened = None if store is None else OpenedStore(store, namespace=namespace)
        self._store = None if self._opened is None else Namespaced(self._opened)
        self._records: _Records
        if file is not None:
            self._records = _FileRecords(file, clock, wall)
        elif self._store is not None:
            self._records = _StoredRecords(self._store)
        self._staleness = staleness
        self._size = cache_size
        self._clock = clock
        self._now = now
        self._known: _CachedKeys | None = None
        self._guesses: dict[str, Guesses] = {}
        self._uses = BackgroundQueue(threads=1, queue=1000, name="wsgigate-api-keys")

    # Requests.

    def find(self, key: str, environ: WSGIEnvironment) -> Identity:
        """Return the identity of the callers that use *key*.

        :param key: The key as sent.
        :param environ: The request: its client is throttled if it sends many different unknown
            keys.
        :raises KeyRejected: The key is not valid.
        :raises StoreError: The keys cannot be read, and the cached state is too old.
        """
        # nothing is cached by the key itself: the memory of a worker holds no key for long
        digest = sha256(key.encode("utf-8", "replace")).digest()
        now = self._clock()
        known = self._known
        if known is None or now - known.read >= self._staleness:
            known = self._read(known, now)
        entry = known.keys.get(digest)
        if entry is None:
            entry = self._look_up(known, key, digest, environ, now)
        if self._now() >= entry.until:
            raise KeyRejected(f"key {entry.id} has expired or was replaced")
        if now - entry.used >= USED_EVERY:
            self._record_use(entry, now)
        return entry.identity

    def find_cached(self, key: str) -> Identity | None:
        """Return the identity of a key that this worker has found valid; for an outage.

        It may have been revoked since. None if the worker does not know the key.
        """
        known = self._known
        if known is None or len(key) > LONGEST_KEY:
            return None
        digest = sha256(key.encode("utf-8", "replace")).digest()
        entry = known.keys.get(digest) or known.previous.get(digest)
        return None if entry is None or self._now() >= entry.until else entry.identity

    def check_outage(self, error: StoreError) -> None:
        """Check that *error* of :meth:`find` is an outage, which may pass by itself.

        :raises MisconfiguredStore: The store has not worked so far, and cannot be used until its
            configuration changes.
        """
        if self._opened is not None and not isinstance(error, UnreadableKeys):
            self._opened.check_outage(error, "API keys cannot be read")

    def _read(self, known: _CachedKeys | None, now: float) -> _CachedKeys:
        # Concurrent threads may overwrite each other's result: each is correct for its own moment.
        version = self._records.version()
        if known is None or version != known.version or now - known.since >= RECHECK:
            before = {} if known is None else known.keys or known.previous
            known = self._known = _CachedKeys(version, now, before)
        else:
            known.read = now
        return known

    def _look_up(
        self, known: _CachedKeys, key: str, digest: bytes, environ: WSGIEnvironment, now: float
    ) -> _CachedKey:
        if not is_well_formed(key):
            raise KeyRejected("the key is malformed, or its checksum is wrong")
        reason = known.refused.get(digest)
        if reason is not None:
            raise KeyRejected(reason)
        before = known.previous.get(digest)
        address = client_address(environ)[:_LONGEST_ADDRESS]
        if before is None and self._guesses:
            wait = self._guesses.get(address, Guesses()).wait(now, UNKNOWN)
            if wait > 0:
                raise KeyRejected("too many unknown keys from this address", math.ceil(wait))
        written = digest.hex()
        record = self._records.find(written)
        reason = why_invalid(record, written, self._now())
        if record is None or reason:
            if record is None:
                self._count_unknown(address, digest, now)
            if len(known.refused) >= self._size:
                known.refused.clear()
            known.refused[digest] = reason
            raise KeyRejected(reason)
        used = now - USED_EVERY if before is None else before.used
        entry = _CachedKey(record, valid_until(record, written), used)
        if len(known.keys) >= self._size:
            known.previous, known.keys = known.keys, {}
        known.keys[digest] = entry
        return entry

    def _count_unknown(self, address: str, digest: bytes, now: float) -> None:
        if len(self._guesses) >= _MOST_ADDRESSES and address not in self._guesses:
            self._guesses.clear()
        guesses = self._guesses.get(address, Guesses())
        self._guesses[address] = guesses.after(digest[:4], now, UNKNOWN)

    def _record_use(self, entry: _CachedKey, now: float) -> None:
        entry.used = now
        if self._store is not None:
            self._uses.put(partial(self._write_use, entry.id, self._now()))

    def _write_use(self, id_: str, at: float) -> None:
        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            later = at if old is None or len(old) != _USED.size else max(at, _USED.unpack(old)[0])
            return _USED.pack(later), LASTING, None

        if self._store is not None:
            try:
                update(self._store, f"{_StoredRecords.PREFIX}used/{id_}", change)
            except StoreError:
                pass  # only the time of the last use is late; requests log the outage

    # Operators.

    def create(
        self,
        owner: str,
        *,
        plan: str = "",
        scopes: Collection[str] = (),
        name: str = "",
        lasts: float | None = None,
    ) -> IssuedKey:
        """Create a key. It is valid at once in this worker, in others within *staleness*.

        :param owner: The account that the key belongs to.
        :param plan: The name of the owner's plan.
        :param scopes: What the key permits.
        :param name: A free description.
        :param lasts: Seconds after which the key expires. Default: never.
        :raises ValueError: An argument is invalid; the message names it.
        :raises StoreError: The keys cannot be written.
        """
        if isinstance(scopes, str):
            raise ValueError(f'scopes: expected a list such as ["orders:read"], not {scopes!r}')
        if lasts is not None and not 0 < lasts <= LASTING:
            raise ValueError(f"expires: more than 0 seconds and at most ten years, not {lasts!r}")
        key, now = new_key(self.prefix), self._now()
        record = KeyRecord(
            id=new_id(),
            owner=owner,
            secrets=(Secret(digest_of(key)),),
            created=now,
            plan=plan,
            scopes=tuple(scopes),
            name=name,
            expires=None if lasts is None else now + lasts,
        )
        return IssuedKey(key, self._change(record.id, lambda old: record))

    def revoke(self, id_: str) -> KeyRecord:
        """Revoke the key with this id, with all its rotated keys; it stays in lists.

        :raises UnknownRecord: There is no such key.
        :raises StoreError: The keys cannot be written; the key may be revoked or not.
        """
        now = self._now()
        return self._change(id_, lambda old: revoked(_existing(old), now))

    def rotate(self, id_: str, *, overlap: float | None = None) -> IssuedKey:
        """Replace the key with this id by a new one, with the same id, owner, plan and scopes.

        :param overlap: Seconds for which the replaced key stays valid, and the ones that earlier
            rotations replaced at most. Default: a day, and as long as those rotations said.
        :raises UnknownRecord: There is no such key.
        :raises ValueError: It is revoked or has expired, or *overlap* is invalid.
        :raises StoreError: The keys cannot be written.
        """
        key, now = new_key(self.prefix), self._now()
        digest = digest_of(key)
        return IssuedKey(
            key, self._change(id_, lambda old: rotated(_existing(old), digest, now, overlap))
        )

    def records(self) -> list[KeyRecord]:
        """Return the records of all keys, by id.

        :raises StoreError: They cannot be read.
        """
        return self._records.all()

    def last_used(self) -> dict[str, float]:
        """Return when each key was last used, by id, as Unix time; to a minute or two.

        Keys that were never used are missing.

        :raises StoreError: The store failed.
        """
        if self._store is None:
            return {}
        prefix = f"{_StoredRecords.PREFIX}used/"
        return {
            key.removeprefix(prefix): _USED.unpack(value)[0]
            for key, value in self._store.items(prefix)
            if len(value) == _USED.size
        }

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._uses.close()
        if self._opened is not None:
            self._opened.close()

    def _change(self, id_: str, make: Callable[[KeyRecord | None], KeyRecord]) -> KeyRecord:
        if not is_id(id_):  # it may be too long for a key of the store
            raise UnknownRecord(_UNKNOWN_ID)
        made = self._records.change(id_, make)
        known = self._known
        if known is not None:
            # the next request reads the version, also if another thread has just read the old one
            self._known = _CachedKeys(object(), -math.inf, known.keys or known.previous)
        return made


_UNKNOWN_ID = "id: there is no key with this id"


def _existing(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise UnknownRecord(_UNKNOWN_ID)
    return record
