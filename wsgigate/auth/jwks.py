"""The keys of issuers: fixed ones, those of a file, and those that an issuer publishes (JWKS).

Theory of operation
-------------------

Issuers replace their keys while tokens are in use, and their endpoints fail. The rules that keep
valid tokens accepted and requests fast:

1. **A request never fetches keys.** A thread of each process does (:class:`RemoteKeys`), and
   publishes an immutable :class:`.KeySet` that requests read without a lock. So an endpoint that
   hangs delays nothing that a known key can decide.
2. **One worker fetches for all.** What is known of an endpoint is one value in the store: its keys,
   and when the next attempt may begin. A worker claims an attempt by swapping that value against
   one with a later time, and writes the result by swapping against its claim. So two workers never
   fetch at once, attempts are ``cooldown`` apart whether they succeed or fail, and a worker that
   was suspended during its attempt cannot overwrite a newer result with its older one.
3. **Good keys are kept for a day**, whatever the endpoint answers afterwards: nothing, an error, a
   set without a usable key, or an older set by its ``Date`` and ``Age``.
4. **A key that disappears is dropped when a second answer confirms it**, a cooldown later. Servers
   behind one name do not all change their keys at the same moment.
5. **An unknown key id triggers one attempt per cooldown**, however many tokens have one. A few of
   these requests wait for it, for at most a second, as an issuer may have just replaced its keys,
   and only while the endpoint is not known to be slow or failing. The others get an answer at
   once: that the token is invalid if the issuer was asked for an unknown key within the last
   cooldown and has listed its keys, else that it cannot be checked.

A lock held during a fetch, or a result written without the swap, would break them. After a fork
nothing is known until the store has been read again: the thread belongs to the parent.

While the store fails, each worker keeps the value for itself, and fetches for itself.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

from wsgigate.auth.jwk import Jwk, KeySet, VerificationKey, configured_keys, read_jwk
from wsgigate.auth.jwks_fetch import MOST_BYTES, FetchFailed, fetch
from wsgigate.auth.jwks_record import (
    IN_FLIGHT,
    KEEP,
    JwksAnswer,
    JwksRecord,
    decoded,
    encoded,
    failed,
    started,
    succeeded,
)
from wsgigate.client.exchange import Stopped
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real, steady, wall
from wsgigate.runtime.files import ReloadedFile
from wsgigate.runtime.logs import FailureLog, one_line
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.store import VALUE_BYTES, Store, StoreError
from wsgigate.store.open import Namespaced, OpenedStore
from wsgigate.telemetry.metrics import PROCESS, Counter, ObservableGauge, Reading

__all__ = ["FileKeys", "KeySource", "KeySources", "KeysUnavailable", "RemoteKeys", "StaticKeys"]

_log = logging.getLogger("wsgigate.jwks")

REFRESHES = Counter(
    "wsgigate_jwks_refreshes",
    "Fetches of an issuer's keys, by the worker that made them: fetched or failed.",
    ("issuer", "result"),
)

AGE = ObservableGauge(
    "wsgigate_jwks_age_seconds",
    "Seconds since the keys of an issuer that are in use were fetched.",
    ("issuer",),
)

_POLL = 2.0
"""Seconds after which a worker reads the store again: another may have fetched newer keys."""

_POLL_IN_FLIGHT = 0.1
"""The same, while another worker fetches."""

_GLANCE = 0.25
"""The least seconds after which unknown keys make a worker read the store again in an outage."""

_WAITING = 2
"""Maximum number of requests of a process that wait for newer keys of one issuer."""


class KeysUnavailable(Exception):
    """The keys of an issuer are not known at the moment; the message is for the operator only.

    :ivar again_in: Seconds after which another request may succeed.
    """

    def __init__(self, why: str, again_in: float) -> None:
        super().__init__(why)
        self.again_in = again_in


class KeySource(Protocol):
    """The keys of one issuer, which may change."""

    @property
    def current(self) -> KeySet | None:
        """The keys now; None while none are known."""

    def newer(self, seen: KeySet | None) -> KeySet | None:
        """Return keys that are newer than *seen*; None if the issuer has no newer ones.

        :raises KeysUnavailable: It is not known whether there are newer ones.
        """


class StaticKeys:
    """Keys of the configuration, which never change.

    :param current: The keys.
    """

    def __init__(self, current: KeySet) -> None:
        self.current: KeySet | None = current

    def newer(self, seen: KeySet | None) -> None:
        """Return None: there are no newer ones."""


_LOOK = 1.0

_SETTING = "jwks_file: "


class FileKeys:
    """The keys of a file, which is read again when it has changed.

    While the changed file cannot be used, the keys that were read last stay in use.

    :param path: The file, which contains a JWK or a JWK set.
    :param algorithms: The algorithms to use the keys for; None for all asymmetric ones.
    :param name: The name of the issuer, for logs.
    :param clock: Returns monotonic seconds; the file is looked at once a second.
    :param now: Returns the Unix time in seconds.
    :raises ValueError: The file cannot be read, or has no key that can be used; the message begins
        with ``jwks_file``.
    """

    def __init__(
        self,
        path: str,
        algorithms: Sequence[str] | None,
        *,
        name: str,
        clock: Callable[[], float] = steady,
        now: Callable[[], float] = wall,
    ) -> None:
        self.name = name
        self._algorithms = algorithms
        self._clock = clock
        self._file = ReloadedFile(
            path,
            self._parsed,
            what=f"the file of the keys of {name!r}",
            logger=_log,
            largest=MOST_BYTES,
            clock=clock,
            now=now,
        )
        try:
            self._file.first()
        except OSError as error:
            raise ValueError(f"jwks_file: {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"jwks_file: {path}: {str(error).removeprefix(_SETTING)}") from None
        self._looked = clock()

    @property
    def current(self) -> KeySet | None:
        """The keys now."""
        now = self._clock()
        if not 0 <= now - self._looked < _LOOK:
            self._looked = now
            before = self._file.value
            self._file.look()
            if self._file.value is not before:
                _log.info("The keys of %r were read again: %d keys", self.name, self._count)
        return self._file.value

    def newer(self, seen: KeySet | None) -> KeySet | None:
        """Return the keys if the file has been changed since *seen*."""
        current = self.current
        return None if current is seen else current

    def status(self) -> dict[str, Any]:
        """Return the status, as members of a JSON object."""
        status: dict[str, Any] = {"keys": self._count}
        if self._file.failing:
            status["error"] = "the changed file cannot be used"
        return status

    @property
    def _count(self) -> int:
        keys = self._file.value
        return 0 if keys is None else len(keys)

    def _parsed(self, data: bytes) -> tuple[KeySet, list[str]]:
        return KeySet(configured_keys(data, self._algorithms, "jwks_file")), []


class _SharedValue:
    """One value of the store; in the memory of this process while the store fails.

    :param store: The store.
    :param key: The key of the value.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.error = ""
        """Why the store fails; empty if it does not."""
        self._store = store
        self._key = key
        self._own: bytes | None = None

    def get(self) -> tuple[bytes | None, float]:
        """Return the value and the store's time."""
        try:
            found = self._store.get(self._key)
        except StoreError as error:
            self.error = str(error)
            return self._own, wall()
        self.error = ""
        self._own = None
        return found

    def swap(self, old: bytes | None, new: bytes) -> bool:
        """Replace the value if it is *old*."""
        if not self.error:
            try:
                return self._store.swap(self._key, old, new, KEEP)
            except StoreError as error:
                self.error = str(error)
        if self._own is not None and self._own != old:
            return False
        self._own = new
        return True


class RemoteKeys:
    """The keys that an issuer publishes; see the rules above.

    :param url: The URL of its JWK set, or the issuer to discover.
    :param store: The store that the workers share.
    :param name: The name of the issuer, for logs and ``/health``.
    :param discovers: Whether *url* is an issuer.
    :param ca: A file of trusted certificate authorities.
    :param refresh: Seconds until the keys are fetched again.
    :param cooldown: The least seconds between two attempts.
    :param ask: Fetches the keys, as :func:`fetch` does.
    :param clock: Returns monotonic seconds.
    :ivar wait: Maximum seconds for which a request waits for keys.
    """

    wait = 1.0

    def __init__(
        self,
        url: str,
        store: Store,
        *,
        name: str = "",
        discovers: bool = False,
        ca: str | None = None,
        refresh: float = 600.0,
        cooldown: float = 30.0,
        ask: Callable[..., JwksAnswer] = fetch,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.name = name or url
        self.current: KeySet | None = None
        """The keys now; None while none are known."""
        self._refresh = max(refresh, cooldown)
        self._cooldown = cooldown
        self._ask = partial(ask, url, discovers=discovers, ca=ca)
        self._clock = clock
        key = sha256("\n".join((url, str(discovers), ca or "")).encode()).hexdigest()
        self._value = _SharedValue(store, f"jwks/{key[:32]}")
        self._thread = SupervisedThread("wsgigate-jwks", self._run, lambda: None)
        self._failing = FailureLog(
            _log, "The keys of %r can be fetched again, after %.0f s", self.name, clock=clock
        )
        self._troubles = FailureLog(
            _log,
            "The store has the keys of %r again, after %.0f s",
            self.name,
            level=logging.WARNING,
            clock=clock,
        )
        self._changed: threading.Condition
        self._wake: threading.Event
        fork.renewed(self, _changed="Condition", _wake="Event")
        self.after_fork()
        fork.renew_at_fork(self)
        PROCESS.collect_from(self)

    def collect(self) -> Iterable[Reading]:
        """Return the age of the keys, for the metrics."""
        fetched = self._fetched_at
        if fetched is not None:
            yield AGE.reading(max(0.0, self._clock() - fetched), self.name)

    def after_fork(self) -> None:
        """Forget the keys: the thread that renews them belongs to the parent."""
        self.current = None
        self._record = JwksRecord()
        self._fetched_at: float | None = None  # by the clock of this process
        self._looked_at = float("-inf")
        self._asked_until = float("-inf")  # not asked again for an unknown key id before
        self._wanted = False
        self._slow = False
        self._waiting = 0

    # For requests.

    def newer(self, seen: KeySet | None) -> KeySet | None:
        """Return keys newer than *seen*; None if the issuer has just listed its keys again.

        A few callers wait, for at most a second.

        :raises KeysUnavailable: The keys, or whether there are newer ones, are not known.
        """
        # before the keys, which _adopt replaces first: so "not listed" is never said of older keys
        just_asked, listed = self._clock() < self._asked_until, self._record.at
        if self._is_news(seen):
            return self.current
        if seen is not None:
            self._wanted = True
            if just_asked:
                return None
        healthy = not (self._slow or self._failed)
        if self.start() or healthy or self._clock() - self._looked_at >= _GLANCE:
            self._wake.set()
        if healthy:
            self._wait(lambda: self._is_news(seen) or self._record.at != listed or self._failed)
        listed_again = self._record.at != listed
        if self._is_news(seen):
            return self.current
        if seen is not None and listed_again:
            return None
        why = self._record.error if self._failed else "they are being fetched"
        raise KeysUnavailable(
            f"the keys of {self.name} are not available: {why}"
            if seen is None
            else f"an unknown key, and the keys of {self.name} cannot be fetched: {why}",
            min(5.0, self._cooldown),
        )

    def _is_news(self, seen: KeySet | None) -> bool:
        current = self.current
        return current is not None and current is not seen

    def _wait(self, known: Callable[[], bool]) -> None:
        with self._changed:
            if self.current is not None and self._waiting >= _WAITING:
                return
            self._waiting += 1
            try:
                if not self._changed.wait_for(known, self.wait):
                    self._slow = True
            finally:
                self._waiting -= 1

    @property
    def _failed(self) -> bool:
        return self._record.failures > 0

    def start(self) -> bool:
        """Start the thread of this process unless it is running; return whether it was started."""
        try:
            return not self._thread.alive and self._thread.start()
        except RuntimeError:  # the system grants no further thread at the moment
            return False

    def ready(self, until: float) -> None:
        """Wait until keys are known or the first attempt has failed.

        :param until: The time of :func:`.real` at which the wait ends.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.current is not None or self._failed, max(0.0, until - real())
            )

    def end(self) -> None:
        """Signal the thread to end."""
        self._thread.end()
        self._wake.set()

    def stop(self, timeout: float = 1.0) -> None:
        """Signal the thread to end, and wait for it.

        :param timeout: Maximum seconds to wait.
        """
        self.end()
        self._thread.stop(timeout)

    def probe(self) -> str:
        """Fetch the keys once without using them; return why that fails, empty if it does not."""
        try:
            answer = self._ask()
        except FetchFailed as error:
            return str(error)
        return answer.left_out[0] if answer.left_out else ""

    def status(self) -> dict[str, Any]:
        """Return the status, as members of a JSON object.

        ``keys`` is their number, ``age`` the seconds since they were fetched, ``None`` before, and
        ``error`` why the last attempt failed.
        """
        fetched, record = self._fetched_at, self._record
        status: dict[str, Any] = {
            "keys": 0 if self.current is None else len(self.current),
            "age": None if fetched is None else round(max(0.0, self._clock() - fetched), 3),
        }
        return {**status, "error": record.error} if record.error else status

    # In the thread.

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                pause = self.step(stopping)
            except Exception:
                _log.exception("The keys of %r cannot be renewed", self.name)
                pause = _POLL
            self._wake.wait(pause)
            self._wake.clear()

    def step(self, stopping: threading.Event | None = None) -> float:
        """Read what the workers know, and fetch the keys if that is due.

        :returns: The seconds until the next step.
        """
        value, now = self._value.get()
        self._looked_at = self._clock()
        self._log_store()
        record = decoded(value)
        mine = self._newer_than(record, now)
        if mine is None:
            self._adopt(record, now)
        else:
            record = mine
        left = (record.earliest if self._wanted or mine else record.due) - now
        # a time beyond all pauses is of a clock that was set back
        if 0 < left <= self._refresh + IN_FLIGHT:
            return min(left, _POLL_IN_FLIGHT if record.claim else _POLL)
        claim = encoded(started(record, now, secrets.token_hex(8)))
        if not self._value.swap(value, claim):
            return _POLL_IN_FLIGHT
        asked, self._wanted = self._wanted, False
        return self._attempt(record, claim, now, asked, stopping)

    def _newer_than(self, record: JwksRecord, now: float) -> JwksRecord | None:
        """Return *record* with the keys of this worker, if it knows newer ones.

        The store may have failed or lost its values meanwhile. Ages are compared, as this process
        and the store have clocks of their own.
        """
        if self._fetched_at is None:
            return None
        age = self._clock() - self._fetched_at
        if record.at is not None and now - record.at <= age + 1.0:
            return None
        return record._replace(keys=self._record.keys, at=now - age, made=self._record.made)

    def _attempt(
        self,
        record: JwksRecord,
        claim: bytes,
        now: float,
        asked: bool,
        stopping: threading.Event | None,
    ) -> float:
        before = self._clock()
        try:
            answer = self._ask(stopping=stopping)
            result = succeeded(
                record,
                answer,
                now,
                refresh=self._refresh,
                cooldown=self._cooldown,
                asked=asked,
            )
            if len(encoded(result)) > VALUE_BYTES:
                result = failed(record, "its keys are too large", now, cooldown=self._cooldown)
        except Stopped:
            self._value.swap(claim, encoded(record))  # an attempt that was given up counts for none
            return 0.0
        except FetchFailed as error:
            result = failed(record, str(error), now, cooldown=self._cooldown)
        except Exception:
            _log.exception("The keys of %r cannot be fetched", self.name)
            result = failed(record, "an unexpected error", now, cooldown=self._cooldown)
        if not self._value.swap(claim, encoded(result)):
            return 0.0  # another worker has taken over: its result is newer
        REFRESHES.labels(self.name, "failed" if result.failures else "fetched").add()
        self._log_result(record, result)
        later = now + max(0.0, self._clock() - before)
        self._adopt(result, later)
        return max(0.0, min(result.due - later, _POLL))

    def _adopt(self, record: JwksRecord, now: float) -> None:
        """Use the keys of *record* from now on."""
        current = self.current
        if not record.known(now):
            current = None
        elif current is None or record.keys != self._record.keys:
            current = KeySet(_key_of(record.keys))
        fetched = None
        if record.at is not None and current is not None:
            fetched = self._clock() - max(0.0, now - record.at)
        asked_until = float("-inf")
        if not (record.failures or record.claim):
            self._failing.ended()  # another worker may have fetched them
            asked_until = self._clock() + record.earliest - now
        with self._changed:
            self.current, self._fetched_at = current, fetched  # first: see newer()
            self._asked_until = asked_until
            self._record = record
            if not record.claim:
                self._slow = False
            self._changed.notify_all()

    def _log_result(self, before: JwksRecord, after: JwksRecord) -> None:
        if after.failures:
            known = "those known stay in use" if self.current else "its tokens get a 503"
            self._failing.failed(
                "The keys of %r cannot be fetched, and %s: %s",
                self.name,
                known,
                one_line(after.error),
            )
            return
        self._failing.ended()
        if after.error:
            _log.warning("A key of %r is not used: %s", self.name, one_line(after.error))
        added = sum(key not in before.keys for key in after.keys if "gone" not in key)
        kept = [{n: v for n, v in key.items() if n != "gone"} for key in after.keys]
        removed = sum({n: v for n, v in k.items() if n != "gone"} not in kept for k in before.keys)
        if added or removed:
            _log.info("Keys of %r: %d added, %d removed", self.name, added, removed)

    def _log_store(self) -> None:
        if self._value.error:
            self._troubles.failed(
                "This worker fetches the keys of %r for itself: %s", self.name, self._value.error
            )
        else:
            self._troubles.ended()


def _key_of(keys: Sequence[Jwk]) -> list[VerificationKey]:
    """Return the keys of a record; one that cannot be used is left out."""
    found = []
    for jwk in keys:
        try:
            found.append(read_jwk(jwk))
        except ValueError:  # the record is from another version of the package
            continue
    return found


class KeySources:
    """The keys of all issuers of a gateway or of an app: those that can change.

    Nothing runs before :meth:`start`, or the first token whose key is not known.

    :param store: The store that the workers share, its URL, or None for the private folder.
    :param app: The app that owns the values: see :class:`.OpenedStore`.
    :param ask: Fetches the keys, as :func:`fetch` does.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        app: object = None,
        *,
        ask: Callable[..., JwksAnswer] = fetch,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._given = (store, app)
        self._opened: OpenedStore | None = None
        self._ask = ask
        self._clock = clock
        self._remote: dict[tuple[object, ...], RemoteKeys] = {}
        self._files: list[FileKeys] = []

    def remote(
        self,
        url: str,
        *,
        issuer: str | None = None,
        discovers: bool = False,
        ca: str | None = None,
        refresh: float = 600.0,
        cooldown: float = 30.0,
    ) -> RemoteKeys:
        """Return the keys at *url*; the same object for the same arguments.

        :param issuer: The name of the issuer.
        """
        if self._opened is None:
            self._opened = OpenedStore(*self._given)
        arguments = (url, issuer, discovers, ca, refresh, cooldown)
        if arguments not in self._remote:
            self._remote[arguments] = RemoteKeys(
                url,
                Namespaced(self._opened),
                name=issuer or url.partition("?")[0],
                discovers=discovers,
                ca=ca,
                refresh=refresh,
                cooldown=cooldown,
                ask=self._ask,
                clock=self._clock,
            )
        return self._remote[arguments]

    def add(self, source: FileKeys) -> None:
        """Add the keys of a file, to report their status."""
        self._files.append(source)

    def start(self, wait: float = 2.0) -> None:
        """Start the threads of this process, unless they are running.

        :param wait: The most seconds to wait until all keys are known, so that the first request
            finds them.
        """
        started = [source for source in self._remote.values() if source.start()]
        until = real() + wait
        for source in started:
            source.ready(until)

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the threads of this process.

        :param timeout: Seconds to wait for them; one that hangs is abandoned.
        """
        for source in self._remote.values():
            source.end()
        until = real() + timeout
        for source in self._remote.values():
            source.stop(max(0.0, until - real()))

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each issuer, by its name; of equal names, one with an error."""
        found: dict[str, dict[str, Any]] = {}
        sources: list[RemoteKeys | FileKeys] = [*self._remote.values(), *self._files]
        for source in sources:
            status = source.status()
            if "error" in status and "error" not in found.get(source.name, {}):
                found[source.name] = status
            found.setdefault(source.name, status)
        return found

    def probe(self) -> dict[str, str]:
        """Fetch all keys once; return why that fails, by the name of the issuer."""
        troubles: dict[str, str] = {}
        for source in self._remote.values():  # several may have one name
            why = source.probe()
            if why:
                troubles.setdefault(source.name, why)
        return troubles

    def close(self) -> None:
        """Stop the threads, and close the store unless it was passed in as an object."""
        self.stop()
        if self._opened is not None:
            self._opened.close()
