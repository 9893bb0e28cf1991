"""Deltas, as a client sees them that applies one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.discovery.doors.deltas import Action, History
from wsgigate.rules.registry import Registered, Status

A, B, C = (Registered("users", name, f"10.0.0.{n}", 80) for n, name in enumerate("abc", start=1))
A_DOWN = replace(A, status=Status.DOWN)

ADDED, MODIFIED, DELETED = Action


def watching(*entries: Registered, reach: float = 60.0, most: int = 100) -> History:
    """Return a history at the moment 100 that has watched *entries* for longer than it reaches."""
    history = History(reach=reach, most=most)
    history.look(entries, 0.0)
    history.look(entries, 100.0)
    return history


@pytest.mark.parametrize(
    ("looks", "at", "delta"),
    [
        ([], 100, []),
        ([(101, [A, B])], 101, []),
        ([(101, [A, B, C])], 101, [(ADDED, C)]),
        ([(101, [A])], 101, [(DELETED, B)]),
        ([(101, [A_DOWN, B])], 101, [(MODIFIED, A_DOWN)]),
        ([(101, [])], 102, [(DELETED, A), (DELETED, B)]),
        # of one instance only the last word counts
        ([(101, [A, B, C]), (102, [A, B])], 103, [(DELETED, C)]),
        ([(101, [B]), (102, [A, B])], 103, [(ADDED, A)]),
        ([(101, [A_DOWN, B]), (102, [A, B])], 103, [(MODIFIED, A)]),
        # until it is too long ago
        ([(101, [A, B, C])], 161, [(ADDED, C)]),
        ([(101, [A, B, C])], 161.5, []),
        ([(101, [A, B, C]), (150, [A, C])], 170, [(DELETED, B)]),
        # a heartbeat is none
        ([(101, [replace(A, last_heartbeat=101), B])], 101, []),
    ],
)
def test_a_delta_is_what_has_changed(
    looks: list[tuple[float, list[Registered]]],
    at: float,
    delta: list[tuple[Action, Registered]],
) -> None:
    history = watching(A, B)
    for when, entries in looks:
        history.look(entries, when)
    assert history.delta(at) == delta


def test_one_that_has_not_watched_for_long_knows_of_none() -> None:
    history = History(reach=60.0)
    assert history.delta(0.0) is None
    history.look([A, B], 10.0)
    history.look([A, C], 20.0)
    assert history.delta(69.0) is None
    assert history.delta(70.0) == [(ADDED, C), (DELETED, B)]


def test_one_that_would_have_to_remember_too_much_knows_of_none() -> None:
    history = watching(most=2)
    history.look([A, B], 101.0)
    assert history.delta(102.0) == [(ADDED, A), (ADDED, B)]
    history.look([B, C], 103.0)
    assert history.delta(104.0) is None
    assert len(history._changes) <= 2
    history.look([C], 110.0)
    assert history.delta(163.0) == [(DELETED, B)]


STATES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(Status))
STEPS = st.lists(st.tuples(st.floats(0.1, 40), STATES, st.booleans()), max_size=30)


@given(STEPS)
def test_a_client_that_asks_in_time_knows_what_there_is(
    steps: list[tuple[float, dict[str, Status], bool]],
) -> None:
    history, now = History(reach=60.0, most=8), 0.0
    known: dict[str, Registered] = {}
    asked = None
    for seconds, states, asks in steps:
        now += seconds
        entries = [
            Registered("users", name, "10.0.0.1", 80, status=status)
            for name, status in states.items()
        ]
        history.look(entries, now)
        if not asks:
            continue
        there = {entry.instance_id: entry for entry in entries}
        if asked is None or now - asked > 60.0:
            known = dict(there)  # it asks for all, as a client does that was away
        delta = history.delta(now)
        if delta is None:  # then it is told everything, as added
            delta = [(ADDED, entry) for entry in entries]
        for action, entry in delta:
            if action is DELETED:
                known.pop(entry.instance_id, None)
            else:
                known[entry.instance_id] = entry
        asked = now
        # what it can know too much is seen by the count of each status
        assert there.items() <= known.items()
        if sorted(e.status for e in known.values()) == sorted(e.status for e in entries):
            assert known == there
        known = there
