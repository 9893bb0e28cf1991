"""The threads of a worker, shared: bursts wait, and a hanging service leaves threads to others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.proxy.test_bulkhead import FULL, GIVEN, ask
from tests.support.objects import hold_locks
from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.http.problem import Refusal
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.bulkhead import Compartment, Slot, ThreadShareRules, ThreadShares
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.testing.backend import Backend, reply
from wsgigate.testing.fakes import FakeClock

InChild = Callable[[Callable[[], bool]], bool]


def shares_of(clock: FakeClock, threads: int = 4, services: int = 2, **given: Any) -> ThreadShares:
    rules = ThreadShareRules(threads=threads, services=services, **given)
    return ThreadShares(rules, clock=clock)


def taken(share: Compartment, times: int) -> list[Slot]:
    return [share.enter() for _ in range(times)]


def waits(share: Compartment, count: int) -> None:
    """Return once *count* requests wait for a slot."""
    for _ in range(2000):
        if share.status()["waiting"] == count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(share.status())


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_requests_above_the_share_wait(clock: FakeClock, threads: ThreadPoolExecutor) -> None:
    share = shares_of(clock).compartment()
    held = taken(share, 3)
    first: Future[Slot] = threads.submit(share.enter)
    waits(share, 1)
    second = threads.submit(share.enter)
    waits(share, 2)
    assert share.status() == {"inFlight": 3, "maxInFlight": 3, "waiting": 2, "refused": 0}
    held[0].leave()
    held[0].leave()  # nothing more is given back
    first.result(20)
    assert share.status()["waiting"] == 1
    held[1].leave()
    second.result(20)
    assert share.status() == {"inFlight": 3, "maxInFlight": 3, "waiting": 0, "refused": 0}


def test_a_slow_service_waits_only_while_a_thread_is_free(
    clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    shares = shares_of(clock, services=3)  # of four threads, one may have two
    slow, other = shares.compartment(), shares.compartment()
    held = taken(slow, 2)
    clock.now += 1.5
    waiting = threads.submit(slow.enter)
    waits(slow, 1)
    [slot] = taken(other, 1)  # the last thread: who waits for a slow service goes
    with pytest.raises(Refusal) as refused:
        waiting.result(20)
    assert refused.value.problem.status == 503
    assert "slow" in str(refused.value)
    assert slow.status() == {"inFlight": 2, "maxInFlight": 2, "waiting": 0, "refused": 1}
    slot.leave()
    again = threads.submit(slow.enter)
    waits(slow, 1)
    with pytest.raises(Refusal):
        slow.enter()  # it would be the last thread
    held[0].leave()
    again.result(20)


def test_a_service_that_starts_hanging_frees_its_waiting_threads(
    clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    shares = shares_of(clock)
    hanging, other = shares.compartment(), shares.compartment()
    taken(hanging, 3)
    waiting = threads.submit(hanging.enter)  # in a burst that holds all four threads
    waits(hanging, 1)
    clock.now += 1.1
    with pytest.raises(Refusal):
        waiting.result(20)
    other.enter().leave()


def test_a_service_that_is_always_slow_may_wait_longer(
    clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    share = shares_of(clock).compartment()
    [first] = taken(share, 1)
    clock.now += 1.4  # what it takes
    first.answered()
    first.leave()
    held = taken(share, 3)
    waiting = threads.submit(share.enter)
    waits(share, 1)
    clock.now += 1.4
    held[0].leave()
    waiting.result(20)
    assert share.status()["refused"] == 0


def test_no_request_waits_longer_than_the_limit(
    clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    shares = shares_of(clock, services=3, longest_wait=3.0)
    share = shares.compartment()
    taken(share, 2)
    waiting = threads.submit(share.enter)
    waits(share, 1)
    clock.now += 3.0
    with pytest.raises(Refusal):
        waiting.result(20)


def test_websockets_hold_threads_but_do_not_make_a_service_slow(
    clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    shares = shares_of(clock, threads=8)  # of which two are left to others
    share = shares.compartment()
    for slot in taken(share, 4):
        slot.tunnelled()
    clock.now += 3600
    held = taken(share, 3)  # of the four that are left
    waiting = threads.submit(share.enter)
    waits(share, 1)
    assert share.status()["inFlight"] == 7
    held[0].tunnelled()  # so it counts no more for the share
    waiting.result(20)
    held[0].leave()
    assert share.status() == {"inFlight": 7, "maxInFlight": 6, "waiting": 0, "refused": 0}


def test_websockets_whose_threads_were_replaced_hold_none(clock: FakeClock) -> None:
    shares = shares_of(clock, threads=4)
    share, other = shares.compartment(), shares.compartment()
    tunnels = []
    for _ in range(20):
        [place] = taken(share, 1)
        place.tunnelled(True)
        tunnels.append(place)
    held = taken(other, 3)
    assert (share.status()["inFlight"], other.status()["inFlight"]) == (20, 3)
    for place in (*tunnels, *tunnels, *held):
        place.leave()
    assert (share.status()["inFlight"], other.status()["inFlight"]) == (0, 0)
    assert len(taken(share, 3)) == 3


def test_a_fixed_limit_applies_at_once_and_reduces_the_shares_of_others(clock: FakeClock) -> None:
    shares = shares_of(clock, threads=4)
    fixed, free, other = shares.compartment(2), shares.compartment(0), shares.compartment()
    taken(fixed, 2)
    with pytest.raises(Refusal):
        fixed.enter()
    assert fixed.status() == {"inFlight": 2, "maxInFlight": 2, "refused": 1}
    assert len(taken(free, 1)) == 1
    taken(other, 1)
    assert len(taken(free, 5)) == 5  # no limit is none
    assert free.status()["refused"] == 0


@pytest.mark.parametrize("most", [-1, 1.5, True])
def test_an_invalid_limit_is_rejected(clock: FakeClock, most: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        shares_of(clock).compartment(most)


def test_a_forked_worker_counts_its_own_requests(clock: FakeClock, in_child: InChild) -> None:
    shares = shares_of(clock)
    share = shares.compartment()
    taken(share, 3)

    def counts() -> bool:
        taken(share, 3)
        return share.status()["inFlight"] == 3

    with hold_locks(shares):
        assert in_child(counts)
    assert share.status()["inFlight"] == 3


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
def test_a_forwarder_rejects_requests_above_the_share(
    given: Callable[[], dict[str, Any]], backend: Backend, sessions: Sessions, clock: FakeClock
) -> None:
    backend.answers = [reply(b"soon")]
    shares = shares_of(clock, threads=2)
    share, other = shares.compartment(), shares.compartment()
    app = Forwarder(
        Pool("svc", [Instance(backend.url)]),
        sessions=sessions,
        resilience=Resilience(bulkhead=share, **given()),
    )
    assert ask(app).text == "soon"
    assert share.status()["inFlight"] == 0
    [held] = taken(share, 1)
    other.enter()
    clock.now += 2
    refused = ask(app)
    assert {key: refused.get_json()[key] for key in FULL} == FULL
    assert refused.headers["Retry-After"] == "1"
    held.leave()
    assert ask(app).text == "soon"
