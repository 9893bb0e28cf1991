"""What the registry knows, in Consul's words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from wsgigate.discovery.doors.consul_words import CHECK, check_id
from wsgigate.rules.registry import LeaseRules, Registered, Status

__all__ = ["tell_catalog", "tell_checks", "tell_health", "tell_node", "tell_service"]


def tell_node(entry: Registered, datacenter: str, index: int) -> dict[str, Any]:
    """Return the host of *entry* as Consul's JSON has a node: every host is one."""
    return {
        "ID": "",
        "Node": entry.host,
        "Address": entry.host,
        "Datacenter": datacenter,
        "TaggedAddresses": {},
        "Meta": {},
        "CreateIndex": index,
        "ModifyIndex": index,
    }


def tell_service(entry: Registered, index: int) -> dict[str, Any]:
    """Return *entry* as Consul's JSON has a service.

    :param index: Of what was read.
    """
    meta = {key: _told(value) for key, value in entry.metadata.items() if key != CHECK}
    scheme = None if entry.scheme == "http" else entry.scheme
    for key, value in (("zone", entry.zone), ("version", entry.version), ("scheme", scheme)):
        if value is not None:
            meta.setdefault(key, value)
    return {
        "ID": entry.instance_id,
        "Service": entry.service,
        "Tags": list(entry.tags),
        "Meta": meta,
        "Port": entry.port,
        "Address": entry.host,
        "TaggedAddresses": {},
        "Weights": {"Passing": entry.weight, "Warning": 1},
        "EnableTagOverride": False,
        "CreateIndex": index,
        "ModifyIndex": index,
    }


def tell_checks(
    entry: Registered, now: float, rules: LeaseRules, index: int
) -> list[dict[str, Any]]:
    """Return the checks of *entry*: those it has, and one more when it is in maintenance."""
    believed = replace(entry, status=Status.UP, checks=()).healthy(now, rules)
    well = believed and entry.status in (Status.UP, Status.DRAINING)
    output = f"The service says that it is {entry.status}." if believed else "TTL expired"
    common = {
        "Node": entry.host,
        "Notes": "",
        "ServiceID": entry.instance_id,
        "ServiceName": entry.service,
        "ServiceTags": list(entry.tags),
        "CreateIndex": index,
        "ModifyIndex": index,
    }
    checks = [
        {
            **common,
            "CheckID": check.check_id,
            "Name": check.name,
            "Status": check.status,
            "Output": check.output,
            "Type": check.kind,
            "Interval": f"{check.interval:g}s",
            "Timeout": f"{check.timeout:g}s",
        }
        for check in entry.checks
    ]
    if entry.reports:
        own = {
            "CheckID": check_id(entry),
            "Name": f"Service '{entry.service}' check",
            "Status": "passing" if well else "critical",
            "Output": output,
            "Type": "ttl",
        }
        checks.append({**common, **own})
    if entry.status is Status.DRAINING:
        maintenance = {
            "CheckID": f"_service_maintenance:{entry.instance_id}",
            "Name": "Service Maintenance Mode",
            "Status": "critical",
            "Output": "",
            "Type": "maintenance",
        }
        checks.append({**common, **maintenance})
    return checks


def tell_health(
    entry: Registered, datacenter: str, now: float, rules: LeaseRules, index: int
) -> dict[str, Any]:
    """Return *entry* as ``/v1/health/service`` has it: its host, itself, and its checks."""
    return {
        "Node": tell_node(entry, datacenter, index),
        "Service": tell_service(entry, index),
        "Checks": tell_checks(entry, now, rules, index),
    }


def tell_catalog(entry: Registered, datacenter: str, index: int) -> dict[str, Any]:
    """Return *entry* as ``/v1/catalog/service`` has it: all in one."""
    node, service = tell_node(entry, datacenter, index), tell_service(entry, index)
    return {
        **{name: value for name, value in node.items() if name != "Meta"},
        "NodeMeta": node["Meta"],
        "ServiceID": service["ID"],
        "ServiceName": service["Service"],
        **{
            f"Service{name}": service[name]
            for name in ("Tags", "Address", "Port", "Meta", "Weights", "EnableTagOverride")
        },
    }


def _told(value: object) -> str:
    """Return *value* as a text, as all of Consul's metadata are."""
    return value if isinstance(value, str) else json.dumps(value)
