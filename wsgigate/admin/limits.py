"""Endpoints that show what a caller has left under a limit, and restore its full quota."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, TypedDict

from wsgigate.admin.api import AdminEndpoint, Group, named
from wsgigate.admin.operations import store_errors
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.limits import LimitStanding
from wsgigate.http.problem import Refusal
from wsgigate.telemetry.audit import Actor, audited, requester

__all__ = ["CanReset", "clear_audited", "limit_group", "plain_key"]


class CanReset(Protocol):
    """The part of a limiter that the endpoints use."""

    def standing(self, key: str) -> Sequence[LimitStanding]:
        """Return what a caller has left."""

    def stored_key(self, key: str) -> str:
        """Return the key of a caller in the form that the store has."""

    def reset(self, key: str) -> None:
        """Give a caller its full quota again."""


def plain_key(key: str) -> str:
    """Return the caller of a key in either form: as the key function returns it, or as stored.

    :param key: Such as ``192.0.2.1``; stored, ``=192.0.2.1``, or ``#`` and a hash for a long one.
    """
    return key.removeprefix("=")


class QuotaStanding(TypedDict):
    """What a caller has left of one quota."""

    name: str
    plan: Annotated[str | None, "The plan that the quota belongs to; null for the default."]
    limit: int
    remaining: int
    resetAfter: Annotated[float, "Seconds until the whole quota is available again."]


class CallerStanding(TypedDict):
    """What a caller has left under a limit."""

    policy: str
    key: Annotated[str, "The caller as in the store: = and its key, or # and a hash of it."]
    quotas: list[QuotaStanding]


def _document(policy: str, key: str, limit: CanReset) -> dict[str, Any]:
    return {
        "policy": policy,
        "key": limit.stored_key(key),
        "quotas": [
            {
                "name": each.name,
                "plan": each.plan or None,
                "limit": each.limit,
                "remaining": each.remaining,
                "resetAfter": round(each.reset_after, 3),
            }
            for each in limit.standing(key)
        ],
    }


def clear_audited(policy: str, key: str, limit: CanReset, *, by: Actor) -> dict[str, Any]:
    """Give a caller its full quota again, with a record in the audit log; return its standing.

    :param key: The caller, see :func:`plain_key`.
    :raises StoreError: The store failed.
    """
    plain = plain_key(key)
    with audited("limit.clear", f"{limit.stored_key(plain)} of {policy}", by=by) as change:
        change.before = _document(policy, plain, limit)["quotas"]
        limit.reset(plain)
        after = _document(policy, plain, limit)
        change.after = after["quotas"]
    return after


def limit_group(limits: Mapping[str, CanReset]) -> Group:
    """Return the endpoints ``GET`` and ``DELETE /limits/{policy}/{key}``.

    ``/limits/{policy}?key=`` is the same: the key of an IPv6 network has a slash.

    :param limits: The limits by the name of their policy.
    """

    def find(policy: str) -> CanReset:
        limit = limits.get(policy)
        if limit is None:
            listed = ", ".join(sorted(limits))
            raise Refusal.of(404, f"There is no such policy; the policies are: {listed}.")
        return limit

    def show(request: JsonRequest, policy: str, key: str | None = None) -> object:
        limit = find(policy)
        return _document(policy, plain_key(named(request, "key", key)), limit)

    def clear(request: JsonRequest, policy: str, key: str | None = None) -> object:
        limit = find(policy)
        caller = named(request, "key", key)
        return clear_audited(policy, caller, limit, by=requester(request.environ))

    about = (
        "The key is what the limit counts by, such as 192.0.2.1, or the form that the store has: "
        "= and the key, or # and the hash of a long one."
    )
    slash = "A key with a slash, such as 2001:db8::/64, belongs in the query: ?key=2001:db8::/64."
    key = {"key": "The key of the caller."}
    endpoints = []
    for path, hint, query in (
        ("/limits/{policy}/{key}", slash, {}),
        ("/limits/{policy}", "", key),
    ):
        described = f"{about} {hint}".rstrip()
        endpoints += [
            AdminEndpoint(
                line=f"GET {path}",
                answer=show,
                summary="What a caller has left under a limit",
                description=described,
                query=query,
                query_required=True,
                response=CallerStanding,
            ),
            AdminEndpoint(
                line=f"DELETE {path}",
                answer=clear,
                summary="Give a caller its full quota again",
                description=f"{described} The slots of requests in flight come back with their "
                "next renewal.",
                query=query,
                query_required=True,
                response=CallerStanding,
            ),
        ]
    return Group(
        "limits",
        endpoints,
        errors=store_errors(
            "The counts cannot be read or changed at the moment: the store is unavailable.",
            "the counts cannot be read or changed",
        ),
    )
