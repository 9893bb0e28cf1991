"""Deltas: their changes by the change log, and the state of a client that applies them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.discovery.conftest import Clock
from wsgigate.registry import Registry
from wsgigate.registry.compat.eureka_format import Action, delta
from wsgigate.registry.storage import PAGE_BYTES, PAGES, InstanceName, RecordedChanges, RegistryKeys
from wsgigate.rules.registry import Registered, Status
from wsgigate.store.memory import MemoryStore

A, B, C = (Registered("users", name, f"10.0.0.{n}", 80) for n, name in enumerate("abc", start=1))
A_DOWN = replace(A, status=Status.DOWN)
A_LATER = replace(A, registered_at=50.0, last_heartbeat=60.0)

ADDED, MODIFIED, DELETED = Action


@pytest.mark.parametrize(
    ("entries", "recorded", "removed", "told"),
    [
        ([A, B], {}, [], []),
        ([A, B], {"b": {ADDED}}, [], [(ADDED, B)]),
        ([A_DOWN, B], {"a": {MODIFIED}}, [], [(MODIFIED, A_DOWN)]),
        ([A_DOWN, B], {"a": {ADDED, MODIFIED}}, [], [(MODIFIED, A_DOWN)]),
        ([B], {"a": {DELETED}}, [A], [(DELETED, A)]),
        ([B], {"a": {ADDED, MODIFIED, DELETED}}, [A], [(DELETED, A)]),
        ([A_LATER, B], {"a": {ADDED, DELETED}}, [A], [(ADDED, A_LATER)]),
        ([A_DOWN, B], {"a": {ADDED, DELETED}}, [A], [(MODIFIED, A_DOWN)]),
        # it is there, whatever was written down: the process that removes it was not done yet
        ([A, B], {"a": {DELETED}}, [A], [(ADDED, A)]),
        # nobody knows where it was
        ([B], {"a": {DELETED}}, [], []),
        ([B], {"a": {ADDED}}, [], []),
    ],
)
def test_a_delta_has_the_last_state_of_each_instance(
    entries: list[Registered],
    recorded: dict[str, set[Action]],
    removed: list[Registered],
    told: list[tuple[Action, Registered]],
) -> None:
    actions = {("users", name): frozenset(done) for name, done in recorded.items()}

    def were(names: list[InstanceName]) -> list[Registered | None]:
        known = {(entry.service, entry.instance_id): entry for entry in removed}
        return [known.get(name) for name in names]

    assert delta(entries, RecordedChanges(actions, True, 0), were) == told
    others = [
        (ADDED, entry) for entry in entries if (entry.service, entry.instance_id) not in actions
    ]
    assert delta(entries, RecordedChanges(actions, False, 0), were) == told + others


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_log_is_complete_once_it_is_old_enough(clock: Clock) -> None:
    registry = Registry(MemoryStore(clock=clock))
    assert not registry.changes.read().complete
    registry.register(A)
    assert not registry.changes.read().complete
    clock.now += 180
    recorded = registry.changes.read()
    assert (recorded.complete, recorded.actions) == (True, {("users", "a"): {ADDED}})
    clock.now += 16
    assert registry.changes.read().actions == {}


def test_further_changes_are_written_to_the_next_page(clock: Clock) -> None:
    registry = Registry(MemoryStore(clock=clock), most_of_one=500)
    long = "x" * 120
    for number in range(400):
        registry.register(Registered("users", f"{number}-{long}", "10.0.0.1", 80))
    recorded = registry.changes.read()
    assert len(recorded.actions) == 400
    assert {*recorded.actions.values()} == {frozenset({ADDED})}


def test_an_overflow_makes_the_log_incomplete(clock: Clock) -> None:
    store, keys = MemoryStore(clock=clock), RegistryKeys("registry/")
    registry = Registry(store)
    registry.changes.begin()
    clock.now += 200
    assert registry.changes.read().complete
    for page in range(PAGES):  # as full as pages get
        bucket = int(clock.now // 15)
        store.swap(keys.changes(bucket, page), None, b"A users/" + b"x" * PAGE_BYTES, 60.0)
    registry.register(A)
    recorded = registry.changes.read()
    assert not recorded.complete


def test_a_heartbeat_is_not_recorded(clock: Clock) -> None:
    registry = Registry(MemoryStore(clock=clock))
    registry.register(A)
    clock.now += 200
    registry.heartbeat("users", "a")
    registry.register(A)
    registry.heartbeat("users", "a", Status.UP)
    assert registry.changes.read().actions == {}


STATES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(Status))
STEPS = st.lists(st.tuples(st.floats(0.1, 60), STATES, st.booleans(), st.booleans()), max_size=20)


@given(STEPS)
def test_a_client_that_applies_deltas_has_the_current_instances(
    steps: list[tuple[float, dict[str, Status], bool, bool]],
) -> None:
    """Whichever worker answers, and however often workers are restarted."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    workers = [Registry(store), Registry(store)]
    known: dict[str, Status] = {}
    asked = float("-inf")
    for seconds, states, asks, restarts in steps:
        clock.now += seconds
        if restarts:
            workers = [workers[1], Registry(store)]
        there = {entry.instance_id for entry in workers[0].discover("users").instances}
        for name in there - set(states):
            workers[0].deregister("users", name)
        for number, (name, status) in enumerate(states.items()):
            workers[number % 2].register(Registered("users", name, "10.0.0.1", 80, status=status))
        if not asks:
            continue
        if clock.now - asked > 180:
            known = dict(states)  # it fetches everything, as a client does that was away
        recorded = workers[1].changes.read()
        entries = workers[1].discover("users").instances
        for action, entry in delta(entries, recorded, workers[1].changes.removed):
            if action is DELETED:
                known.pop(entry.instance_id, None)
            elif action is MODIFIED or entry.instance_id not in known:
                known[entry.instance_id] = entry.status
        assert known == states
        asked = clock.now
