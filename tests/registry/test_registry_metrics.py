"""What the metrics have of a registry."""

from __future__ import annotations

from tests.support.metrics import Measured
from wsgigate.registry import Registry
from wsgigate.rules.registry import Registered, Status
from wsgigate.store.memory import MemoryStore


def test_sizes_renewals_and_changes_are_counted(measured: Measured) -> None:
    registry = Registry(MemoryStore())
    for number in range(3):
        registry.register(Registered("orders", f"o{number}", "127.0.0.1", 8000 + number))
    for _ in range(2):
        registry.heartbeat("orders", "o1")
    registry.heartbeat("orders", "unknown")
    registry.heartbeat("orders", "o2", Status.DRAINING)
    registry.deregister("orders", "o0")
    registry.deregister("orders", "o0")
    assert measured.value("wsgigate_registry_renewals") == 3
    assert measured.series("wsgigate_registry_registrations") == {
        ("registered",): 3.0,
        ("deregistered",): 1.0,
    }
    found = {(each.family.name, each.labels): each.value for each in registry.collect()}
    assert found["wsgigate_registry_services", ()] == 1
    assert found["wsgigate_registry_instances", ("up",)] == 1
    assert found["wsgigate_registry_instances", ("draining",)] == 1
    assert found["wsgigate_registry_instances", ("silent",)] == 0
    assert found["wsgigate_registry_self_preservation", ()] == 0
