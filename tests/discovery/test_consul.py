"""Instances by Consul's health API, with a fake Consul."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.discovery.fakes import FakeConsul
from wsgigate.discovery.sources import Found, SourceError
from wsgigate.discovery.sources.consul import Consul, instances_of

NEVER = threading.Event()


@pytest.fixture
def server() -> Iterator[FakeConsul]:
    with FakeConsul() as serving:
        yield serving


def pairs(found: Found) -> list[tuple[str, int]]:
    return [(instance.url, instance.weight) for instance in found.instances]


def later(source: Consul, change: Callable[[], object], server: FakeConsul) -> Found:
    """Return what is found by the question that is already waiting when *change* comes."""
    asked = len(server.asked)
    found: list[Found] = []
    thread = threading.Thread(target=lambda: found.append(source.find(NEVER)))
    thread.start()
    server.wait_until_asked(asked + 1)
    change()
    thread.join(30)
    return found[0]


def test_passing_instances_are_found_and_changes_are_returned_at_once(server: FakeConsul) -> None:
    server.register("10.0.0.2", 8001)
    source = Consul("web", server.url)
    assert pairs(source.find(NEVER)) == [("http://10.0.0.2:8001", 1)]
    found = later(source, lambda: server.register("10.0.0.1"), server)
    assert pairs(found) == [("http://10.0.0.1:8000", 1), ("http://10.0.0.2:8001", 1)]
    found = later(source, lambda: server.deregister("10.0.0.2"), server)
    assert pairs(found) == [("http://10.0.0.1:8000", 1)]
    assert server.asked == [
        "/v1/health/service/web",
        "/v1/health/service/web?index=11&wait=50s",
        "/v1/health/service/web?index=12&wait=50s",
    ]


def test_checks_and_weights_determine_the_share_of_an_instance(server: FakeConsul) -> None:
    weights = {"Passing": 10, "Warning": 2}
    server.register("10.0.0.1", weights=weights)
    server.register("10.0.0.2", status="warning", weights=weights)
    server.register("10.0.0.3", status="critical", weights=weights)
    server.register("10.0.0.4", status="maintenance")
    server.register("", node="10.0.0.5")  # a service without an address has its node's
    assert pairs(Consul("web", server.url).find(NEVER)) == [
        ("http://10.0.0.1:8000", 10),
        ("http://10.0.0.2:8000", 2),
        ("http://10.0.0.5:8000", 1),
    ]


def test_tags_and_a_token_are_sent(server: FakeConsul) -> None:
    server.register("10.0.0.1", tags=("v1", "eu"))
    server.register("10.0.0.2", tags=("v2", "eu"))
    source = Consul("web", server.url, tags=["v2", "eu"], token="s3cret", scheme="https")
    assert pairs(source.find(NEVER)) == [("https://10.0.0.2:8000", 1)]
    assert server.tokens == ["s3cret"]
    assert "s3cret" not in source.name


def test_an_index_that_decreases_resets_the_query(server: FakeConsul) -> None:
    server.index = 500
    server.register("10.0.0.1")
    source = Consul("web", server.url)
    source.find(NEVER)
    found = later(source, lambda: server.restore(20, "10.0.0.7"), server)
    server.asked.clear()
    found = source.find(NEVER)
    assert pairs(found) == [("http://10.0.0.7:8000", 1)]
    assert server.asked == ["/v1/health/service/web"]


@pytest.mark.parametrize("index", [0, None])
def test_without_an_index_consul_is_queried_every_second(
    server: FakeConsul, index: int | None
) -> None:
    server.register("10.0.0.1")
    server.index = index
    source = Consul("web", server.url)
    assert [source.find(NEVER).again_in for _ in range(2)] == [1.0, 1.0]
    assert server.asked == ["/v1/health/service/web"] * 2


@pytest.mark.parametrize("status", [403, 404, 429, 500, 301])
def test_after_an_error_the_query_starts_anew(server: FakeConsul, status: int) -> None:
    server.register("10.0.0.1")
    source = Consul("web", server.url)
    source.find(NEVER)
    server.statuses = [status]
    with pytest.raises(SourceError, match=f"it answered {status}"):
        source.find(NEVER)
    assert pairs(source.find(NEVER)) == [("http://10.0.0.1:8000", 1)]
    assert server.asked[-1] == "/v1/health/service/web"


def test_an_unknown_service_is_an_uncertain_empty_list(server: FakeConsul) -> None:
    found = Consul("other", server.url).find(NEVER)
    assert (found.instances, found.certain) == ((), False)


def test_an_invalid_instance_is_an_error(server: FakeConsul) -> None:
    server.register("10.0.0.1", 0)
    with pytest.raises(SourceError, match="no valid port"):
        Consul("web", server.url).find(NEVER)


def test_a_waiting_query_ends_when_the_source_is_stopped(server: FakeConsul) -> None:
    server.register("10.0.0.1")
    source = Consul("web", server.url)
    stopping = threading.Event()
    source.find(stopping)
    errors: list[SourceError] = []

    def wait() -> None:
        try:
            source.find(stopping)
        except SourceError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    server.wait_until_asked(2)
    stopping.set()
    thread.join(30)
    assert [str(error) for error in errors] == ["it was stopped"]


@pytest.mark.parametrize(
    ("service", "node", "zone"),
    [
        ({}, {}, ""),
        ({"Meta": {"zone": "a"}}, {}, "a"),
        ({}, {"Meta": {"zone": "a"}}, "a"),
        ({"Meta": {"zone": "a"}}, {"Meta": {"zone": "b"}}, "a"),
        ({"Locality": {"Region": "eu", "Zone": "eu-1"}, "Meta": {"zone": "a"}}, {}, "eu-1"),
        ({"Meta": {}, "Locality": None}, {"Locality": {"Zone": "eu-2"}}, "eu-2"),
        ({"Meta": {"zone": "two words"}}, {}, ""),  # which is none, and no reason to fail
        ({"Meta": {"zone": 7}, "Locality": "x"}, {"Meta": None}, ""),
    ],
)
def test_the_zone_is_that_of_the_service_or_its_node(
    service: dict[str, object], node: dict[str, object], zone: str
) -> None:
    entry = {
        "Service": {"Address": "10.0.0.1", "Port": 80, **service},
        "Node": {"Address": "10.0.0.9", **node},
        "Checks": [{"Status": "passing"}],
    }
    [found] = instances_of([entry], "http")
    assert found.zone == zone
