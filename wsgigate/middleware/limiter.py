"""Refuse a request whose caller has used up its quota."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.fields import rate_limit, rate_limit_policy, retry_after
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.rules.quota import Quota, Verdict
from wsgigate.store import Store, StoreError, open_store, update
from wsgigate.wsgi import REASON, ExcInfo, Headers, Key, client_address

__all__ = ["Limiter"]

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
LIMITS = "wsgigate.limits"
"""``list[_Taken]``: what the limiters around each other took for this request, outermost first."""

FAMILIES = {
    "ratelimit": ("RateLimit-Policy", "RateLimit"),
    "x-ratelimit": ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
}
LONGEST_KEY = 128  # a longer one is hashed; the store takes no more than 480 bytes
SILENCE = 60.0  # seconds between two log records about a store that fails

_log = logging.getLogger("wsgigate.limiter")


class _Taken(NamedTuple):
    verdict: Verdict
    now: float
    begins: str
    """What its ``RateLimit`` begins with, up to what remains."""
    policy: str


class Limiter:
    """Refuse a request whose caller has used up its quota.

    :param app: The WSGI application to protect.
    :param quota: How many requests a caller may make: ``Quota(100, 900)`` or
        ``"100 per 15 minutes"``.
    :param algorithm: ``"token-bucket"`` or ``"fixed-window"``.
    :param store: Where the counts are: a store, or the URL of one. Unless said, a folder of this
        machine that all workers of this app share and no other app does.
    :param key: Names the caller; ``None`` exempts the request.
    :param name: Names this policy in response fields and in the store.
    :param fields: Which response fields tell the caller how it stands: ``"ratelimit"``,
        ``"x-ratelimit"``, both or none.
    :param on_store_error: What to do when the store fails: ``"allow"`` the request and count it in
        ``store_errors``, or ``"refuse"`` it.
    :param refuse: Makes the answer of a refusal out of its problem.
    :param clock: Tells the seconds between two log records.
    :raises ValueError: One of the settings is wrong; says which and how.
    """

    def __init__(
        self,
        app: WSGIApplication,
        quota: Quota | str,
        *,
        algorithm: str = "token-bucket",
        store: Store | str | None = None,
        key: Key = client_address,
        name: str = "default",
        fields: Collection[str] = ("ratelimit", "x-ratelimit"),
        on_store_error: str = "allow",
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(quota, Quota):
            quota = Quota.parse(quota)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is one of {_listed(ALGORITHMS)}, not {algorithm!r}")
        if isinstance(fields, str) or not set(fields) <= FAMILIES.keys():
            raise ValueError(f"fields is a list out of {_listed(FAMILIES)}, not {fields!r}")
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        if not re.fullmatch(r"[A-Za-z0-9._:~-]{1,64}", name):
            raise ValueError(f"name is 1 to 64 letters, digits and any of ._:~-, not {name!r}")
        self.app = app
        self.quota = quota
        self.name = name
        self.key = key
        self.store_errors = 0
        self._prefix = f"limit/{name}/{algorithm}/{quota.limit}/{quota.period!r}/"
        self._owned = store is None or isinstance(store, str)
        self._store: Store | None = None
        if store is None or store == "lmdb:":  # its folder is not to be made before it is needed
            self._prefix += sha256(_identity(app).encode()).hexdigest()[:16] + "/"
        elif isinstance(store, str):
            self._store = open_store(store)
        elif isinstance(store, Store):
            self._store = store
        else:
            raise ValueError(f"store is a store or the URL of one, not {store!r}")
        self._take = ALGORITHMS[algorithm](quota).take
        self._policy = rate_limit_policy(name, quota.limit, quota.period)
        self._begins = rate_limit(name, 0, 0).removesuffix("0;t=0")
        self._standard = "ratelimit" in fields
        self._customary = "x-ratelimit" in fields
        self._replaced = frozenset(field.lower() for family in fields for field in FAMILIES[family])
        self._allows_on_error = on_store_error == "allow"
        self._refuse = refuse
        self._clock = clock
        self._lock = threading.Lock()
        self._logged = float("-inf")
        self._unlogged = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        key = self.key(environ)
        if key is None:
            return self.app(environ, start_response)
        if len(key) > LONGEST_KEY or not key.isascii():
            key = "#" + sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        else:
            key = "=" + key
        try:
            store = self._open() if self._store is None else self._store
            verdict, now = update(store, self._prefix + key, self._change)
        except StoreError as error:
            return self._without_store(error, environ, start_response)

        taken: list[_Taken] = environ.setdefault(LIMITS, [])
        mine = _Taken(verdict, now, self._begins, self._policy)
        if verdict.allowed:
            taken.append(mine)
        else:
            taken[:] = [mine]  # what else was taken does not tell this caller when to come back

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            headers = [field for field in headers if field[0].lower() not in self._replaced]
            headers += self._fields(taken)
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        if verdict.allowed:
            return self.app(environ, start)
        environ[REASON] = f"{key[1:]} is over the quota {self.name!r} of {self.quota}"
        return self._refuse(self._problem(verdict))(environ, start)

    def close(self) -> None:
        """Close the store, if it is the limiter's own and not one it was given."""
        if self._owned and self._store is not None:
            self._store.close()

    def _change(
        self, old: bytes | None, now: float
    ) -> tuple[bytes | None, float, tuple[Verdict, float]]:
        new, ttl, verdict = self._take(old, now)
        return new, ttl, (verdict, now)

    def _open(self) -> Store:
        self._store = store = open_store("lmdb:")
        return store

    def _fields(self, taken: list[_Taken]) -> Headers:
        fields: Headers = []
        tightest = taken[0]
        if self._standard:
            if len(taken) == 1:
                fields = [("RateLimit-Policy", tightest.policy), ("RateLimit", _limit(tightest))]
            else:
                fields = [
                    ("RateLimit-Policy", ", ".join([one.policy for one in taken])),
                    ("RateLimit", ", ".join([_limit(one) for one in taken])),
                ]
        if self._customary:
            if len(taken) > 1:
                tightest = min(taken, key=_left)
            _, limit, remaining, reset_after, _ = tightest.verdict
            fields.append(("X-RateLimit-Limit", str(limit)))
            fields.append(("X-RateLimit-Remaining", str(remaining)))
            fields.append(("X-RateLimit-Reset", _iso(tightest.now + reset_after)))
        return fields

    def _problem(self, verdict: Verdict) -> Problem:
        wait = retry_after(verdict.retry_after)
        return Problem(
            429,
            "Too many requests! Please try again later.",
            type=QUOTA_EXCEEDED,
            extensions={"retryAfter": int(wait), "violated-policies": [self.name]},
            headers=(("Retry-After", wait),),
        )

    def _without_store(
        self, error: StoreError, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        with self._lock:
            self.store_errors += 1
            self._unlogged += 1
            now = self._clock()
            failed = self._unlogged
            telling = now - self._logged >= SILENCE
            if telling:
                self._logged, self._unlogged = now, 0
        if telling:
            _log.error(
                "the limit %r cannot be counted, %s requests %s since the last such message: %s",
                self.name,
                failed,
                "passed" if self._allows_on_error else "were refused",
                error,
            )
        if self._allows_on_error:
            return self.app(environ, start_response)
        environ[REASON] = f"the limit {self.name!r} cannot be counted: {error}"
        problem = Problem(
            503,
            "The rate limit cannot be checked at the moment.",
            headers=(("Retry-After", "5"),),
        )
        return self._refuse(problem)(environ, start_response)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _left(taken: _Taken) -> tuple[int, float]:
    return taken.verdict.remaining, -taken.verdict.reset_after


def _limit(one: _Taken) -> str:
    """Tell what remains, and how long that is so: until there is more of it."""
    _, _, remaining, reset_after, retry_after = one.verdict
    return f"{one.begins}{remaining};t={math.ceil(retry_after or reset_after)}"


def _iso(moment: float) -> str:
    """Return *moment* as ISO 8601 in UTC, rounded up to the millisecond: never too early."""
    seconds, milliseconds = divmod(math.ceil(moment * 1000), 1000)
    return f"{_iso_seconds(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=1024)
def _iso_seconds(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).replace(tzinfo=None).isoformat()


_INNER = ("app", "application", "__self__", "__wrapped__", "func")


def _identity(app: object) -> str:
    """Name the innermost app that *app* wraps: two apps of one process do not share counts."""
    seen = {id(app)}
    while True:
        inner = next((found for name in _INNER if _is_app(found := getattr(app, name, None))), None)
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        app = inner
    named = app if hasattr(app, "__qualname__") else type(app)
    parts = (named.__module__, named.__qualname__, getattr(app, "import_name", ""))
    return " ".join(map(str, parts))


def _is_app(found: object) -> bool:
    return callable(found) and not isinstance(found, type)
