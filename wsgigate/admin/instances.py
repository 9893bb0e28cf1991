"""Endpoints that drain, eject and weigh an instance of a service, in all workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, Protocol, TypedDict

from wsgigate.admin.api import AdminEndpoint, Group, match_of, named, with_tag
from wsgigate.admin.operations import checked_members, duration_of, store_errors
from wsgigate.coordination.overrides import (
    ACTIVE,
    AUTOMATIC,
    STATES,
    Override,
    OverrideChanged,
    Overrides,
)
from wsgigate.discovery import Instance
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.problem import Problem, Refusal
from wsgigate.telemetry.audit import Actor, audited, requester
from wsgigate.units import iso_time

__all__ = ["HasPool", "UnknownInstance", "instance_group", "override_audited", "url_of"]

MOST_NAMED = 20
"""How many instances an error names."""


class HasPool(Protocol):
    """The part of a pool of instances that the endpoints use."""

    @property
    def instances(self) -> Sequence[Instance]:
        """All instances."""


class UnknownInstance(ValueError):
    """The service has no such instance, or several of that address."""


def url_of(address: str, instances: Iterable[Instance], changed: Iterable[str] = ()) -> str:
    """Return the URL of the instance with this address.

    :param address: Its address, such as ``10.0.0.4:8000``, or its URL.
    :param instances: The instances of the service.
    :param changed: URLs of instances with an override, which may have left.
    :raises UnknownInstance: There is none, or there are several.
    """
    known = {instance.url: instance.address for instance in instances}
    for url in changed:
        known.setdefault(url, url.partition("://")[2])
    found = [url for url, each in known.items() if address in (url, each)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownInstance(
            f"address: several instances have it; use the URL of one: {', '.join(sorted(found))}"
        )
    named = sorted(set(known.values()))
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    listed = f"{', '.join(named[:MOST_NAMED])}{more}" if named else "none"
    raise UnknownInstance(f"address: the service has no such instance; its instances are: {listed}")


class InstanceOverride(TypedDict):
    """What an operator has decided about an instance."""

    service: str
    url: str
    state: Annotated[
        Literal["active", "drained", "ejected"],
        "drained gets no new requests but those of its sticky sessions, ejected none.",
    ]
    weight: Annotated[int | None, "Null for the configured weight."]
    since: str | None
    until: Annotated[str | None, "When it ends; null if only on command."]
    by: Annotated[str | None, "Who decided it."]
    appliesTo: Annotated[str, "all workers; with store.url = memory: this worker."]


InstanceChange = TypedDict(
    "InstanceChange",
    {
        "state": NotRequired[
            Annotated[Literal["active", "drained", "ejected"], "Default: active."]
        ],
        "weight": NotRequired[Annotated[int | None, "1 to 65535. Default: the configured weight."]],
        "for": NotRequired[
            Annotated[float | str, 'How long, in seconds or as "30m". Default: no end.']
        ],
    },
)


def _document(service: str, url: str, override: Override, shared: bool) -> dict[str, Any]:
    automatic = override.automatic
    return {
        "service": service,
        "url": url,
        "state": override.state,
        "weight": override.weight,
        "since": None if automatic else iso_time(override.since),
        "until": None if automatic or override.until is None else iso_time(override.until),
        "by": None if automatic else override.by,
        "appliesTo": "all workers" if shared else "this worker",
    }


def override_audited(
    overrides: Overrides,
    service: str,
    url: str,
    state: str,
    *,
    weight: int | None = None,
    lasts: float | None = None,
    by: Actor,
    matches: Any = None,
) -> tuple[Override, Override]:
    """Change an instance, with a record in the audit log; return the override before and after.

    The arguments are those of :meth:`.Overrides.set`.
    """
    options = {} if matches is None else {"matches": matches}
    with audited("instance.change", f"{url} of {service}", by=by) as change:
        shown = f"{by.role} {by.client}"[:100]
        before, after = overrides.set(
            service, url, state, weight=weight, lasts=lasts, by=shown, **options
        )
        change.before, change.after = _state(before), _state(after)
    return before, after


def _state(override: Override) -> dict[str, Any]:
    until = None if override.until is None or override.automatic else iso_time(override.until)
    return {"state": override.state, "weight": override.weight, "until": until}


def instance_group(overrides: Overrides, pools: Mapping[str, HasPool]) -> Group:
    """Return the endpoints ``GET`` and ``PUT /services/{name}/instances/{address}``.

    ``/services/{name}/instances?address=`` is the same: a URL, or the path of a socket, has
    slashes.

    :param overrides: What operators have changed.
    :param pools: The instances of each service.
    """

    def find(request: JsonRequest, name: str, given: str | None) -> str:
        pool = pools.get(name)
        if pool is None:
            raise Refusal.of(404, "Service not found!")
        address = named(request, "address", given)
        overrides.look()  # another worker may have made the last change just now
        try:
            return url_of(address, pool.instances, overrides.of(name))
        except UnknownInstance as error:
            raise Refusal.of(404, f"{error}.") from None

    def show(request: JsonRequest, name: str, address: str | None = None) -> object:
        url = find(request, name, address)
        override = overrides.of(name).get(url, AUTOMATIC)
        return _document(name, url, override, overrides.shared)

    def change(request: JsonRequest, name: str, address: str | None = None) -> object:
        url = find(request, name, address)
        body = request.json()
        checked_members(body, ("state", "weight", "for"))
        state, weight = body.get("state", ACTIVE), body.get("weight")
        if not isinstance(state, str) or state not in STATES:
            raise wrong(f"state: must be one of {', '.join(STATES)}.", "state")
        matches = match_of(request)

        def expected(override: Override) -> bool:
            return matches is None or matches(_document(name, url, override, overrides.shared))

        try:
            _, after = override_audited(
                overrides,
                name,
                url,
                state,
                weight=weight,
                lasts=duration_of(body),
                by=requester(request.environ),
                matches=expected,
            )
        except OverrideChanged:
            return Problem(412, "The resource has changed since it was read.")
        except ValueError as error:
            raise wrong(f"{error}.", str(error).partition(":")[0]) from None
        return with_tag(_document(name, url, after, overrides.shared))

    slash = "What has a slash, such as the URL of an instance, belongs in the query: ?address=URL."
    in_query = {"address": "The address of the instance, or its URL."}
    endpoints = []
    for path, hint, query in (
        ("/services/{name}/instances/{address}", f" {slash}", {}),
        ("/services/{name}/instances", "", in_query),
    ):
        endpoints += [
            AdminEndpoint(
                line=f"GET {path}",
                answer=show,
                summary="What an operator has changed about an instance",
                description=f"The address is HOST:PORT, as in GET /services.{hint}",
                query=query,
                query_required=True,
                response=InstanceOverride,
            ),
            AdminEndpoint(
                line=f"PUT {path}",
                answer=change,
                summary="Drain, eject or weigh an instance, or let it be active again",
                description="Every worker applies it within a second, and it survives restarts. "
                "active without a weight removes what was changed, and ends automatic ejections."
                f"{hint}",
                query=query,
                query_required=True,
                body=InstanceChange,
                response=InstanceOverride,
                # compared in the store, so that of two writes at once one is rejected
                current=show,
            ),
        ]
    return Group(
        "instances",
        endpoints,
        errors=store_errors(
            "The change may or may not have taken effect: the store is unavailable.",
            "the overrides cannot be written",
        ),
        largest=4096,
    )
