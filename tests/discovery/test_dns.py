"""Instances by DNS, with a real name server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.discovery.name_server import NameServer
from wsgigate.discovery.sources import Found, Source, SourceError
from wsgigate.discovery.sources.dns import DnsAddresses, DnsService, Resolver

NEVER = threading.Event()

RECORDS = """
a        30 IN A     10.0.0.2
a        30 IN A     10.0.0.1
a        20 IN AAAA  fd00::1
alias    7  IN CNAME a
quick    0  IN A     10.0.0.1
slow  90000 IN A     10.0.0.1
empty    30 IN TXT   "nothing"
one      50 IN A     10.0.1.1
two      40 IN A     10.0.1.2
_http._tcp.web  60 IN SRV 10 5 8001 one
_http._tcp.web  60 IN SRV 10 0 8002 two
_http._tcp.web  60 IN SRV 20 1 8003 a
_http._tcp.off  60 IN SRV 0 0 0 .
_http._tcp.gone 60 IN SRV 0 0 8000 nobody
_http._tcp.next 60 IN SRV 0 0 8000 nobody
_http._tcp.next 60 IN SRV 1 0 8000 one
"""


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(RECORDS) as serving:
        yield serving


def addresses(server: NameServer, host: str, **options: str) -> DnsAddresses:
    return DnsAddresses(host, 8000, resolver=Resolver([server.address]), **options)


def service(server: NameServer, name: str, **options: str) -> DnsService:
    return DnsService(name, resolver=Resolver([server.address]), **options)


def find(source: Source) -> Found:
    return source.find(NEVER)


def urls(found: Found) -> list[str]:
    return [instance.url for instance in found.instances]


def test_each_address_of_a_name_is_an_instance(server: NameServer) -> None:
    found = find(addresses(server, "a.test"))
    assert urls(found) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
    assert urls(find(addresses(server, "one.test", scheme="https"))) == ["https://10.0.1.1:8000"]


def test_instances_get_the_looked_up_name_as_host(server: NameServer) -> None:
    def names(found: Found) -> set[str]:
        return {instance.authority for instance in found.instances}

    assert names(find(addresses(server, "a.test"))) == {"a.test:8000"}
    assert names(find(addresses(server, "one.test", scheme="https"))) == {"one.test:8000"}
    source = DnsAddresses("one.test", 80, resolver=Resolver([server.address]))
    assert names(find(source)) == {"one.test"}
    # those of a service record by the names of its targets
    targets = {"one.test:8001", "two.test:8002", "a.test:8003"}
    assert names(find(service(server, "_http._tcp.web.test"))) == targets
    assert names(find(service(server, "_http._tcp.web.test", scheme="https"))) == targets


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("a", 20),  # the least of all
        ("alias", 7),  # that of the alias counts too
        ("one", 50),
        ("quick", 1),  # asked for without end, but not all the time
        ("slow", 3600),
    ],
)
def test_an_answer_is_valid_for_its_ttl(name: str, seconds: float, server: NameServer) -> None:
    assert find(addresses(server, f"{name}.test")).again_in == seconds


@pytest.mark.parametrize("name", ["nobody", "empty"])
def test_a_name_without_addresses_is_an_uncertain_empty_list(name: str, server: NameServer) -> None:
    assert find(addresses(server, f"{name}.test")) == Found((), 5.0, certain=False)


def test_a_name_unknown_to_the_servers_is_an_error(server: NameServer) -> None:
    server.failing.add("all")
    with pytest.raises(SourceError, match="no name server has an answer"):
        find(addresses(server, "a.test"))


def test_an_unreachable_name_server_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))  # it hears and says nothing
        resolver = Resolver([f"127.0.0.1:{taken.getsockname()[1]}"], patience=0.1)
        with pytest.raises(SourceError, match="in time"):
            find(DnsAddresses("a.test", 80, resolver=resolver))


def test_a_failed_lookup_of_one_family_keeps_its_addresses(server: NameServer) -> None:
    source = addresses(server, "a.test")
    before = urls(find(source))
    server.failing.add("AAAA")
    server.serve("a 30 IN A 10.0.0.9\n")
    found = find(source)
    assert urls(found) == ["http://10.0.0.9:8000", "http://[fd00::1]:8000"]
    assert found.trouble == "no name server has an answer"
    assert found.again_in == 5.0
    server.failing.clear()
    found = find(source)
    assert urls(found) == ["http://10.0.0.9:8000"]
    assert not found.trouble
    assert before != urls(found)


def test_one_failing_address_family_leaves_the_other_usable(server: NameServer) -> None:
    server.failing.add("AAAA")
    assert urls(find(addresses(server, "one.test"))) == ["http://10.0.1.1:8000"]


def test_a_truncated_answer_is_requested_over_tcp(server: NameServer) -> None:
    server.serve("".join(f"many 30 IN A 10.0.{n // 250}.{n % 250 + 1}\n" for n in range(300)))
    assert len(find(addresses(server, "many.test")).instances) == 300
    assert ("many.test. A", "udp") in server.asked
    assert ("many.test. A", "tcp") in server.asked


def test_targets_are_instances_with_weights_and_priorities_are_tiers(server: NameServer) -> None:
    found = find(service(server, "_http._tcp.web.test"))
    assert [(one.url, one.weight, one.tier) for one in found.instances] == [
        ("http://10.0.0.1:8003", 1, 1),
        ("http://10.0.0.2:8003", 1, 1),
        ("http://10.0.1.1:8001", 5, 0),
        ("http://10.0.1.2:8002", 1, 0),
        ("http://[fd00::1]:8003", 1, 1),
    ]
    assert found.again_in == 20


def test_targets_without_an_address_are_omitted(server: NameServer) -> None:
    assert urls(find(service(server, "_http._tcp.next.test"))) == ["http://10.0.1.1:8000"]


def test_targets_over_https_keep_their_names(server: NameServer) -> None:
    found = find(service(server, "_http._tcp.web.test", scheme="https"))
    assert urls(found) == [
        "https://a.test:8003",
        "https://one.test:8001",
        "https://two.test:8002",
    ]
    assert {text for text, _ in server.asked} == {"_http._tcp.web.test. SRV"}


def test_a_service_declared_unavailable_is_a_certain_empty_list(server: NameServer) -> None:
    assert find(service(server, "_http._tcp.off.test")) == Found((), 60.0, certain=True)
    for name in ("_http._tcp.gone.test", "_http._tcp.never.test"):
        assert not find(service(server, name)).certain


def test_a_target_that_cannot_be_resolved_keeps_its_addresses(server: NameServer) -> None:
    source = service(server, "_http._tcp.web.test")
    before = urls(find(source))
    server.failing.add("two.test. A")
    found = find(source)
    assert urls(found) == before
    assert found.trouble


def test_closing_the_source_drops_its_cached_addresses(server: NameServer) -> None:
    source = addresses(server, "a.test")
    find(source)
    source.close()
    server.failing.add("all")
    with pytest.raises(SourceError):
        find(source)


@pytest.mark.parametrize("text", ["ns.test", "10.0.0.53:0", "10.0.0.53:x", "", "[::1", "1.2.3"])
def test_a_name_server_must_be_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="a name server must be an address"):
        Resolver([text])


@pytest.mark.parametrize("text", ["10.0.0.53", "10.0.0.53:5353", "::1", "[::1]:5353", "fd00::53"])
def test_a_name_server_may_have_a_port(text: str) -> None:
    Resolver([text])
