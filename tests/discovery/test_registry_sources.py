"""Registered instances, from this gateway's own registry or from another over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.discovery.conftest import Clock
from tests.support.stores import Fickle
from wsgigate.auth.bearer import Access
from wsgigate.client.destinations import Destinations
from wsgigate.discovery.sources import Found, Source, SourceError
from wsgigate.discovery.sources.registry import OwnRegistry, RemoteRegistry
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.rules.registry import Registered, Status
from wsgigate.store.memory import MemoryStore

NEVER = threading.Event()

Serve = Callable[[WSGIApplication], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Yield what serves an app on loopback, and returns where."""
    servers = []

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Say nothing."""

    def start(app: WSGIApplication) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Fickle:
    return Fickle(MemoryStore(clock=clock))


@pytest.fixture
def registry(store: Fickle) -> Registry:
    return Registry(store)


@pytest.fixture(params=["own", "remote"])
def source(request: pytest.FixtureRequest, registry: Registry, serve: Serve) -> Source:
    if request.param == "own":
        return OwnRegistry(registry, "users")
    return RemoteRegistry(serve(RegistryApi(registry, Access(open_writes=True))), "users")


def entry(number: int, **more: Any) -> Registered:
    return Registered("users", f"users-{number}", f"10.0.0.{number}", 8000, **more)


def pairs(found: Found) -> list[tuple[str, int]]:
    return [(instance.url, instance.weight) for instance in found.instances]


def one(number: int, weight: int = 1) -> tuple[str, int]:
    return f"http://10.0.0.{number}:8000", weight


def later(source: Source, change: Callable[[], object]) -> Found:
    """Return what a question that may wait finds when *change* comes, before or meanwhile."""
    found: list[Found] = []
    thread = threading.Thread(target=lambda: found.append(source.find(NEVER)))
    thread.start()
    change()
    thread.join(30)
    return found[0]


def test_registered_instances_are_found_until_they_deregister(
    source: Source, registry: Registry
) -> None:
    assert source.find(NEVER).instances == ()
    registry.register(entry(1))
    source.close()  # so that it is asked anew, whatever has been seen
    assert pairs(source.find(NEVER)) == [one(1)]
    assert pairs(later(source, lambda: registry.register(entry(2)))) == [one(1), one(2)]
    found = later(source, lambda: registry.deregister("users", "users-1"))
    assert pairs(found) == [one(2)]


def test_draining_and_starting_instances_get_no_new_requests(
    source: Source, registry: Registry
) -> None:
    registry.register(entry(1, weight=5))
    registry.register(entry(2, weight=5, scheme="https"))
    registry.register(entry(3, status=Status.STARTING))
    registry.register(entry(4, status=Status.DOWN))
    registry.heartbeat("users", "users-1", Status.DRAINING)
    assert pairs(source.find(NEVER)) == [one(1, 0), ("https://10.0.0.2:8000", 5)]


def test_silent_instances_are_omitted_unless_all_are_silent(
    source: Source, registry: Registry, clock: Clock
) -> None:
    registry.register(entry(1))
    clock.now += 20
    registry.register(entry(2))
    clock.now += 15
    assert pairs(source.find(NEVER)) == [one(2)]
    clock.now += 20
    source.close()
    assert pairs(source.find(NEVER)) == [one(1), one(2)]


def test_an_empty_list_is_certain_if_the_service_had_instances(
    source: Source, registry: Registry
) -> None:
    assert not source.find(NEVER).certain
    source.close()
    registry.register(entry(1))
    registry.deregister("users", "users-1")
    found = source.find(NEVER)
    assert (found.instances, found.certain) == ((), True)


def test_a_failing_store_returns_cached_instances_with_their_age(
    source: Source, registry: Registry, store: Fickle, clock: Clock
) -> None:
    registry.register(entry(1))
    source.find(NEVER)
    source.close()
    store.broken = True
    found = source.find(NEVER)
    assert pairs(found) == [one(1)]
    assert "store fails" in found.trouble
    assert not found.certain


def test_a_store_that_never_answered_is_an_error(source: Source, store: Fickle) -> None:
    store.broken = True
    with pytest.raises(SourceError, match=r"store fails|answered 503"):
        source.find(NEVER)


def test_the_own_registry_retries_a_failing_store_soon(registry: Registry, store: Fickle) -> None:
    store.broken = True
    source = OwnRegistry(registry, "users")
    for _ in range(20):  # an outage may last; when it ends, nobody has an instance yet
        with pytest.raises(SourceError) as caught:
            source.find(NEVER)
        assert caught.value.again_in == 1.0


def test_instances_are_filtered_by_tags(registry: Registry, serve: Serve) -> None:
    registry.register(entry(1, tags=("v1",)))
    registry.register(entry(2, tags=("v2", "eu")))
    url = serve(RegistryApi(registry, Access(open_writes=True)))
    for source in (
        OwnRegistry(registry, "users", tags=["v2", "eu"]),
        RemoteRegistry(url, "users", tags=["v2", "eu"]),
    ):
        assert pairs(source.find(NEVER)) == [one(2)]


def test_a_registry_names_the_networks_that_it_allows(store: Fickle, serve: Serve) -> None:
    registry = Registry(store, destinations=Destinations(["10.0.0.0/8", "fd00::/8"]))
    registry.register(entry(1))
    url = serve(RegistryApi(registry, Access(open_writes=True)))
    assert RemoteRegistry(url, "users").find(NEVER).networks == ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("fields", "networks"),
    [([], None), ([("X-Registry-Networks", "10.0.0.0/8,127.0.0.1")], ("10.0.0.0/8", "127.0.0.1"))],
)
def test_a_remote_registry_may_omit_its_allowed_networks(
    fields: list[tuple[str, str]], networks: tuple[str, ...] | None, serve: Serve
) -> None:
    source = RemoteRegistry(serve(answer_with(b'{"instances": []}', fields)), "users")
    assert source.find(NEVER).networks == networks


@pytest.mark.parametrize("text", ["", "unix", "10.0.0.0/99", "10.0.0.0/8,"])
def test_invalid_allowed_networks_are_an_error(text: str, serve: Serve) -> None:
    app = answer_with(b'{"instances": []}', [("X-Registry-Networks", text)])
    with pytest.raises(SourceError, match="malformed networks"):
        RemoteRegistry(serve(app), "users").find(NEVER)


def answer_with(body: bytes, fields: list[tuple[str, str]]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body))), *fields])
        return [body]

    return app


def test_a_registry_without_open_reads_requires_a_token(registry: Registry, serve: Serve) -> None:
    token = "a-token-of-more-than-sixteen-bytes"
    registry.register(entry(1))
    url = serve(RegistryApi(registry, Access(token, open_reads=False)))
    with pytest.raises(SourceError, match="it answered 401: the token is missing"):
        RemoteRegistry(url, "users").find(NEVER)
    source = RemoteRegistry(url, "users", token=token)
    assert pairs(source.find(NEVER)) == [one(1)]
    assert token not in source.name


def test_a_waiting_query_ends_when_the_source_is_stopped(
    source: Source, registry: Registry
) -> None:
    registry.register(entry(1))
    source.find(NEVER)
    stopping = threading.Event()
    stopping.set()
    if isinstance(source, OwnRegistry):
        assert pairs(source.find(stopping)) == [one(1)]
    else:
        with pytest.raises(SourceError, match="it was stopped"):
            source.find(stopping)


def test_a_registry_that_answers_at_once_is_not_queried_in_a_busy_loop() -> None:
    """As in a worker that stops."""
    waits: list[float | None] = []

    class Hasty(Registry):
        def wait(self, service: str | None, version: int, timeout: float) -> int:
            return version

    class Ending(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            self.set()
            return True

    source = OwnRegistry(Hasty(MemoryStore()), "users")
    source.find(NEVER)
    source.find(Ending())
    assert len(waits) == 1
    assert waits[0]


LESSON = {
    "success": True,
    "serviceName": "users",
    "instances": [
        {
            "serviceName": "users",
            "instanceId": "users-1",
            "host": "10.0.0.1",
            "port": 8000,
            "url": "http://10.0.0.1:8000",
            "metadata": {},
            "registeredAt": "2025-01-31T12:00:00.000Z",
            "lastHeartbeat": "2025-01-31T12:00:00.000Z",
            "healthy": True,
            "healthCheckPath": "/health",
        }
    ],
    "count": 1,
}


def answering(document: object) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(document).encode()]

    return app


def test_a_registry_without_long_polling_is_queried_every_second(serve: Serve) -> None:
    """The lesson's own, for one."""
    source = RemoteRegistry(serve(answering(LESSON)), "users")
    for _ in range(2):
        found = source.find(NEVER)
        assert pairs(found) == [one(1)]
        assert found.again_in == 1.0
        assert not found.certain


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "no list of instances"),
        ({"instances": {}}, "no list of instances"),
        ({"instances": [{"host": "10.0.0.1"}]}, "no valid port"),
        ({"instances": [{"host": "", "port": 80}]}, "no host"),
        ({"instances": [{"host": "a b", "port": 80}]}, "no valid host"),
        ({"instances": [{"host": "a", "port": 80, "weight": 1.5}]}, "weight"),
        ({"instances": [{"host": "a", "port": 80, "scheme": "file"}]}, "neither http nor https"),
    ],
)
def test_an_invalid_response_of_a_registry_is_an_error(
    serve: Serve, document: Any, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        RemoteRegistry(serve(answering(document)), "users").find(NEVER)


def test_the_zone_is_that_of_the_registration(source: Source, registry: Registry) -> None:
    registry.register(entry(1, zone="eu-1a"))
    registry.register(entry(2, zone="eu-1b"))
    registry.register(entry(3))
    registry.heartbeat("users", "users-2", Status.DRAINING)
    zones = {each.url[-6]: each.zone for each in source.find(NEVER).instances}
    assert zones == {"1": "eu-1a", "2": "eu-1b", "3": ""}
