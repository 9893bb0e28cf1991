"""Instances by EndpointSlices, with a fake Kubernetes API."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.discovery.fakes import FakeKubernetes, endpoint
from tests.support.certificates import make_certificate
from wsgigate.discovery.sources import Found, SourceError
from wsgigate.discovery.sources.kubernetes import Kubernetes, instances_of_slices

NEVER = threading.Event()
HTTP = {"name": "http", "port": 8080, "protocol": "TCP"}


@pytest.fixture
def server() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as serving:
        yield serving


@pytest.fixture
def source(server: FakeKubernetes) -> Iterator[Kubernetes]:
    made = Kubernetes("shop", "web", "http", server=server.url)
    yield made
    made.close()


def urls(found: Found) -> list[str]:
    return [instance.url for instance in found.instances]


def watched(server: FakeKubernetes) -> int:
    return sum("watch=1" in target for target in server.asked)


def test_endpoints_are_listed_and_then_watched(server: FakeKubernetes, source: Kubernetes) -> None:
    server.put("web-a", endpoint("10.0.0.1"), endpoint("10.0.0.2"))
    assert urls(source.find(NEVER)) == ["http://10.0.0.1:8080", "http://10.0.0.2:8080"]
    server.put("web-b", endpoint("10.0.0.3"))
    assert "http://10.0.0.3:8080" in urls(source.find(NEVER))
    server.put("web-a", endpoint("10.0.0.1", ready=False))
    assert urls(source.find(NEVER)) == ["http://10.0.0.3:8080"]
    server.delete("web-a")
    assert urls(source.find(NEVER)) == ["http://10.0.0.3:8080"]
    assert len(server.asked) == 2
    assert "resourceVersion=101" in server.asked[1]
    assert "allowWatchBookmarks=true" in server.asked[1]


def test_a_watch_continues_at_its_resource_version(
    server: FakeKubernetes, source: Kubernetes
) -> None:
    server.put("web-a", endpoint("10.0.0.1"))
    source.find(NEVER)
    server.bookmark()
    source.find(NEVER)
    server.cut_watches()
    found = source.find(NEVER)
    assert urls(found) == ["http://10.0.0.1:8080"]
    assert found.again_in == 1.0  # not at once, lest one that ends all of them is asked without end
    server.put("web-b", endpoint("10.0.0.2"))
    found = source.find(NEVER)
    assert len(found.instances) == 2
    assert found.again_in < 1.0
    assert watched(server) == 2
    assert "resourceVersion=102" in server.asked[-1]  # the bookmark's


def test_an_expired_resource_version_causes_a_new_list(
    server: FakeKubernetes, source: Kubernetes
) -> None:
    server.put("web-a", endpoint("10.0.0.1"))
    source.find(NEVER)
    del server.slices["web-a"]
    server.put("web-b", endpoint("10.0.0.2"))
    server.forget()
    source.find(NEVER)  # 410
    assert urls(source.find(NEVER)) == ["http://10.0.0.2:8080"]
    assert "watch" not in server.asked[-1]


def test_long_lists_are_read_in_pages(server: FakeKubernetes, source: Kubernetes) -> None:
    server.page = 2
    for number in range(5):
        server.put(f"web-{number}", endpoint(f"10.0.0.{number}"))
    assert len(source.find(NEVER).instances) == 5
    assert len(server.asked) == 3


def test_a_410_response_to_a_watch_causes_a_new_list(
    server: FakeKubernetes, source: Kubernetes
) -> None:
    server.put("web-a", endpoint("10.0.0.1"))
    source.find(NEVER)
    server.statuses = [410]
    source.find(NEVER)
    source.find(NEVER)
    assert [("watch" in target) for target in server.asked] == [False, True, False]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_rejected_request_is_an_error(
    server: FakeKubernetes, source: Kubernetes, status: int
) -> None:
    server.statuses = [status]
    with pytest.raises(SourceError, match=f"it answered {status}"):
        source.find(NEVER)


def test_inside_a_cluster_server_and_token_are_read_from_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Kubernetes("shop", "web", "http", account=tmp_path)
    with pytest.raises(SourceError, match="not inside a cluster"):
        source.find(NEVER)
    with FakeKubernetes(make_certificate(tmp_path)) as server:
        server.put("web-a", endpoint("10.0.0.1"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        with pytest.raises(SourceError, match="token cannot be read"):
            source.find(NEVER)
        (tmp_path / "token").write_text("first\n")
        with pytest.raises(SourceError, match="authorities"):
            source.find(NEVER)  # nobody vouches for it yet
        shutil.copy(tmp_path / "both.pem", tmp_path / "ca.crt")
        assert urls(source.find(NEVER)) == ["http://10.0.0.1:8080"]
        (tmp_path / "token").write_text("second\n")  # as it is renewed once an hour
        server.bookmark()
        source.find(NEVER)
        source.close()
        assert server.tokens == ["Bearer first", "Bearer second"]


def test_a_configured_token_is_sent(server: FakeKubernetes) -> None:
    source = Kubernetes("shop", "web", "http", server=server.url, token="t0ken")
    source.find(NEVER)
    assert server.tokens == ["Bearer t0ken"]


def slice_of(*endpoints: dict[str, Any], family: str = "IPv4", **more: Any) -> dict[str, Any]:
    return {"addressType": family, "endpoints": endpoints, "ports": [HTTP], **more}


@pytest.mark.parametrize(
    ("conditions", "used"),
    [
        ([{}], [0]),
        ([{"ready": True}], [0]),
        ([{"ready": False}], []),
        ([{"ready": True}, {"ready": False, "serving": True, "terminating": True}], [0]),
        ([{"ready": False, "serving": True, "terminating": True}, {"ready": False}], [0]),
        ([{"ready": False, "serving": False, "terminating": True}], []),
        ([{"ready": False, "serving": True, "terminating": False}], []),
        ([{"ready": False, "terminating": True}], []),  # serving is as ready, unless said
        ([{"ready": None, "serving": None, "terminating": None}], [0]),
    ],
)
def test_endpoint_conditions_determine_which_instances_get_requests(
    conditions: list[dict[str, bool]], used: list[int]
) -> None:
    endpoints = [endpoint(f"10.0.0.{n}", **each) for n, each in enumerate(conditions)]
    found, certain = instances_of_slices([slice_of(*endpoints)], "http", "http")
    assert [instance.url for instance in found] == [f"http://10.0.0.{n}:8080" for n in used]
    assert not certain


def test_a_dual_stack_pod_is_one_instance() -> None:
    both = [
        slice_of(endpoint("fd00::1"), family="IPv6"),
        slice_of(endpoint("10.0.0.1"), family="IPv4"),
    ]
    assert [one.url for one in instances_of_slices(both, "http", "http")[0]] == [
        "http://10.0.0.1:8080"
    ]
    assert [one.url for one in instances_of_slices(both[:1], "http", "https")[0]] == [
        "https://[fd00::1]:8080"
    ]


@pytest.mark.parametrize(
    ("slices", "certain"),
    [
        ([], False),
        ([slice_of()], True),
        ([{"addressType": "IPv4", "endpoints": None, "ports": None}], True),
        ([slice_of(endpoint("10.0.0.1", ready=False))], False),
    ],
)
def test_an_empty_list_is_certain_if_an_empty_slice_exists(
    slices: list[dict[str, Any]], certain: bool
) -> None:
    assert instances_of_slices(slices, "http", "http") == ([], certain)


@pytest.mark.parametrize(
    ("port", "number"), [("http", 8080), ("8080", 8080), ("grpc", None), ("9090", None)]
)
def test_a_port_has_a_name_or_a_number(port: str, number: int | None) -> None:
    udp = {"name": "grpc", "port": 9090, "protocol": "UDP"}
    given = [slice_of(endpoint("10.0.0.1"), ports=[udp, HTTP])]
    if number is None:
        with pytest.raises(SourceError, match="has that port"):
            instances_of_slices(given, port, "http")
    else:
        [found] = instances_of_slices(given, port, "http")[0]
        assert found.url == f"http://10.0.0.1:{number}"


@pytest.mark.parametrize("broken", [{}, {"addressType": "IPv4", "endpoints": [{}]}, 7])
def test_an_invalid_slice_is_an_error(broken: Any) -> None:
    if isinstance(broken, dict):
        broken = {"ports": [HTTP], "endpoints": [endpoint("10.0.0.1")], **broken}
    with pytest.raises(SourceError, match="an EndpointSlice is malformed"):
        instances_of_slices([broken], "http", "http")


def test_the_zone_of_an_endpoint_is_that_of_its_node() -> None:
    near, far, nowhere = (endpoint(f"10.0.0.{n}") for n in (1, 2, 3))
    near["zone"], far["zone"] = "eu-1a", "eu-1b"
    found, _ = instances_of_slices([slice_of(near, far, nowhere)], "http", "http")
    assert [instance.zone for instance in found] == ["eu-1a", "eu-1b", ""]
