"""How the health of services is told to people and programs, as members of JSON documents."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from wsgigate.rules.health import Health

__all__ = ["instance_status", "iso_time", "not_checked", "not_monitored", "service_status"]


def iso_time(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC with milliseconds: ``2025-01-31T12:00:00.000Z``."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{thousandths:03d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def not_checked() -> dict[str, Any]:
    """Return the status of a service whose first check has not ended yet."""
    return {"healthy": False, "error": "Not checked yet"}


def not_monitored() -> dict[str, Any]:
    """Return the status of a service that has no health check: it is taken to be healthy.

    That is what the gateway does: it sends such a service its requests.
    """
    return {"healthy": True, "status": "No health check"}


def instance_status(health: Health | None) -> dict[str, Any]:
    """Return the status of one instance.

    A healthy one tells ``healthy, lastCheck, responseTime, status``, an unhealthy one ``healthy,
    lastCheck, error, status``. ``status`` is the status code, ``"N/A"`` when there was no answer.
    The last check may disagree with the verdict: a healthy instance then has an ``error`` as well,
    and an unhealthy one that answers again is ``Recovering``.
    """
    if health is None:
        return not_checked()
    last = health.last
    told: dict[str, Any] = {"healthy": health.healthy, "lastCheck": iso_time(health.checked)}
    if health.healthy:
        told["responseTime"] = last.response_time
    if not health.healthy or not last.ok:
        told["error"] = "Recovering" if last.ok else last.error
    told["status"] = "N/A" if last.status is None else last.status
    return told


def service_status(healths: Mapping[str, Health | None]) -> dict[str, Any]:
    """Return the status of a service from the *healths* of its instances, by URL.

    A service is healthy when one of its instances is. Of several, the last one checked of those
    that agree with the verdict speaks for all; each is told in ``instances``.
    """
    if not healths:
        return {"healthy": False, "error": "No instances"}
    known = [health for health in healths.values() if health is not None]
    if not known:
        told = not_checked()
    else:
        healthy = any(health.healthy for health in known)
        agreeing = (health for health in known if health.healthy == healthy)
        told = instance_status(max(agreeing, key=lambda health: health.checked))
        told["lastCheck"] = iso_time(max(health.checked for health in known))
    if len(healths) > 1:
        told["instances"] = {url: instance_status(health) for url, health in healths.items()}
    return told
