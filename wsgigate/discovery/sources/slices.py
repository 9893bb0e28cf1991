"""Who of a Kubernetes service's endpoints takes requests, read from its EndpointSlices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import SourceError, instance_of

__all__ = ["instances_of_slices"]


def instances_of_slices(
    slices: Collection[Mapping[str, Any]], port: str, scheme: str
) -> tuple[list[Instance], bool]:
    """Return the instances, and whether to believe that there are none.

    Of an endpoint the first address is used, as kube-proxy does. *ready* that is not said is so,
    *serving* that is not said is as *ready*, *terminating* that is not said is not so.

    :param port: A port's name, or its number.
    :raises SourceError: They are not of their form, or no slice has the port.
    """
    ready: dict[str, list[Instance]] = {}
    leaving: dict[str, list[Instance]] = {}
    endpoints, named = 0, False
    try:
        for item in slices:
            number = _number(item.get("ports") or (), port)
            listed = item.get("endpoints") or ()
            endpoints += len(listed)
            if number is None:
                continue
            named = True
            family = item["addressType"]
            for endpoint in listed:
                conditions = endpoint.get("conditions") or {}
                well = conditions.get("ready", True) is not False
                serves = conditions.get("serving")
                serves = well if serves is None else serves
                instance = instance_of(
                    scheme, endpoint["addresses"][0], number, zone=endpoint.get("zone")
                )
                if well:
                    ready.setdefault(family, []).append(instance)
                elif serves and conditions.get("terminating"):
                    leaving.setdefault(family, []).append(instance)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise SourceError("a slice is not of its form") from error
    if endpoints and not named:
        raise SourceError("none of its slices has that port")
    by_family = ready or leaving
    found = by_family.get("IPv4") or by_family.get("IPv6") or by_family.get("FQDN") or []
    return found, bool(slices) and not endpoints


def _number(ports: Collection[Mapping[str, Any]], wanted: str) -> int | None:
    for port in ports:
        number = port.get("port")
        if number is None or port.get("protocol", "TCP") != "TCP":
            continue
        if wanted in (str(number), port.get("name")):
            return int(number)
    return None
