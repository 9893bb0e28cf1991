"""Passwords of HTTP Basic (RFC 7617): the field, the file of users, and verification by argon2.

Theory of operation
-------------------

A verification by argon2 takes 0.2 s of processor time and 64 MiB by design, so it is the most
expensive thing that a client can cause. Rules that must hold:

1. Few run at a time in a worker, few requests wait for one, and none waits for long.
2. A credential that was verified is remembered for a while, under an HMAC with a random key of this
   process, so that the memory of a worker holds no password and no fast hash of one. So is a wrong
   one: a program that repeats it costs one verification.
3. An unknown user costs as much as a known one with a wrong password: a hash with the parameters of
   some user of the file is verified, or the time of a response would tell which users exist.
4. Whatever is remembered ends when the file of users changes.
5. What is remembered does not let an address guess on that has sent too many wrong ones: it passes
   at once only at an address that has sent it before.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from importlib.util import find_spec
from typing import NamedTuple

from wsgigate.runtime import fork
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.files import ReloadedFile

__all__ = [
    "BadCredentials",
    "Busy",
    "Credentials",
    "Passwords",
    "check_installed",
    "check_user",
    "credentials_of",
    "hash_password",
    "read_users",
]

_log = logging.getLogger("wsgigate.basic")


# The Authorization field.

_USER = re.compile(r"[^:\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LONGEST_PASSWORD = 1024
_LONGEST = 4096


class BadCredentials(ValueError):
    """The field has no valid credentials; the message is for the log, and has no part of them."""


class Credentials(NamedTuple):
    """A user and a password."""

    user: str
    password: str


def credentials_of(value: str) -> Credentials | None:
    """Return the credentials in an ``Authorization`` field; None for another scheme.

    :raises BadCredentials: They are malformed, or there are several.
    """
    scheme, _, text = value.partition(" ")
    if scheme.lower() != "basic":
        return None
    if len(text) > _LONGEST:
        raise BadCredentials("the credentials are too long")
    try:
        decoded = base64.b64decode(text.strip(" "), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise BadCredentials("the credentials are not base64 of UTF-8") from None
    user, colon, password = decoded.partition(":")
    if not colon:
        raise BadCredentials("the credentials have no colon")
    if not _USER.fullmatch(user) or _CONTROL.search(password):
        raise BadCredentials(
            "the user or the password is empty, too long, or has control characters"
        )
    if len(password.encode()) > LONGEST_PASSWORD:
        raise BadCredentials("the password is too long")
    return Credentials(user, password)


def check_user(user: str) -> str:
    """Return *user* unchanged if it can be the name of a user.

    :raises ValueError: It is empty, too long, begins like a comment, or has a colon, control
        characters, or spaces around it.
    """
    if not _USER.fullmatch(user) or user.startswith("#") or user != user.strip():
        raise ValueError(f"user: 1 to 256 characters without a colon, not {user[:64]!r}")
    return user


# The file of users.

_HASH = re.compile(
    r"\$argon2(?P<type>id|i|d)\$v=(?P<version>16|19)"
    r"\$m=(?P<memory>[0-9]{1,7}),t=(?P<time>[0-9]{1,3}),p=(?P<parallelism>[0-9]{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,128})\$(?P<hash>[A-Za-z0-9+/]{16,256})"
)
_HASH_BEGIN = re.compile(r"[^,]*,t=[0-9]+,p=[0-9]+")

_MOST_MEMORY = 1024 * 1024
"""Maximum memory of one verification in KiB: 1 GiB."""

_MOST_TIME = 50

_OTHERS = {
    "$2": "a bcrypt hash",
    "$apr1$": "an MD5 hash of Apache",
    "$1$": "an MD5 hash",
    "$5$": "a SHA-256 hash",
    "$6$": "a SHA-512 hash",
    "{SHA}": "a SHA-1 hash",
}


def read_users(data: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the argon2 hashes in a file, by user, and the errors of invalid lines.

    A line is ``user:hash``, as in a file of htpasswd; empty lines and ``#`` comments are ignored.

    :raises ValueError: The file is not UTF-8 text.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    users: dict[str, str] = {}
    errors = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        user, _, hashed = line.partition(":")
        try:
            check_user(user)
            if user in users:
                raise ValueError(f"user {user!r} is on an earlier line, too")
            users[user] = _checked(hashed)
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    return users, errors


def _checked(hashed: str) -> str:
    """Return *hashed* if it is an argon2 hash. Errors do not show it: it may be a password."""
    found = _HASH.fullmatch(hashed)
    if found is None:
        kind = next((kind for begin, kind in _OTHERS.items() if hashed.startswith(begin)), "")
        raise ValueError(
            f"it has {kind or 'no argon2 hash'}; make one with: wsgigate password USER"
        )
    memory, time = int(found["memory"]), int(found["time"])
    if memory > _MOST_MEMORY or not 1 <= time <= _MOST_TIME or int(found["parallelism"]) < 1:
        raise ValueError(
            f"an argon2 hash with m={memory} and t={time}; at most are m={_MOST_MEMORY} and "
            f"t={_MOST_TIME}"
        )
    return hashed


def _dummy(hashed: str) -> str:
    """Return a hash with the parameters of *hashed* that no password has."""
    found = _HASH.fullmatch(hashed)
    if found is None:
        raise ValueError("not an argon2 hash")
    parts = [_random(len(found[name])) for name in ("salt", "hash")]
    return f"{hashed[: found.start('salt')]}{parts[0]}${parts[1]}"


def _random(length: int) -> str:
    text = base64.b64encode(secrets.token_bytes(length)).decode("ascii")[:length]
    # the unused bits of the last character must be zero
    return text[:-1] + "A" if length % 4 else text


_USUAL = f"$argon2id$v=19$m=65536,t=3,p=4${'A' * 22}${'A' * 43}"
"""For a file without users: the parameters of RFC 9106 section 4, which ``hash_password`` uses."""


# argon2.


def check_installed() -> None:
    """Check that argon2-cffi is installed.

    :raises ValueError: It is not; the message says how to install it.
    """
    if find_spec("argon2") is None:
        raise ValueError('HTTP Basic needs argon2-cffi: pip install "wsgigate[basic]"')


def hash_password(password: str) -> str:
    """Return an argon2id hash of *password*, with the parameters of RFC 9106 section 4.

    :raises ValueError: *password* is empty, too long, or has control characters, or argon2-cffi is
        not installed.
    """
    check_installed()
    if not 1 <= len(password.encode("utf-8", "surrogatepass")) <= LONGEST_PASSWORD:
        raise ValueError(f"password: 1 to {LONGEST_PASSWORD} bytes")
    if _CONTROL.search(password):  # no request could have it
        raise ValueError("password: control characters are not allowed (RFC 7617 section 2)")
    from argon2 import PasswordHasher

    return PasswordHasher().hash(password)


def _matches(hashed: str, password: str) -> bool:
    from argon2.exceptions import VerificationError
    from argon2.low_level import Type, verify_secret

    kinds = {"id": Type.ID, "i": Type.I, "d": Type.D}
    kind = kinds[hashed.removeprefix("$argon2").partition("$")[0]]
    try:
        return verify_secret(hashed.encode("ascii"), password.encode("utf-8"), kind)
    except VerificationError:  # a wrong password, or too little memory
        return False


# Verification, with its bounds.

WAITING = 2
"""Maximum number of requests that wait, for each verification that may run.

Each occupies a thread of the server, which other routes then lack.
"""

FILE_EVERY = 0.5
"""Seconds between two looks at the file."""

_MOST_WRONG = 10_000


class Busy(Exception):
    """Too many passwords are being verified at the moment."""


class _Known:
    """What is known of the users under one version of the file."""

    __slots__ = ("dummies", "read", "seen", "users", "valid", "version", "wrong")

    def __init__(self, version: object, users: Mapping[str, str], now: float) -> None:
        self.version = version
        self.users = users
        hashes = {_HASH_BEGIN.findall(each)[0]: each for each in users.values()}
        self.dummies = [_dummy(each) for each in hashes.values()] or [_dummy(_USUAL)]
        """A hash that no password has for each set of parameters in the file."""
        self.read = now
        self.valid: dict[bytes, float] = {}
        self.wrong: dict[bytes, float] = {}
        self.seen: set[tuple[str, bytes]] = set()


class Passwords:
    """The users of a file, and the verification of their passwords.

    :param file: A file with lines ``user:hash``, as of htpasswd, with argon2 hashes. It is read
        again when it changes.
    :param most: Maximum number of verifications at a time in this process.
    :param remember: Seconds for which a verified credential, and a wrong one, is remembered.
    :param size: Maximum number of verified credentials that are remembered.
    :param patience: Maximum seconds that a request waits for its verification to begin.
    :param matches: Returns whether a hash is that of a password.
    :param clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        file: str,
        *,
        most: int = 2,
        remember: float = 60.0,
        size: int = 10_000,
        patience: float = 1.0,
        matches: Callable[[str, str], bool] = _matches,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._file = ReloadedFile(
            file, read_users, what="the file of users", logger=_log, clock=clock
        )
        self._most = most
        self._remember = remember
        self._size = size
        self._patience = patience
        self._matches = matches
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._known: _Known | None = None
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the verifications in progress: they belong to the parent process."""
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0

    def look(self) -> None:
        """Read the file again if that is due.

        :raises UnreadableFile: It cannot be read or parsed, and never was.
        """
        now = self._clock()
        known = self._known
        if known is None or now - known.read >= FILE_EVERY:
            version = self._file.look()
            with self._changed:  # what another thread has read at the same time is not lost
                known = self._known
                if known is None or version != known.version:
                    self._known = _Known(version, self._file.value or {}, now)
                else:
                    known.read = now

    def remembered(self, given: Credentials, address: str) -> bool | None:
        """Return whether *given* is valid, if that is known; None if it must be verified.

        A valid one is known for the addresses that have sent it: another address may be guessing.

        :raises UnreadableFile: The file cannot be read or parsed, and never was.
        """
        self.look()
        mark = self._mark(given)
        recalled = self._recall(mark)
        known = self._known
        if recalled and (known is None or (address, mark) not in known.seen):
            return None
        return recalled

    def seen(self, given: Credentials, address: str) -> bool:
        """Return whether *given* was valid when *address* sent it, since the file last changed."""
        known = self._known
        return known is not None and (address, self._mark(given)) in known.seen

    def verify(self, given: Credentials, address: str) -> bool:
        """Return whether *given* is valid; takes a fifth of a second of processor time.

        It takes none if *given* is remembered, which tells *address* whether its guess was right.

        :param address: The address of the client.
        :raises Busy: Too many are being verified.
        :raises UnreadableFile: The file cannot be read or parsed, and never was.
        """
        self.look()
        known = self._known
        assert known is not None  # noqa: S101
        mark = self._mark(given)
        valid = self._recall(mark)
        if valid is None:
            self._enter()
            try:
                # another request may have verified the same one while this one waited
                valid = self._recall(mark)
                if valid is None:
                    hashed = known.users.get(given.user)
                    valid = self._matches(hashed or self._dummy(known, given.user), given.password)
                    valid = valid and hashed is not None
                    # before the next verification may begin: it may be of the same credential
                    self._keep(known, mark, valid)
            finally:
                self._leave()
        if valid:
            if len(known.seen) >= self._size:
                known.seen.clear()
            known.seen.add((address, mark))
        return valid

    def _keep(self, known: _Known, mark: bytes, valid: bool) -> None:
        kept, most = (known.valid, self._size) if valid else (known.wrong, _MOST_WRONG)
        if len(kept) >= most:
            kept.clear()
        kept[mark] = self._clock() + self._remember

    def _recall(self, mark: bytes) -> bool | None:
        known = self._known
        if known is None:
            return None
        now = self._clock()
        if now < known.valid.get(mark, 0.0):
            return True
        return False if now < known.wrong.get(mark, 0.0) else None

    def _dummy(self, known: _Known, user: str) -> str:
        """Return a hash for an unknown user: always the same one, as a known user has one too."""
        place = blake2b(user.encode("utf-8"), key=self._key, digest_size=8).digest()
        return known.dummies[int.from_bytes(place, "big") % len(known.dummies)]

    def _mark(self, given: Credentials) -> bytes:
        text = f"{given.user}:{given.password}".encode("utf-8", "surrogatepass")
        return blake2b(text, key=self._key, digest_size=32).digest()

    def _enter(self) -> None:
        with self._changed:
            if self._running >= self._most:
                if self._waiting >= WAITING * self._most:
                    raise Busy
                self._waiting += 1
                try:
                    if not self._changed.wait_for(
                        lambda: self._running < self._most, self._patience
                    ):
                        raise Busy
                finally:
                    self._waiting -= 1
            self._running += 1

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify()
