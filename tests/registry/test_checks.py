"""Checks that the registry carries out: one worker sends the probes, all return the results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.discovery.conftest import DOWN, UP, Clock
from tests.registry.compat.conftest import TOKEN, CompatRegistry
from tests.support.stores import Fickle
from wsgigate.auth.bearer import Access
from wsgigate.client.destinations import Destinations
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import OnResult, ProbeRunner
from wsgigate.discovery.sources.registry import OwnRegistry
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.registry import Registry
from wsgigate.registry.api import instance_document
from wsgigate.registry.checks import UNVERIFIED, VERIFIED, RegistryChecks
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.registry.compat.eureka import EurekaApi
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.rules.registry import Status
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, reply

HTTP = {"HTTP": "http://10.0.0.5:8080/actuator/health", "Interval": "10s"}


class Answers:
    """Stands for all instances, and records the probes."""

    def __init__(self) -> None:
        self.outcome: CheckResult | Exception = UP
        self.asked: list[tuple[str, str, HealthCheck]] = []
        self.held: list[OnResult] = []
        self.hold = False
        self.stopped = 0

    def probe(self, service: str, instance: Instance, check: HealthCheck, found: OnResult) -> None:
        self.asked.append((service, instance.url, check))
        if self.hold:
            self.held.append(found)
        else:
            found(self.outcome)

    def stop(self) -> None:
        self.stopped += 1


class Fleet(CompatRegistry):
    """Two workers of a registry, whose rounds are run by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Answers()
        self.workers = [self.worker() for _ in range(2)]
        self.registry = self.workers[0]
        self.consul = ConsulApi(self.registry, self.access)
        self.eureka = EurekaApi(self.registry, self.access)

    def worker(self) -> Registry:
        return Registry(self.store, prober=self.answers, clock=self.clock, random=lambda: 0.5)

    def register(self, *checks: dict[str, Any], **more: Any) -> None:
        document = {"Name": "users", "ID": "a", "Address": "10.0.0.5", "Port": 8080, **more}
        reply = self.ask("PUT", "/v1/agent/service/register", {**document, "Checks": list(checks)})
        assert (reply.status, reply.body) == (200, b"")

    def run(self, seconds: float = 0.0, *, only: int | None = None) -> None:
        """Let time pass with a round of every worker each second."""
        for _ in range(max(1, int(seconds))):
            self.clock.now += 1.0 if seconds else 0.0
            for number, worker in enumerate(self.workers):
                if only in (None, number):
                    assert worker.checks is not None
                    worker.checks.step()
                    worker.expiry.step()

    def states(self) -> list[str]:
        return [
            check["Status"]
            for each in self.ask("GET", "/v1/health/service/users").json
            for check in each["Checks"]
        ]

    def passing(self) -> int:
        return len(self.ask("GET", "/v1/health/service/users?passing").json)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_one_worker_carries_out_checks_and_all_return_the_results(fleet: Fleet) -> None:
    fleet.register(HTTP)
    assert (fleet.states(), fleet.passing()) == (["critical"], 0)
    fleet.run(2)
    assert len(fleet.answers.asked) == 1
    kind, url, check = fleet.answers.asked[0]
    assert (kind, url, check.path) == (VERIFIED, "http://10.0.0.5:8080", "/actuator/health")
    assert (fleet.states(), fleet.passing()) == (["passing"], 1)
    for worker in fleet.workers:
        [entry] = worker.discover("users", only_healthy=True).instances
        assert entry.state is Status.UP
    fleet.run(100)
    assert 9 <= len(fleet.answers.asked) <= 12
    fleet.answers.outcome = DOWN
    fleet.run(12)
    assert (fleet.states(), fleet.passing()) == (["critical"], 0)
    [told] = fleet.ask("GET", "/v1/health/checks/users").json
    assert told["Output"] == "Connection refused"


def test_checks_renew_the_lease_of_an_instance(fleet: Fleet) -> None:
    """A critical instance stays for as long as its registration asks."""
    fleet.answers.outcome = DOWN
    fleet.register(HTTP)
    fleet.register({**HTTP, "DeregisterCriticalServiceAfter": "2m"}, ID="b")
    fleet.run(110)
    assert {entry.instance_id for entry in fleet.registry.discover("users").instances} == {"a", "b"}
    fleet.run(30)
    assert [entry.instance_id for entry in fleet.registry.discover("users").instances] == ["a"]
    fleet.run(300)
    assert [entry.instance_id for entry in fleet.registry.discover("users").instances] == ["a"]


def test_an_instance_that_fails_its_check_is_not_discovered_even_as_the_last(fleet: Fleet) -> None:
    source = OwnRegistry(fleet.registry, "users")
    fleet.register(HTTP)
    fleet.run(2)
    assert len(source.find(threading.Event()).instances) == 1
    fleet.answers.outcome = DOWN
    fleet.run(12)
    source.close()
    assert source.find(threading.Event()).instances == ()


def test_the_other_apis_return_the_result_of_a_check(fleet: Fleet) -> None:
    fleet.register(HTTP)

    def status() -> Any:
        told = fleet.ask("GET", "/eureka/apps/users", HTTP_ACCEPT="application/json").json
        return told["application"]["instance"][0]["status"]

    assert status() == "STARTING"
    fleet.run(2)
    assert status() == "UP"
    fleet.answers.outcome = DOWN
    fleet.run(12)
    assert status() == "DOWN"


def test_maintenance_outlasts_passing_checks(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    fleet.ask("PUT", "/v1/agent/service/maintenance/a?enable=true")
    fleet.run(20)
    assert (fleet.states(), fleet.passing()) == (["passing", "critical"], 0)
    fleet.ask("PUT", "/v1/agent/service/maintenance/a?enable=false")
    assert (fleet.states(), fleet.passing()) == (["passing"], 1)


def test_registering_again_keeps_the_results_of_checks(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    version = fleet.registry.version("users")
    fleet.register(HTTP)
    assert (fleet.states(), fleet.registry.version("users")) == (["passing"], version)
    fleet.register({**HTTP, "Interval": "20s"})
    assert fleet.states() == ["critical"]


def test_several_checks_all_have_to_pass(fleet: Fleet) -> None:
    fleet.register(HTTP, {"TCP": "10.0.0.5:9000", "Interval": "10s", "TLSSkipVerify": True})
    fleet.answers.hold = True
    fleet.run(2)
    assert sorted(url for _, url, _ in fleet.answers.asked) == [
        "http://10.0.0.5:8080",
        "http://10.0.0.5:9000",
    ]
    assert {kind for kind, *_ in fleet.answers.asked} == {VERIFIED, UNVERIFIED}
    for found in fleet.answers.held[:1]:
        found(UP)
    assert fleet.passing() == 0
    for found in fleet.answers.held[1:]:
        found(UP)
    assert (fleet.passing(), fleet.states()) == (1, ["passing", "passing"])


def test_an_instance_with_a_ttl_check_must_also_send_heartbeats(fleet: Fleet) -> None:
    fleet.register(HTTP, {"TTL": "60s"})
    fleet.run(20)
    assert (fleet.states(), fleet.passing()) == (["passing", "critical"], 0)
    assert fleet.ask("PUT", "/v1/agent/check/pass/service:a:2").status == 200
    assert fleet.passing() == 1
    # the results of the other one are no heartbeats
    fleet.run(61)
    assert (fleet.states(), fleet.passing()) == (["passing", "critical"], 0)
    # and nobody reports for a check that is carried out
    assert fleet.ask("PUT", "/v1/agent/check/pass/service:a:1").status == 404


def test_another_worker_takes_over_the_checks_of_one_that_is_gone(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    checks = [worker.checks for worker in fleet.workers]
    leading = next(n for n, each in enumerate(checks) if each is not None and each.leading)
    asked = len(fleet.answers.asked)
    fleet.run(30, only=1 - leading)
    assert len(fleet.answers.asked) > asked
    assert fleet.states() == ["passing"]


def test_a_worker_that_was_suspended_writes_no_results(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.answers.hold = True
    fleet.run(2)
    [late] = fleet.answers.held
    fleet.answers.hold = False
    checks = [worker.checks for worker in fleet.workers]
    leading = next(n for n, each in enumerate(checks) if each is not None and each.leading)
    fleet.clock.now += 10  # the lease of the one that was stopped has run out
    fleet.run(30, only=1 - leading)
    assert fleet.states() == ["passing"]
    late(DOWN)
    assert fleet.states() == ["passing"]


def test_a_result_during_a_store_outage_leaves_the_shared_verdict(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    fleet.answers.hold = True
    fleet.run(12)
    fleet.store.broken = True
    for found in fleet.answers.held:
        found(DOWN)  # logged, and that is all
    fleet.store.broken = False
    fleet.answers.hold = False
    fleet.run(60)
    assert fleet.states() == ["passing"]


def test_the_number_of_checks_in_flight_is_bounded(fleet: Fleet) -> None:
    for worker in fleet.workers:
        assert worker.checks is not None
        worker.checks.most = 4
    for number in range(10):
        fleet.register({"TCP": f"10.0.0.5:{9000 + number}", "Interval": "10s"}, ID=f"a-{number}")
    fleet.answers.hold = True
    fleet.run(5)
    assert len(fleet.answers.asked) == 3
    for found in fleet.answers.held:
        found(UP)
    fleet.answers.hold = False
    fleet.run(3)
    assert len(fleet.answers.asked) == 10


def test_hanging_checks_do_not_block_the_others(fleet: Fleet) -> None:
    for worker in fleet.workers:
        assert worker.checks is not None
        worker.checks.most = 4
    for number in range(10):
        fleet.register({"TCP": f"10.0.0.9:{9000 + number}", "Interval": "1s"}, ID=f"hangs-{number}")
    fleet.answers.outcome = CheckResult(False, error="Timeout")
    fleet.run(10)
    fleet.register({"TCP": "10.0.0.5:8080", "Interval": "1s"}, ID="well")
    fleet.answers.hold = True  # they hang now, and those in between
    fleet.run(3)
    held = len(fleet.answers.held)
    assert [url for _, url, _ in fleet.answers.asked[-held:]].count("http://10.0.0.5:8080") == 1
    assert held == 3  # half of them for those that hung, and the new one
    assert fleet.answers.asked[-1][1] == "http://10.0.0.5:8080"
    for _ in range(5):
        fleet.answers.held[-1](UP)
        fleet.run(2)
    assert fleet.passing() == 1


def test_a_lack_of_threads_does_not_fail_a_check(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    fleet.answers.outcome = OSError(24, "Too many open files")
    fleet.run(30)
    assert fleet.states() == ["passing"]
    assert "could not be carried out" in caplog.text


@pytest.mark.parametrize(
    "check",
    [
        {"HTTP": "http://169.254.169.254/latest/meta-data/", "Interval": "10s"},
        {"HTTP": "http://8.8.8.8/", "Interval": "10s"},
        {"TCP": "[::ffff:169.254.169.254]:80", "Interval": "10s"},
        {"HTTP": "http://nowhere.invalid/", "Interval": "10s"},
    ],
)
def test_a_check_of_a_forbidden_address_is_rejected(fleet: Fleet, check: dict[str, Any]) -> None:
    document = {"Name": "users", "ID": "a", "Address": "10.0.0.5", "Port": 8080, "Check": check}
    assert fleet.ask("PUT", "/v1/agent/service/register", document).field == "Check"
    assert fleet.registry.services() == {}


def test_the_registry_api_returns_nothing_of_a_check(fleet: Fleet) -> None:
    fleet.register({**HTTP, "Header": {"Authorization": ["Bearer secret"]}})
    [entry] = fleet.registry.discover("users").instances
    assert "secret" not in str(instance_document(entry, fleet.clock.now, fleet.registry.rules))
    for url in ("/v1/agent/checks", "/v1/agent/services", "/v1/health/service/users"):
        assert b"secret" not in fleet.ask("GET", url).body


@pytest.fixture
def prober() -> Iterator[ProbeRunner]:
    allowed = TlsPolicy(allowed=Destinations(["127.0.0.1"]).check)
    prober = Prober({VERIFIED: allowed, UNVERIFIED: allowed._replace(verify=False)})
    yield prober
    prober.stop()


def test_real_instances_are_checked_over_sockets(prober: ProbeRunner) -> None:
    """The thread of a worker, its prober, and a name that resolves to what is not allowed."""
    store = MemoryStore()

    def lookup(*asked: Any, **options: Any) -> list[Any]:
        return [(2, 1, 6, "", ("127.0.0.1", 80))]

    there = Destinations(["127.0.0.1"], lookup=lookup)
    registry = Registry(store, destinations=there, prober=prober)
    consul = ConsulApi(registry, Access(TOKEN))
    served = CompatRegistry()
    served.consul, served.registry = consul, registry
    seen = threading.Event()

    def answer(connection: Any, request: Any) -> None:
        connection.sendall(reply(b"", status="200 OK"))
        seen.set()

    with Backend(answer) as backend:
        document = {
            "Name": "users",
            "Address": "127.0.0.1",
            "Port": backend.port,
            "Check": {
                "HTTP": f"http://127.0.0.1:{backend.port}/up",
                "Interval": "1s",
                "Header": {"Host": ["users.example"], "X-Probe": ["1"]},
            },
        }
        assert served.ask("PUT", "/v1/agent/service/register", document).status == 200
        moved = {**document, "ID": "moved"}
        moved["Check"] = {"TCP": f"localhost:{backend.port}", "Interval": "1s"}
        moved["Address"] = "127.0.0.1"
        assert served.ask("PUT", "/v1/agent/service/register", moved).status == 200
        registry.start()
        try:
            assert seen.wait(30)
            version = 0
            while not registry.discover("users", only_healthy=True).instances:
                version = registry.wait("users", version, 10)
            assert dict(backend.requests[0].fields)["Host"] == "users.example"
            assert dict(backend.requests[0].fields)["X-Probe"] == "1"
        finally:
            registry.stop()


def test_stop_releases_the_lease_and_stops_the_probe_runner() -> None:
    clock = Clock()
    store = Fickle(MemoryStore(clock=clock))
    answers = Answers()
    registry = Registry(store, prober=answers)
    assert isinstance(registry.checks, RegistryChecks)
    registry.start()
    registry.stop()
    assert answers.stopped == 1
    assert store.get("registry/checks")[0] is None


def checks_alone(fleet: Fleet, seconds: float, *, only: int | None = None) -> None:
    """Let time pass while the store fails, with rounds of the checks alone."""
    for _ in range(int(seconds)):
        fleet.clock.now += 1.0
        for number, worker in enumerate(fleet.workers):
            if only in (None, number):
                assert worker.checks is not None
                worker.checks.step()


def up(fleet: Fleet) -> list[int]:
    found = [worker.discover("users", only_healthy=True).instances for worker in fleet.workers]
    return [len(instances) for instances in found]


def test_while_the_store_fails_each_worker_checks_for_itself(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.run(2)
    assert up(fleet) == [1, 1]
    asked = len(fleet.answers.asked)
    fleet.store.broken = True
    fleet.answers.outcome = DOWN
    checks_alone(fleet, 14)
    assert up(fleet) == [0, 0]
    assert len(fleet.answers.asked) - asked <= 4  # each as often as ever
    source = OwnRegistry(fleet.workers[1], "users")
    assert source.find(threading.Event()).instances == ()
    fleet.answers.outcome = UP
    checks_alone(fleet, 12)
    assert up(fleet) == [1, 1]
    fleet.answers.outcome = DOWN
    checks_alone(fleet, 12)
    # what the store said before does not come back with it
    fleet.store.broken = False
    for _ in range(8):
        fleet.run(1)
        assert up(fleet) == [0, 0]
    assert (fleet.states(), fleet.passing()) == (["critical"], 0)
    for worker in fleet.workers:
        assert worker.checks is not None
        entries = worker.services()["users"]
        assert worker.checks.overlaid(entries) is entries, "nothing of its own is laid over them"
    asked = len(fleet.answers.asked)
    fleet.run(30)
    assert 2 <= len(fleet.answers.asked) - asked <= 4  # one checks for both again


def test_a_worker_without_cached_instances_checks_none_during_a_store_outage(fleet: Fleet) -> None:
    fleet.register(HTTP)
    fleet.store.broken = True
    checks_alone(fleet, 5)
    assert fleet.answers.asked == []
    fleet.store.broken = False
    fleet.run(2)
    assert up(fleet) == [1, 1]
