"""Hedged requests: the first response wins, and the other attempt is aborted.

The backends answer on command, so no test depends on speed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.proxy.clients import Departing, Reader, Watched, pool_of
from wsgigate.client.adapter import Sessions
from wsgigate.coordination.circuit import Circuit, Permit
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import INSTANCE, ClientLeft, close_body
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.sticky import Stickiness
from wsgigate.rules.circuit import CircuitRules, Outcome
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.retry import HedgeRules, RetryBudget, RetryRules
from wsgigate.runtime.threads import ScheduledCall, Timer
from wsgigate.testing.backend import Backend, Received, reply
from wsgigate.testing.fakes import Server, new_environ

BAD = reply(b"busy", status="503 Service Unavailable")
SOON = HedgeRules(after=0.01)
LATE = HedgeRules(after=60)

Make = Callable[..., "HedgingClient"]


def silent(connection: socket.socket, _request: Received) -> bool:
    return connection.recv(1) != b""  # until the gateway lets go


class Held:
    """Answers when it is told to, or not at all."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened = threading.Event()

    def __call__(self, connection: socket.socket, _request: Received) -> None:
        assert self.opened.wait(20)
        connection.sendall(self.data)


def once_asked(other: Backend, data: bytes, number: int = 1) -> Callable[..., None]:
    """Return an answer with *data* that waits until *other* has got so many requests."""

    def answer(connection: socket.socket, _request: Received) -> None:
        other.wait_for_requests(number)
        connection.sendall(data)

    return answer


class AfterTheFirst(Timer):
    """Gives the first request all the time it wants."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def after(self, seconds: float, call: Callable[[], object]) -> ScheduledCall:
        self._seen += 1
        return super().after(60.0 if self._seen == 1 else seconds, call)


class HedgingClient(Reader):
    pool: Watched


@pytest.fixture
def make(sessions: Sessions) -> Make:
    """Return a maker of clients of a forwarder that asks the *urls* one after the other."""

    def make(
        *urls: str,
        rules: HedgeRules = SOON,
        given: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
        **more: Any,
    ) -> HedgingClient:
        resilience = Resilience(**{"hedge": rules, "timer": Timer(), **(given or {})})
        made = pool_of(*urls, **(pool or {}))
        client = HedgingClient(
            Forwarder(made, sessions=sessions, resilience=resilience, **more), use_cookies=False
        )
        client.pool = made
        return client

    return make


def test_the_first_response_wins_and_the_other_attempt_is_aborted(make: Make) -> None:
    with Backend(silent) as slow, Backend(once_asked(slow, reply(b"fast"))) as fast:
        client = make(slow.url, fast.url)
        assert client.get("/").data == b"fast"
        slow.wait_until_closed()
        client.pool.wait_until_idle()
        assert (len(slow.requests), len(fast.requests)) == (1, 1)
        assert slow.requests[0].target == fast.requests[0].target


def test_an_aborted_attempt_is_not_resent_on_another_connection(make: Make) -> None:
    """As it would be if the instance had closed one that was kept."""
    with (
        Backend(reply(b"kept"), silent) as slow,
        Backend(once_asked(slow, reply(b"fast"), 2)) as fast,
    ):
        given, pool = {"timer": AfterTheFirst()}, {"balance": lambda _: First(slow.url)}
        client = make(slow.url, fast.url, given=given, pool=pool)
        assert client.get("/").data == b"kept"
        assert client.get("/").data == b"fast"
        slow.wait_until_closed()
        assert (slow.connections, len(slow.requests)) == (1, 2)


def test_a_fast_response_is_not_hedged(backend: Backend, make: Make) -> None:
    with Backend() as other:
        client = make(backend.url, other.url, rules=LATE)
        for _ in range(4):
            assert client.get("/").data == b"ok"
        assert (len(backend.requests), len(other.requests)) == (2, 2)
        client.pool.wait_until_idle()


def test_the_first_attempt_may_still_win(make: Make) -> None:
    first, second = Held(reply(b"first")), Held(reply(b"second"))
    with Backend(first) as one, Backend(silent) as other:
        client = make(one.url, other.url)

        def answer() -> None:
            other.wait_for_requests(1)
            first.opened.set()

        thread = threading.Thread(target=answer)
        thread.start()
        environ = new_environ()
        assert Server().serve(client.application, environ).chunks == [b"first"]
        assert environ[INSTANCE] == one.url.removeprefix("http://")
        thread.join(20)
        other.wait_until_closed()
        client.pool.wait_until_idle()
    second.opened.set()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_an_unsafe_method_is_not_hedged(method: str, make: Make) -> None:
    assert_not_hedged(make, {"method": method})


def test_a_request_with_a_body_is_not_hedged(make: Make) -> None:
    assert_not_hedged(make, {"method": "GET", "data": b"body"})


def assert_not_hedged(make: Make, asked: dict[str, Any]) -> None:
    held = Held(reply(b"only"))
    with Backend(held) as one, Backend() as other:
        client = make(one.url, other.url, rules=HedgeRules(after=0.001))
        timer = Timer()
        timer.after(0.1, held.opened.set)  # a hundred times as long
        assert client.open("/", **asked).data == b"only"
        assert other.connections == 0


def test_a_failure_does_not_win_while_another_attempt_runs(make: Make) -> None:
    held = Held(reply(b"well"))
    with Backend(held) as one, Backend(told(BAD, held.opened)) as other:
        client = make(one.url, other.url)
        assert client.get("/").data == b"well"
        assert len(other.requests) == 1
        client.pool.wait_until_idle()


def told(data: bytes, then: threading.Event) -> Callable[[socket.socket, Received], None]:
    """Return an answer with *data*, behind which *then* is set."""

    def answer(connection: socket.socket, _request: Received) -> None:
        connection.sendall(data)
        then.set()

    return answer


@pytest.mark.parametrize("first", [BAD, None], ids=["fails", "breaks"])
def test_the_hedged_attempt_is_awaited_when_the_first_fails(
    first: bytes | None, make: Make
) -> None:
    held = Held(reply(b"well"))
    fails = threading.Event()

    def failing(connection: socket.socket, _request: Received) -> bool:
        assert fails.wait(20)
        if first is not None:
            connection.sendall(first)
        held.opened.set()
        return False

    def second(connection: socket.socket, request: Received) -> None:
        fails.set()
        held(connection, request)

    with Backend(failing) as one, Backend(second) as other:
        client = make(one.url, other.url)
        answer = client.get("/")
        assert (answer.status_code, answer.data) == (200, b"well")
        client.pool.wait_until_idle()


def test_the_client_gets_the_first_failure_when_both_fail(make: Make) -> None:
    opened = threading.Event()

    def failing(connection: socket.socket, _request: Received) -> None:
        assert opened.wait(20)
        connection.sendall(reply(b"first", status="500 No"))

    with Backend(failing) as one, Backend(told(BAD, opened)) as other:
        client = make(one.url, other.url)
        answer = client.get("/")
        assert (answer.status_code, answer.data) == (500, b"first")
        client.pool.wait_until_idle()


def test_a_single_instance_is_not_hedged(make: Make) -> None:
    held = Held(reply(b"only"))
    with Backend(held) as one:
        client = make(one.url, rules=HedgeRules(after=0.001))
        Timer().after(0.1, held.opened.set)
        assert client.get("/").data == b"only"
        assert len(one.requests) == 1
        client.pool.wait_until_idle()


def test_hedged_attempts_use_the_retry_budget(make: Make) -> None:
    """A fifth of the requests, so the fifth that is slow is the first with another."""
    timer = OnCommand()

    def hedged(connection: socket.socket, request: Received) -> None:
        timer.calls.pop()()
        connection.sendall(reply(b"slow"))

    def hung(connection: socket.socket, request: Received) -> bool:
        timer.calls.pop()()
        return silent(connection, request)

    given = {"budget": RetryBudget(0.2, floor=0, period=3600.0), "timer": timer}
    with Backend(*[hedged] * 4, hung) as slow, Backend(reply(b"fast")) as fast:
        pool = {"balance": lambda _: First(slow.url)}
        client = make(slow.url, fast.url, given=given, pool=pool)
        for _ in range(4):
            assert client.get("/").data == b"slow"
        assert fast.connections == 0
        assert client.get("/").data == b"fast"
        client.pool.wait_until_idle()


class First:
    """Picks the member at *url* while it may."""

    timed = False

    def __init__(self, url: str) -> None:
        self._url = url

    def set_members(self, members: Any, draining: Any = ()) -> None:
        self._members = sorted(members, key=lambda member: member.name != self._url)

    def pick(self, key: str | None = None, avoid: Any = (), now: float = 0.0) -> Any:
        return next((m for m in self._members if m not in avoid), self._members[0])

    def answered(self, *told: Any) -> None:
        pass


class OnCommand(Timer):
    """Keeps the calls, and makes them when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def after(self, seconds: float, call: Callable[[], object]) -> ScheduledCall:
        self.calls.append(call)
        return super().after(600.0, call)


def test_an_open_circuit_prevents_hedging(make: Make) -> None:
    timer = OnCommand()
    circuit = Circuit("svc", CircuitRules(consecutive_failures=1))
    held = Held(reply(b"only"))

    def fails_meanwhile(connection: socket.socket, request: Received) -> None:
        permit = circuit.admit(time.monotonic())
        assert isinstance(permit, Permit)
        permit.done(Outcome.FAILED)
        [hedge] = timer.calls
        hedge()
        Timer().after(0.1, held.opened.set)
        held(connection, request)

    with Backend(fails_meanwhile) as one, Backend() as other:
        client = make(one.url, other.url, given={"circuit": circuit, "timer": timer})
        assert client.get("/").data == b"only"
        assert other.connections == 0
        client.pool.wait_until_idle()


def test_an_aborted_attempt_is_no_failure(make: Make) -> None:
    circuit = Circuit("svc", CircuitRules(consecutive_failures=1))
    outlier = OutlierRules(consecutive_failures=1)
    with Backend(silent) as slow, Backend(once_asked(slow, reply(b"fast"))) as fast:
        client = make(slow.url, fast.url, given={"circuit": circuit}, pool={"outlier": outlier})
        assert client.get("/").data == b"fast"
        slow.wait_until_closed()
        client.pool.wait_until_idle()
        assert circuit.status()[1:3] == (0, 1)
        assert client.pool.ejected() == []


def test_the_winning_response_streams_and_releases_its_connection(make: Make) -> None:
    opened = threading.Event()

    def streams(connection: socket.socket, _request: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        assert opened.wait(20)
        connection.sendall(b"-last")

    with Backend(silent) as slow, Backend(streams) as fast:
        client = make(slow.url, fast.url)
        environ = new_environ()
        body = client.application(environ, Server().start_response)
        chunks = iter(body)
        assert next(chunks) == b"first"
        slow.wait_until_closed()
        assert client.pool.in_flight() == {slow.url: 0, fast.url: 1}
        assert environ[INSTANCE] == fast.url.removeprefix("http://")
        opened.set()
        assert next(chunks) == b"-last"
        close_body(body)
        client.pool.wait_until_idle()


def test_the_number_of_hedged_attempts_is_limited(make: Make) -> None:
    with Backend(silent) as one, Backend(silent) as two, Backend(reply(b"third")) as three:
        client = make(one.url, two.url, three.url, rules=HedgeRules(after=0.01, most=2))
        assert client.get("/").data == b"third"
        one.wait_until_closed()
        two.wait_until_closed()
        client.pool.wait_until_idle()


def test_a_disconnect_aborts_both_attempts(sessions: Sessions) -> None:
    disconnects = Departing()
    watch = disconnects.client
    with Backend(silent) as one, Backend(silent) as other:
        pool = pool_of(one.url, other.url)
        resilience = Resilience(hedge=SOON, timer=Timer())
        forwarder = Forwarder(
            pool, sessions=sessions, resilience=resilience, disconnects=disconnects
        )

        def leave() -> None:
            one.wait_for_requests(1)
            other.wait_for_requests(1)
            watch.disconnected()

        thread = threading.Thread(target=leave)
        thread.start()
        assert Reader(forwarder).get("/").status_code == 499
        thread.join(20)
        one.wait_until_closed()
        other.wait_until_closed()
        pool.wait_until_idle()


def test_a_disconnect_after_a_failure_aborts_the_other_attempt(sessions: Sessions) -> None:
    disconnects = Departing()
    watch = disconnects.client
    opened = threading.Event()

    def dies(_connection: socket.socket, _request: Received) -> bool:
        assert opened.wait(20)
        return False

    with Backend(dies) as one, Backend(silent) as other:
        pool = pool_of(one.url, other.url)
        resilience = Resilience(hedge=SOON, timer=Timer())
        forwarder = Forwarder(
            pool, sessions=sessions, resilience=resilience, disconnects=disconnects
        )

        def leave() -> None:
            other.wait_for_requests(1)
            opened.set()
            pool.wait_until(lambda: pool.in_flight()[one.url] == 0)
            watch.disconnected()

        thread = threading.Thread(target=leave)
        thread.start()
        assert Reader(forwarder).get("/").status_code == 502
        thread.join(20)
        other.wait_until_closed()
        pool.wait_until_idle()


def test_a_response_cancels_the_scheduled_attempt(backend: Backend, make: Make) -> None:
    class Kept(Timer):
        def __init__(self) -> None:
            super().__init__()
            self.made: list[ScheduledCall] = []

        def after(self, seconds: float, call: Callable[[], object]) -> ScheduledCall:
            self.made.append(super().after(seconds, call))
            return self.made[-1]

    timer = Kept()
    assert make(backend.url, rules=LATE, given={"timer": timer}).get("/").status_code == 200
    assert [scheduled.call for scheduled in timer.made] == [None]


def test_a_disconnect_while_the_winner_streams_releases_it(sessions: Sessions) -> None:
    disconnects = Departing()
    watch = disconnects.client

    def begins(connection: socket.socket, request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        return silent(connection, request)

    with Backend(silent) as one, Backend(begins) as other:
        pool = pool_of(one.url, other.url)
        resilience = Resilience(hedge=SOON, timer=Timer())
        forwarder = Forwarder(
            pool, sessions=sessions, resilience=resilience, disconnects=disconnects
        )
        body = forwarder(new_environ(), Server().start_response)
        chunks = iter(body)
        assert next(chunks) == b"first"
        watch.disconnected()
        other.wait_until_closed()
        with pytest.raises(ClientLeft):
            next(chunks)
        close_body(body)
        assert set(pool.in_flight().values()) == {0}


def test_a_race_without_a_winner_is_retried(make: Make) -> None:
    opened = threading.Event()

    def failing(connection: socket.socket, _request: Received) -> None:
        assert opened.wait(20)
        connection.sendall(BAD)

    with Backend(failing) as one, Backend(told(BAD, opened), reply(b"well")) as other:
        rules = RetryRules(backoff=0.0)
        client = make(one.url, other.url, given={"retry": rules})
        assert client.get("/").data == b"well"
        assert (len(one.requests), len(other.requests)) == (1, 2)
        client.pool.wait_until_idle()


def test_the_delay_follows_a_quantile_of_the_response_times(make: Make) -> None:
    with Backend() as one, Backend() as other:
        client = make(one.url, other.url, rules=HedgeRules(after="p95"))
        for _ in range(110):
            client.get("/")
        one.answers = other.answers = [silent]
        counted = len(one.requests) + len(other.requests)
        assert counted >= 110

        def answers(connection: socket.socket, _request: Received) -> bool:
            if len(one.requests) + len(other.requests) == counted + 1:
                return silent(connection, _request)
            connection.sendall(reply(b"second"))
            return True

        one.answers = other.answers = [answers]
        assert client.get("/").data == b"second"
        client.pool.wait_until_idle()


def test_an_unreachable_instance_delays_no_response() -> None:
    """Its queue is full: connecting to it waits, and would for all of its time."""
    with socket.socket() as listener, Backend(reply(b"fast")) as fast:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        pool = pool_of(f"http://127.0.0.1:{address[1]}", fast.url)
        sessions = Sessions()
        resilience = Resilience(hedge=HedgeRules(after=0.05), timer=Timer())
        forwarder = Forwarder(
            pool, sessions=sessions, resilience=resilience, connect_timeout=25, timeout=25
        )
        assert Reader(forwarder).get("/").data == b"fast"
        assert set(pool.in_flight().values()) == {0}
        sessions.close()
        for each in waiting:
            each.close()


def test_hedging_cannot_be_combined_with_sticky_sessions(sessions: Sessions) -> None:
    pool = Pool("svc", [Instance("http://a")], sticky=Stickiness("svc", b"a secret of the tests"))
    with pytest.raises(ValueError, match="hedge cannot be combined with sticky"):
        Forwarder(pool, sessions=sessions, resilience=Resilience(hedge=SOON))
