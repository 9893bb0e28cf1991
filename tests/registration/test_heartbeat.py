"""The thread that keeps an instance registered: its requests, and their order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wsgigate.registration.heartbeat import Heartbeat
from wsgigate.rules.registration import Phase, RegistrationState, RegistryResponse, Step, Wanted

DONE = RegistryResponse(200, 0.1)
NOT_THERE = RegistryResponse(404, why="status 404")
SILENT = RegistryResponse(None, why="no connection")


class Registries:
    """Stands for the registries: answers as it was told to, and notes what it was asked."""

    name = "users/a"

    def __init__(self, number: int = 1) -> None:
        self.registries = tuple(f"http://registry{place}" for place in range(number))
        self.answer: Callable[[Step, int], RegistryResponse] = lambda step, place: DONE
        self.asked: list[tuple[Step, Wanted, int]] = []
        self._changed = threading.Condition()

    def send(self, step: Step, wanted: Wanted, place: int) -> RegistryResponse:
        with self._changed:
            self.asked.append((step, wanted, place))
            self._changed.notify_all()
        return self.answer(step, place)

    def steps(self) -> list[Step]:
        """Return what was asked, without what repeats itself."""
        asked = [step for step, _, _ in self.asked]
        return [step for at, step in enumerate(asked) if at == 0 or asked[at - 1] is not step]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 10.0), self.asked

    def wait_for(self, *steps: Step) -> None:
        self.wait(lambda: self.steps()[-len(steps) :] == list(steps))


class Turn:
    """The lead, given and taken away by a test."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.asked = threading.Event()
        self.released = False

    def take(self) -> bool:
        self.asked.set()
        return self.leads

    def release(self) -> None:
        self.released = True


@pytest.fixture
def registries() -> Registries:
    return Registries()


@pytest.fixture
def started() -> Iterator[Callable[..., Heartbeat]]:
    heartbeats: list[Heartbeat] = []

    def start(registries: Registries, **options: Any) -> Heartbeat:
        heartbeat = Heartbeat(lambda: registries, random=lambda: 0.0, **options)
        heartbeats.append(heartbeat)
        heartbeat.start()
        return heartbeat

    yield start
    for heartbeat in heartbeats:
        heartbeat.end(leave=False, timeout=10.0)


def test_an_instance_registers_sends_heartbeats_drains_and_deregisters(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    heartbeat = started(registries, wanted=Wanted.STARTING)
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    heartbeat.want(Wanted.UP)
    registries.wait_for(Step.UPDATE, Step.HEARTBEAT)
    assert not heartbeat.settled(0)
    heartbeat.want(Wanted.DRAINING)
    assert heartbeat.settled(10.0)
    assert heartbeat.drains
    registries.wait_for(Step.UPDATE, Step.HEARTBEAT)
    heartbeat.end(leave=True, timeout=10.0)
    assert registries.steps() == [
        *(Step.REGISTER, Step.HEARTBEAT, Step.UPDATE, Step.HEARTBEAT),
        *(Step.UPDATE, Step.HEARTBEAT, Step.DEREGISTER),
    ]
    told = [wanted for step, wanted, _ in registries.asked if step is Step.UPDATE]
    assert told == [Wanted.UP, Wanted.DRAINING]


def test_an_instance_that_the_registry_has_forgotten_registers_again(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    started(registries)
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    registries.answer = lambda step, place: NOT_THERE if step is Step.HEARTBEAT else DONE
    registries.wait(lambda: [step for step, _, _ in registries.asked].count(Step.REGISTER) >= 3)


def test_a_draining_instance_that_was_forgotten_does_not_register_again(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    heartbeat = started(registries)
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    registries.answer = lambda step, place: NOT_THERE
    heartbeat.want(Wanted.DRAINING)
    assert heartbeat.settled(10.0)
    heartbeat.end(leave=True, timeout=10.0)
    assert Step.REGISTER not in [step for step, _, _ in registries.asked][1:]


def test_when_one_registry_fails_the_next_one_is_used(started: Callable[..., Heartbeat]) -> None:
    registries = Registries(3)
    registries.answer = lambda step, place: DONE if place == 2 else SILENT
    started(registries)
    registries.wait(lambda: len(registries.asked) >= 5)
    assert [place for _, _, place in registries.asked[:5]] == [0, 1, 2, 2, 2]


def test_deregistration_tries_each_registry_once(started: Callable[..., Heartbeat]) -> None:
    registries = Registries(2)
    heartbeat = started(registries)
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    registries.answer = lambda step, place: SILENT
    heartbeat.end(leave=True, timeout=10.0)
    ends = [place for step, _, place in registries.asked if step is Step.DEREGISTER]
    assert sorted(ends) == [0, 1]


def test_settled_returns_when_no_registry_can_be_reached(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    registries.answer = lambda step, place: SILENT
    heartbeat = started(registries)
    registries.wait_for(Step.REGISTER)
    heartbeat.want(Wanted.DRAINING)
    assert heartbeat.settled(10.0)
    assert not heartbeat.drains


def test_only_the_leader_sends(registries: Registries, started: Callable[..., Heartbeat]) -> None:
    turn = Turn(leads=False)
    heartbeat = started(registries, lead=turn)
    assert turn.asked.wait(30)
    heartbeat.want(Wanted.DRAINING)
    assert heartbeat.settled(10.0)
    heartbeat.end(leave=True, timeout=10.0)
    assert registries.asked == []
    assert turn.released


def test_a_new_leader_registers(registries: Registries, started: Callable[..., Heartbeat]) -> None:
    turn = Turn(leads=False)
    started(registries, lead=turn)
    assert turn.asked.wait(30)
    turn.leads = True
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    turn.leads = False
    turn.asked.clear()
    assert turn.asked.wait(30)


def test_an_existing_registration_is_updated_not_registered_again(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    known = RegistrationState(Phase.REGISTERED, reported=Wanted.UP, sent=True)
    heartbeat = started(registries, wanted=Wanted.DRAINING, standing=known)
    assert heartbeat.settled(10.0)
    assert registries.asked[0] == (Step.UPDATE, Wanted.DRAINING, 0)


def test_nothing_is_sent_before_the_process_is_ready(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    looked, ready = threading.Event(), threading.Event()

    def look() -> bool:
        looked.set()
        return ready.is_set()

    heartbeat = started(registries, ready=look)
    assert looked.wait(30)
    assert not heartbeat.begun
    assert registries.asked == []
    ready.set()
    registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
    assert heartbeat.begun
    never = started(registries, ready=lambda: False)
    asked = len(registries.asked)
    never.want(Wanted.UP)
    never.end(leave=True, timeout=10.0)
    assert Step.DEREGISTER not in [step for step, _, _ in registries.asked[asked:]]


def test_a_function_is_called_between_steps(
    registries: Registries, started: Callable[..., Heartbeat]
) -> None:
    called = threading.Event()
    started(registries).call(called.set)
    assert called.wait(30)


def test_changes_and_failures_are_logged_once(
    registries: Registries, started: Callable[..., Heartbeat], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "wsgigate.registration"):
        heartbeat = started(registries)
        registries.wait_for(Step.REGISTER, Step.HEARTBEAT)
        registries.answer = lambda step, place: SILENT
        asked = len(registries.asked)
        registries.wait(lambda: len(registries.asked) >= asked + 5)
        registries.answer = lambda step, place: DONE
        heartbeat.end(leave=True, timeout=10.0)
    assert caplog.messages == [
        "users/a is registered at http://registry0",
        "1 failed attempts at a registry since the last such message; the last: "
        "http://registry0: users/a: heartbeat: no connection",
        "users/a is gone at http://registry0",
    ]


def test_a_client_that_cannot_be_made_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def connect() -> Registries:
        raise ValueError("REGISTRY_URL: is wrong")

    heartbeat = Heartbeat(connect)
    heartbeat.start()
    assert heartbeat.settled(10.0)
    heartbeat.end(leave=True, timeout=10.0)
    assert caplog.messages == ["Registration not started: REGISTRY_URL: is wrong"]
