"""What limiters share: who is counted, the dry run, store outages, and their response fields.

The fields are ``RateLimit`` of the IETF draft, and ``X-RateLimit-*``.

Nested limiters report their numbers together: each appends its decision to the list under
:data:`LIMITS`, and when the response starts, the fields of all are written.
(draft-ietf-httpapi-ratelimit-headers-11)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from math import ceil
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import (
    ClaimOrAddress,
    Exempt,
    KeyNames,
    by_address,
    exempt_of,
    key_of,
    only_of,
    store_key,
)
from wsgigate.http.fields import whole
from wsgigate.http.peer_watch import PeerWatch
from wsgigate.http.problem import Problem, Refuse, refused
from wsgigate.http.wsgi import LIMITS, REASON, ExcInfo, Headers, address_key, client_address
from wsgigate.rules.quota import tightest
from wsgigate.runtime.logs import ThrottledLog

__all__ = [
    "FAMILIES",
    "QUOTA_EXCEEDED",
    "CallerLimit",
    "LimitDecision",
    "LimitFields",
    "LimitStanding",
    "QuotaVerdict",
    "Terms",
    "is_list_of",
    "rate_limit",
    "rate_limit_policy",
]


_HASHED = re.compile("#[0-9a-f]{64}")
"""The key of a caller as the store has it, if it is long or not ASCII."""

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"

_X_RATELIMIT = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

FAMILIES = {
    "ratelimit": ("RateLimit-Policy", "RateLimit"),
    "x-ratelimit": _X_RATELIMIT,
    "x-ratelimit-epoch": _X_RATELIMIT,
    "x-ratelimit-seconds": _X_RATELIMIT,
}
"""The fields by family. The three ``x-ratelimit`` families are alternatives: the reset is a time in
ISO 8601, in seconds since 1970, or in seconds from now."""

KNOWN, LONGEST = 1024, 64
"""Maximum number and length of field names that are cached as not ours."""

QuotaVerdict: TypeAlias = tuple[bool, int, int, float, float]
"""A verdict: allowed, limit, remaining units, seconds until the reset, seconds until a retry.

(:class:`wsgigate.rules.quota.Verdict`)
"""


def is_list_of(found: object, known: Collection[str]) -> bool:
    """Return whether *found* is a collection of names that are in *known*."""
    return (
        isinstance(found, Collection)
        and not isinstance(found, str | bytes)
        and all(isinstance(each, str) and each in known for each in found)
    )


def _quoted(name: str) -> str:
    if not name.isascii() or not name.isprintable():
        raise ValueError(f"a policy name is printable ASCII, not {name!r}")
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def rate_limit_policy(name: str, limit: int, period: float) -> str:
    """Return a ``RateLimit-Policy`` value: ``"default";q=100;w=900``.

    (draft-ietf-httpapi-ratelimit-headers-11, sections 3 and 4.)

    :param name: Name of the policy.
    :param limit: Number of requests per period.
    :param period: Length of the period in seconds, rounded up.
    """
    return f"{_quoted(name)};q={whole(limit)};w={whole(period)}"


def rate_limit(name: str, remaining: int, reset_after: float) -> str:
    """Return a ``RateLimit`` value: ``"default";r=50;t=30``.

    (draft-ietf-httpapi-ratelimit-headers-11, section 4.)

    :param name: Name of the policy.
    :param remaining: Number of remaining requests.
    :param reset_after: Seconds until there are more, rounded up.
    """
    return f"{_quoted(name)};r={whole(remaining)};t={whole(reset_after)}"


class Terms(NamedTuple):
    """The header fields of one quota, computed once."""

    name: str
    policy: str
    """Its item in ``RateLimit-Policy``."""
    begins: str
    """Its item in ``RateLimit``, up to the remaining units."""
    policy_field: tuple[str, str]
    limit_field: tuple[str, str] | None
    """``X-RateLimit-Limit``; None for a limit of concurrent requests."""

    @classmethod
    def of(cls, name: str, limit: int, period: float) -> Terms:
        """Return the terms of *limit* requests in *period* seconds; 0 for concurrent requests."""
        policy = rate_limit_policy(name, limit, period or 1)
        if not period:
            policy = policy.removesuffix(";w=1") + ';qu="concurrent-requests"'
        return cls(
            name,
            policy,
            rate_limit(name, 0, 0).removesuffix("0;t=0"),
            ("RateLimit-Policy", policy),
            ("X-RateLimit-Limit", str(limit)) if period else None,
        )


LimitDecision: TypeAlias = tuple[Sequence[QuotaVerdict], float, Sequence[Terms]]
"""The decision of one limiter: its verdicts, the store's time, and the terms of each verdict.

A limit of concurrent requests has no window, which its terms mark.
"""


class LimitFields:
    """Adds rate limit fields to responses.

    :param families: Names from :data:`FAMILIES`, at most one of the ``x-ratelimit`` families.
    :raises ValueError: *families* is anything else.
    """

    def __init__(self, families: Collection[str]) -> None:
        if not is_list_of(families, FAMILIES):
            known = ", ".join(f'"{name}"' for name in FAMILIES)
            raise ValueError(f"fields is a list out of {known}, not {families!r}")
        x_ratelimit = sorted(set(families) - {"ratelimit"})
        if len(x_ratelimit) > 1:
            raise ValueError(f"fields: {' and '.join(x_ratelimit)} are the same fields; name one")
        self._standard = "ratelimit" in families
        self._x_ratelimit = bool(x_ratelimit)
        self._reset = _RESETS[x_ratelimit[0]] if x_ratelimit else _iso
        self._replaced = frozenset(name.lower() for each in families for name in FAMILIES[each])
        self._both = self._standard and self._x_ratelimit
        self._wanted = slice(0, 2) if self._standard else slice(2, 5)
        self._harmless: set[str] = set()
        self._start = self._started

    def starting(
        self, start_response: StartResponse, environ: WSGIEnvironment, decision: LimitDecision
    ) -> StartResponse:
        """Return a ``start_response`` that adds the fields of *decision* and of outer limits."""
        taken: list[LimitDecision] | None = environ.get(LIMITS)
        if taken is None:
            taken = environ[LIMITS] = [decision]
        elif not all(verdict[0] for verdict in decision[0]):
            taken[:] = [decision]  # a rejection reports only the limit that rejected
        else:
            taken.append(decision)
        if not self._replaced:
            return start_response
        return partial(self._start, start_response, taken)  # cheaper than a closure

    def _started(
        self,
        start_response: StartResponse,
        taken: list[LimitDecision],
        status: str,
        headers: Headers,
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], object]:
        if not self._harmless.issuperset(map(_name_of, headers)):
            headers = self._without_ours(headers)
        if len(taken) > 1 or len(taken[0][0]) > 1:
            fields = headers + self._of_all(taken)
        else:
            verdicts, now, several = taken[0]
            _, _, remaining, reset_after, retry_after = verdicts[0]
            _, _, begins, policy_field, limit_field = several[0]
            if limit_field is None:
                fields = headers + self._of_all(taken)
            else:  # the usual case, inlined: a function call costs as much as a field
                left = str(remaining)
                if self._reset is _iso:
                    moment = ceil((now + reset_after) * 1000)
                    reset = _seconds(moment // 1000) + _MILLISECONDS[moment % 1000]
                else:
                    reset = self._reset(now, reset_after)
                fields = [
                    policy_field,
                    ("RateLimit", f"{begins}{left};t={ceil(retry_after or reset_after)}"),
                    limit_field,
                    ("X-RateLimit-Remaining", left),
                    ("X-RateLimit-Reset", reset),
                ]
                fields = headers + (fields if self._both else fields[self._wanted])
        if exc_info:
            return start_response(status, fields, exc_info)
        return start_response(status, fields)

    def policies(self, terms: Sequence[Terms]) -> Headers:
        """Return the fields of *terms* alone, before a decision."""
        return [("RateLimit-Policy", ", ".join([t.policy for t in terms]))] * self._standard

    def _without_ours(self, headers: Headers) -> Headers:
        """Return *headers* without the fields that we set, and cache the names of the others."""
        kept: Headers = []
        for field in headers:
            name = field[0]
            if name.lower() in self._replaced:
                continue
            kept.append(field)
            if len(self._harmless) < KNOWN and len(name) <= LONGEST:
                self._harmless.add(name)
        return kept

    def _of_all(self, taken: list[LimitDecision]) -> Headers:
        decisions = [
            (verdict, terms, now)
            for verdicts, now, several in taken
            for verdict, terms in zip(verdicts, several, strict=True)
        ]
        fields: Headers = []
        if self._standard:
            # a rejection reports only the limits that rejected
            refused = [each for each in decisions if not each[0][0]]
            fields = [
                ("RateLimit-Policy", ", ".join([terms.policy for _, terms, _ in decisions])),
                ("RateLimit", ", ".join([_left(*each) for each in refused or decisions])),
            ]
        counted = [each for each in decisions if each[1].limit_field]
        if self._x_ratelimit and counted:
            place = tightest([each[0] for each in counted]) if len(counted) > 1 else 0
            verdict, terms, now = counted[place]
            fields += (
                terms.limit_field or ("", ""),
                ("X-RateLimit-Remaining", str(verdict[2])),
                ("X-RateLimit-Reset", self._reset(now, verdict[3])),
            )
        return fields


_name_of = itemgetter(0)


def _left(verdict: QuotaVerdict, terms: Terms, now: float) -> str:
    """Return the item in ``RateLimit``: the remaining units, and the time until there are more."""
    _, _, remaining, reset_after, retry_after = verdict
    if terms.limit_field is None:
        return f"{terms.begins}{remaining}"
    return f"{terms.begins}{remaining};t={ceil(retry_after or reset_after)}"


def _epoch(now: float, reset_after: float) -> str:
    return str(ceil(now + reset_after))


def _delta(now: float, reset_after: float) -> str:
    return str(ceil(reset_after))


def _iso(now: float, reset_after: float) -> str:
    """Return the time in ISO 8601 and UTC, rounded up to the millisecond: never too early."""
    whole = ceil((now + reset_after) * 1000)
    return _seconds(whole // 1000) + _MILLISECONDS[whole % 1000]


@lru_cache(maxsize=1024)
def _seconds(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).replace(tzinfo=None).isoformat()


_MILLISECONDS = tuple(f".{each:03}Z" for each in range(1000))

_RESETS = {"x-ratelimit": _iso, "x-ratelimit-epoch": _epoch, "x-ratelimit-seconds": _delta}


class LimitStanding(NamedTuple):
    """What a caller has left of one quota.

    :ivar name: The name of the quota, as in response fields.
    :ivar plan: The plan it belongs to; empty for that of callers without a plan.
    :ivar limit: The limit.
    :ivar remaining: The units that are left.
    :ivar reset_after: Seconds until the whole quota is available again; 0 if it is now.
    """

    name: str
    plan: str
    limit: int
    remaining: int
    reset_after: float


class OpenedCounts(Protocol):
    """The part of a limiter's store that :class:`CallerLimit` uses."""

    @property
    def in_memory(self) -> bool:
        """Whether the counts are in the memory of this process only."""

    def check_outage(self, error: Any, what: str) -> None:
        """Raise *error* anew unless it is an outage, but an error of the configuration."""


class CallerLimit:
    """A middleware that limits its callers: what :class:`Limiter` and its like have in common.

    The arguments are those of the limiters.

    :param opened: The store of the counts.
    :param log: The logger.
    :param count: Called with each decision but ``allowed``, for the metrics.
    :ivar key: Returns the key of a request's caller.
    """

    enabled = True

    unavailable = "The rate limit cannot be checked at the moment."
    """The message of the response to a request that the failing store rejects."""

    def __init__(
        self,
        app: WSGIApplication,
        opened: OpenedCounts,
        log: logging.Logger,
        *,
        key: KeyNames,
        only: Exempt | Mapping[str, Any] | None,
        exempt: Exempt | Mapping[str, Any] | None,
        preflights: bool,
        observe: bool,
        enabled: bool,
        name: str,
        on_store_error: str,
        refuse: Refuse,
        clock: Callable[[], float],
        count: Callable[[str], object],
    ) -> None:
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        if not re.fullmatch(r"[A-Za-z0-9._:~-]{1,64}", name):
            raise ValueError(f"name is 1 to 64 letters, digits and any of ._:~-, not {name!r}")
        if not enabled:
            self.enabled = False
        self.app = app
        self.name = name
        claimed = partial(ClaimOrAddress, warn=log.warning, what=f"the limit {name!r}")
        self.key = key_of(key, claimed=claimed)
        self._log = log
        self._counts = opened
        self._watch = PeerWatch.of_limit(log.warning, name, app) if by_address(key) else None
        self._only = only_of(only)
        self._exempt = exempt_of(exempt)
        self._passes_preflights = not preflights
        self._observes = observe
        self._allows_on_error = observe or on_store_error == "allow"
        self._refuse = refuse
        self._count = count
        outcome = "passed" if self._allows_on_error else "were rejected"
        self._outages = ThrottledLog(
            log.error,
            f"the limit {name!r} cannot be counted, %s requests {outcome} since the last such "
            "message: %s",
            clock,
        )
        self._observed = ThrottledLog(
            log.warning,
            f"the limit {name!r} (observe only) would have rejected %s requests since the last "
            "such message; the last: %s",
            clock,
        )

    @property
    def store_errors(self) -> int:
        """Number of requests that could not be counted, as the store failed."""
        return self._outages.total

    @property
    def observed(self) -> int:
        """Number of requests that would have been rejected without *observe*."""
        return self._observed.total

    def counts_in_memory(self) -> bool:
        """Return whether the counts are in the memory of this process only."""
        return self._counts.in_memory

    def _exempted(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request on that is not limited."""
        self._count("exempt")
        return self.app(environ, start_response)

    def standing(self, key: str) -> list[LimitStanding]:
        """Return what a caller has left, without charging it.

        :param key: The caller, as for :meth:`reset`.
        """
        raise NotImplementedError

    def stored_key(self, key: str) -> str:
        """Return the caller *key* as in the store: ``=`` and the key, or ``#`` and its hash.

        :param key: As the key function returns it; with the default one, also each address of an
            IPv6 network. A hash of this form stays as it is: it is known from the store only.
        """
        if _HASHED.fullmatch(key):
            return key
        return store_key(address_key(key) if self.key is client_address else key)

    def reset(self, key: str | None = None) -> None:
        """Reset the counts of a caller, or of all."""
        raise NotImplementedError

    def _uncounted(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Pass a request on whose caller has no key."""
        self._count("exempt")
        body = self.app(environ, start_response)
        if isinstance(self.key, ClaimOrAddress):
            self.key.missed(environ)
        return body

    def _observe(
        self, reason: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        self._count("observed")
        environ[REASON] = f"only observed: {reason}"
        self._observed.log(reason)
        return self.app(environ, start_response)

    def _counted_again(self) -> None:
        """Log that the store answers again."""
        self._outages.resolved(self._log.warning, f"the limit {self.name!r} is counted again")

    def _without_store(
        self, error: Exception, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        what = f"the limit {self.name!r} cannot be counted"
        if not self._observes:
            self._counts.check_outage(error, what)
        self._count("store_failed")
        self._outages.log(error)
        if self._allows_on_error:
            return self.app(environ, start_response)
        refused(environ, type(self).__name__, f"{what}: {error}")
        problem = Problem(503, self.unavailable, headers=(("Retry-After", "5"),))
        return self._refuse(problem)(environ, start_response)
