"""Many health checks in one thread: hanging checks delay no other, and all is cleaned up."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from tests.support.objects import kept
from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.proxy.pool import Pool
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, Received, reply

Found = SimpleQueue[tuple[str, CheckResult | Exception]]
CHECK = HealthCheck("/health", interval=60.0, timeout=25.0)


@pytest.fixture
def prober() -> Iterator[Prober]:
    """Yield an prober, and stop it after."""
    prober = Prober()
    yield prober
    prober.stop()


@pytest.fixture
def silent() -> Iterator[int]:
    """Yield a port of all of loopback where thousands may connect and none is answered."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(4096)
        yield listener.getsockname()[1]


def many(count: int, port: int) -> list[Instance]:
    """Return instances on as many addresses of loopback."""
    return [Instance(f"http://127.0.{n // 250}.{n % 250 + 1}:{port}") for n in range(count)]


class Well:
    """A server on all of loopback that answers one request a connection.

    :ivar asked: How often each host was asked for.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._changed = threading.Condition()

    def __enter__(self) -> Well:
        self._listener = socket.socket()
        self._listener.bind(("", 0))
        self._listener.listen(1024)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at after each request."""
        with self._changed:
            assert self._changed.wait_for(condition, 60)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                host = connection.getsockname()[0]
                try:
                    connection.recv(4096)
                    connection.sendall(reply())
                except OSError:  # the check has timed out, on a slow machine
                    pass
            with self._changed:
                self.asked[host] += 1
                self._changed.notify_all()


def brief(outcome: CheckResult | Exception) -> tuple[bool, int | None, str]:
    assert isinstance(outcome, CheckResult)
    return outcome.ok, outcome.status, outcome.error


def open_files(prober: Prober) -> list[int]:
    kinds = (socket.socket, selectors.BaseSelector)
    return [each.fileno() for each in kept(prober) if isinstance(each, kinds)]


def threads() -> list[str]:
    return [thread.name for thread in started("health")]


def test_no_thread_runs_before_the_first_check_or_after_close(
    prober: Prober, backend: Backend
) -> None:
    assert threads() == []
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    for _ in range(2):
        prober.probe("shop", Instance(backend.url), CHECK, found.put)
        assert brief(found.get(timeout=30)) == (True, 200, "")
        assert threads() == ["wsgigate-health-prober"]
        prober.stop()
        until(lambda: not threads())
    prober.stop()


def test_hundreds_of_hanging_checks_use_one_thread_and_delay_no_other(
    backend: Backend, silent: int
) -> None:
    now = 0.0
    prober = Prober(clock=lambda: now)
    found: Found = SimpleQueue()
    hasty = HealthCheck("/health", timeout=0.5)
    for instance in many(300, silent):
        prober.probe("shop", instance, hasty, lambda outcome: found.put(("hangs", outcome)))
    for _ in range(20):
        prober.probe(
            "shop", Instance(backend.url), CHECK, lambda outcome: found.put(("well", outcome))
        )

    def ended(count: int) -> list[tuple[str, bool, int | None, str]]:
        got = [found.get(timeout=30) for _ in range(count)]
        return [(name, *brief(outcome)) for name, outcome in got]

    assert ended(20) == [("well", True, 200, "")] * 20
    now = 0.6
    assert ended(300) == [("hangs", False, None, "Timeout")] * 300
    assert threads() == ["wsgigate-health-prober"]
    assert prober.running == 0
    [selector] = [each for each in kept(prober) if isinstance(each, selectors.BaseSelector)]
    assert len(selector.get_map()) == 1
    prober.stop()


def test_a_response_that_arrived_while_the_thread_was_blocked_counts() -> None:
    now, answered, held = 0.0, threading.Event(), threading.Event()

    def answer(connection: socket.socket, request: Received) -> None:
        if request.target == "/late":
            assert held.wait(30)
        connection.sendall(reply())
        if request.target == "/late":
            answered.set()

    def hold_up(_outcome: object) -> None:  # as a store does that is slow
        nonlocal now
        held.set()
        assert answered.wait(30)
        now += 100.0

    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    prober = Prober(clock=lambda: now)
    with Backend(answer) as backend:
        prober.probe("shop", Instance(backend.url), HealthCheck("/late"), found.put)
        prober.probe("shop", Instance(backend.url), HealthCheck("/"), hold_up)
        outcome = found.get(timeout=30)
        prober.stop()
    assert brief(outcome) == (True, 200, "")


def test_an_exception_of_a_callback_affects_no_other_check(
    prober: Prober, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()

    failing = threading.Event()

    def fail(_outcome: object) -> None:
        failing.set()
        raise RuntimeError("a bug")

    prober.probe("shop", Instance(backend.url), CHECK, fail)
    assert failing.wait(30)
    prober.probe("shop", Instance(backend.url), CHECK, found.put)
    assert found.get(timeout=30)
    assert [record.getMessage() for record in caplog.records] == [
        "The callback of a health check failed"
    ]


def test_a_lack_of_local_resources_is_no_failure_of_an_instance(backend: Backend) -> None:
    def lack(_address: object, _port: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    prober = Prober({"shop": TlsPolicy(allowed=lack)})
    prober.probe("shop", Instance(backend.url), CHECK, found.put)
    assert isinstance(found.get(timeout=30), OSError)
    prober.probe("other", Instance(backend.url), CHECK, found.put)
    assert brief(found.get(timeout=30)) == (True, 200, "")
    prober.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(prober: Prober, backend: Backend) -> None:
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()

    def end_the_thread(_outcome: object) -> None:
        raise SystemExit

    prober.probe("shop", Instance(backend.url), CHECK, end_the_thread)
    until(lambda: not threads())
    prober.probe("shop", Instance(backend.url), CHECK, found.put)
    assert brief(found.get(timeout=30)) == (True, 200, "")


def test_close_aborts_running_checks_and_closes_their_sockets(prober: Prober) -> None:
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    asked = threading.Event()

    def hang(connection: socket.socket, _request: Received) -> bool:
        asked.set()
        return bool(connection.recv(1))

    with Backend(hang) as backend:
        prober.probe("shop", Instance(backend.url), CHECK, found.put)
        assert asked.wait(30)
        prober.stop()
        backend.wait_until_closed()
    assert found.empty()


def test_a_forked_process_has_a_thread_of_its_own(prober: Prober, backend: Backend) -> None:
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    prober.probe("shop", Instance(backend.url), CHECK, found.put)
    assert found.get(timeout=30)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            prober.probe("shop", Instance(backend.url), CHECK, found.put)
            outcome = found.get(timeout=30)
            prober.stop()
            code = 0 if isinstance(outcome, CheckResult) and outcome.ok else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    prober.probe("shop", Instance(backend.url), CHECK, found.put)
    assert found.get(timeout=30)


def test_a_forked_process_closes_its_copies_of_the_parents_sockets(prober: Prober) -> None:
    """Otherwise a child keeps the connection open for as long as it lives."""
    asked = threading.Event()

    def hang(connection: socket.socket, _request: Received) -> bool:
        asked.set()
        return bool(connection.recv(1))

    with Backend(hang) as backend:
        prober.probe("shop", Instance(backend.url), CHECK, lambda outcome: None)
        assert asked.wait(30)
        # once a later check has ended, the thread is done with the steps of the first
        ended = threading.Event()
        prober.probe("shop", Instance("http://127.0.0.1:1"), CHECK, lambda outcome: ended.set())
        assert ended.wait(30)
        # a selector, a pair of sockets that wake it, and the check's
        held = until(lambda: numbers if len(numbers := open_files(prober)) == 4 else None)
        child = os.fork()
        if child == 0:
            left = len(held)
            for number in held:
                try:
                    os.fstat(number)
                except OSError:
                    left -= 1
            os._exit(left)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        prober.stop()  # and here all of it goes on
        backend.wait_until_closed()


def test_a_thousand_hanging_checks_delay_neither_known_nor_new_instances(
    silent: int,
) -> None:
    """Over real sockets: none of the thousand is refused, and none is ever answered."""
    check = HealthCheck("/", interval=0.2, timeout=0.15, unhealthy_after=1)
    flights = 0
    with Well() as well:
        pools = {
            "hung": Pool("hung", many(1000, silent)),
            "well": Pool("well", many(50, well.port)),
        }
        prober = Prober()
        checker = HealthChecker(pools, dict.fromkeys(pools, check), MemoryStore(), prober, most=128)

        def all_asked(hosts: int, times: int) -> bool:
            nonlocal flights
            flights = max(flights, prober.running)
            return len(well.asked) == hosts and min(well.asked.values()) >= times

        checker.start()
        try:
            well.wait(lambda: all_asked(50, 3))
            pools["well"].renew(many(51, well.port))
            well.wait(lambda: all_asked(51, 3))
            well.wait(lambda: not pools["hung"].available())
        finally:
            checker.stop()
    assert 64 <= flights <= 128
