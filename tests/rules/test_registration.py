"""The rules of the registration client: the next step, and the state after a response."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wsgigate.rules.registration import (
    LEAST_WAIT,
    Phase,
    RegistrationRules,
    RegistrationState,
    RegistryResponse,
    Step,
    Wanted,
    after,
    next_step,
)

RULES = RegistrationRules()
NEW = RegistrationState()
SENT = RegistrationState(sent=True)
STARTING = RegistrationState(Phase.REGISTERED, reported=Wanted.STARTING, sent=True)
UP = RegistrationState(Phase.REGISTERED, reported=Wanted.UP, sent=True)
LOST = RegistrationState(Phase.LOST, reported=Wanted.UP, sent=True, failures=3)
DRAINING = RegistrationState(Phase.DRAINING, reported=Wanted.DRAINING, sent=True)
GONE = RegistrationState(Phase.GONE)


@pytest.mark.parametrize(
    ("standing", "wanted", "step"),
    [
        (NEW, Wanted.STARTING, Step.REGISTER),
        (NEW, Wanted.UP, Step.REGISTER),
        (NEW, Wanted.DRAINING, Step.NOTHING),
        (NEW, Wanted.GONE, Step.NOTHING),
        # a registration that was not answered may have been heard
        (SENT, Wanted.UP, Step.REGISTER),
        (SENT, Wanted.DRAINING, Step.UPDATE),
        (SENT, Wanted.GONE, Step.DEREGISTER),
        (STARTING, Wanted.STARTING, Step.HEARTBEAT),
        (STARTING, Wanted.UP, Step.UPDATE),
        (UP, Wanted.UP, Step.HEARTBEAT),
        (UP, Wanted.DRAINING, Step.UPDATE),
        (UP, Wanted.GONE, Step.DEREGISTER),
        (LOST, Wanted.UP, Step.HEARTBEAT),
        (LOST, Wanted.DRAINING, Step.UPDATE),
        (LOST, Wanted.GONE, Step.DEREGISTER),
        (DRAINING, Wanted.DRAINING, Step.HEARTBEAT),
        (DRAINING, Wanted.UP, Step.UPDATE),
        (DRAINING, Wanted.GONE, Step.DEREGISTER),
        *((GONE, wanted, Step.NOTHING) for wanted in Wanted),
    ],
)
def test_the_next_step(standing: RegistrationState, wanted: Wanted, step: Step) -> None:
    assert next_step(standing, wanted) is step


def gone_on(
    standing: RegistrationState,
    wanted: Wanted,
    answer: RegistryResponse,
    chance: float = 0.0,
    **rules: Any,
):
    step = next_step(standing, wanted)
    return after(standing, step, wanted, answer, chance, RegistrationRules(**rules))


@pytest.mark.parametrize(
    ("standing", "wanted", "status", "phase", "next_"),
    [
        # done
        (NEW, Wanted.STARTING, 201, Phase.REGISTERED, Step.HEARTBEAT),
        (NEW, Wanted.UP, 201, Phase.REGISTERED, Step.HEARTBEAT),
        (STARTING, Wanted.UP, 200, Phase.REGISTERED, Step.HEARTBEAT),
        (UP, Wanted.UP, 200, Phase.REGISTERED, Step.HEARTBEAT),
        (UP, Wanted.DRAINING, 200, Phase.DRAINING, Step.HEARTBEAT),
        (LOST, Wanted.UP, 200, Phase.REGISTERED, Step.HEARTBEAT),
        (UP, Wanted.GONE, 200, Phase.GONE, Step.NOTHING),
        # not there
        (UP, Wanted.UP, 404, Phase.REGISTERING, Step.REGISTER),
        (UP, Wanted.UP, 410, Phase.REGISTERING, Step.REGISTER),
        (LOST, Wanted.UP, 404, Phase.REGISTERING, Step.REGISTER),
        (STARTING, Wanted.UP, 404, Phase.REGISTERING, Step.REGISTER),
        (UP, Wanted.DRAINING, 404, Phase.GONE, Step.NOTHING),
        (DRAINING, Wanted.DRAINING, 404, Phase.GONE, Step.NOTHING),
        (UP, Wanted.GONE, 404, Phase.GONE, Step.NOTHING),
        # that is no registry
        (NEW, Wanted.UP, 404, Phase.REGISTERING, Step.REGISTER),
        # nothing is known
        (NEW, Wanted.UP, None, Phase.REGISTERING, Step.REGISTER),
        (NEW, Wanted.UP, 503, Phase.REGISTERING, Step.REGISTER),
        (UP, Wanted.UP, None, Phase.LOST, Step.HEARTBEAT),
        (UP, Wanted.UP, 500, Phase.LOST, Step.HEARTBEAT),
        (UP, Wanted.UP, 429, Phase.LOST, Step.HEARTBEAT),
        (UP, Wanted.DRAINING, None, Phase.LOST, Step.UPDATE),
        (DRAINING, Wanted.DRAINING, None, Phase.DRAINING, Step.HEARTBEAT),
        (UP, Wanted.GONE, None, Phase.LOST, Step.DEREGISTER),
        # refused
        (NEW, Wanted.UP, 401, Phase.REGISTERING, Step.REGISTER),
        (NEW, Wanted.UP, 400, Phase.REGISTERING, Step.REGISTER),
        (NEW, Wanted.UP, 302, Phase.REGISTERING, Step.REGISTER),
        (UP, Wanted.UP, 401, Phase.LOST, Step.HEARTBEAT),
        (UP, Wanted.UP, 403, Phase.LOST, Step.HEARTBEAT),
    ],
)
def test_each_response_leads_to_a_phase_and_a_step(
    standing: RegistrationState, wanted: Wanted, status: int | None, phase: Phase, next_: Step
) -> None:
    now, _ = gone_on(standing, wanted, RegistryResponse(status))
    assert now.phase is phase
    assert next_step(now, wanted) is next_


@pytest.mark.parametrize(
    ("status", "leaves_as"),
    [(None, Step.DEREGISTER), (503, Step.DEREGISTER), (401, Step.NOTHING), (201, Step.DEREGISTER)],
)
def test_an_instance_that_may_be_registered_deregisters(
    status: int | None, leaves_as: Step
) -> None:
    now, _ = gone_on(NEW, Wanted.UP, RegistryResponse(status))
    assert next_step(now, Wanted.GONE) is leaves_as


@pytest.mark.parametrize(
    ("asked_for", "chance", "wait"),
    [
        (None, 0.0, 10.0),
        (None, 0.999, 9.001),  # early by a tenth at most, never late
        (4.0, 0.0, 4.0),
        (4.0, 0.5, 3.8),
        (0.001, 0.0, 0.1),
        (1e9, 0.0, 3600.0),
        (0.0, 0.0, 10.0),
        (-1.0, 0.0, 10.0),
        (math.nan, 0.0, 10.0),
        (math.inf, 0.0, 10.0),
    ],
)
def test_the_registry_sets_the_interval_of_heartbeats(
    asked_for: float | None, chance: float, wait: float
) -> None:
    assert gone_on(NEW, Wanted.UP, RegistryResponse(201, asked_for), chance)[1] == pytest.approx(
        wait
    )


def test_the_interval_holds_until_the_registry_sets_another() -> None:
    now, wait = gone_on(NEW, Wanted.UP, RegistryResponse(201, 4.0))
    now, wait = gone_on(now, Wanted.UP, RegistryResponse(200))
    assert wait == 4.0
    now, wait = gone_on(now, Wanted.UP, RegistryResponse(200, 5.0))
    assert wait == 5.0


def test_an_unknown_instance_registers_at_once() -> None:
    assert gone_on(UP, Wanted.UP, RegistryResponse(404))[1] == 0.0


def failing(
    standing: RegistrationState, answer: RegistryResponse, chance: float, times: int, **rules: Any
):
    for _ in range(times):
        standing, wait = gone_on(standing, Wanted.UP, answer, chance, **rules)
        yield standing, wait


def test_retries_wait_for_a_random_time_from_a_doubling_range() -> None:
    waits = [wait for _, wait in failing(NEW, RegistryResponse(None), 0.5, 8)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert {wait for _, wait in failing(NEW, RegistryResponse(None), 0.0, 8)} == {LEAST_WAIT}
    *_, (_, longest) = failing(UP, RegistryResponse(None), 0.9999, 100)
    assert longest < 10.0  # within the time after which a silent instance is unhealthy


def test_a_rejected_step_is_retried_less_often() -> None:
    *_, (standing, wait) = failing(NEW, RegistryResponse(401), 0.5, 10)
    assert wait == 30.0
    assert standing.refused
    assert not gone_on(standing, Wanted.UP, RegistryResponse(201))[0].refused


@pytest.mark.parametrize(("asked", "wait"), [(7.0, 7.0), (1e9, 60.0), (0.0, 0.25)])
def test_retry_after_delays_the_next_step(asked: float, wait: float) -> None:
    assert gone_on(UP, Wanted.UP, RegistryResponse(503, retry_after=asked), 0.5)[1] == wait


def test_the_next_registry_is_tried_at_once_and_a_wait_follows_the_last() -> None:
    seen = [
        (now.place, wait) for now, wait in failing(UP, RegistryResponse(None), 0.5, 6, registries=3)
    ]
    for at, wait in ((0, 0.25), (3, 0.5)):
        assert seen[at : at + 3] == [(1, LEAST_WAIT), (2, LEAST_WAIT), (0, wait)]


def test_a_registry_that_responds_is_used_again() -> None:
    now, _ = gone_on(NEW, Wanted.UP, RegistryResponse(None), registries=2)
    now, _ = gone_on(now, Wanted.UP, RegistryResponse(201), registries=2)
    assert (now.place, now.failures) == (1, 0)
    now, _ = gone_on(now, Wanted.UP, RegistryResponse(404), registries=2)
    assert now.place == 1


@pytest.mark.parametrize(
    "setting",
    [{"registries": 0}, {"interval": 0}, {"backoff": -1}, {"backoff_at_most": 3601}],
)
def test_a_setting_out_of_its_range_is_rejected_by_name(setting: dict[str, Any]) -> None:
    [name] = setting
    with pytest.raises(ValueError, match=name):
        RegistrationRules(**setting)


def test_the_default_rules() -> None:
    assert RULES.interval == 10.0
