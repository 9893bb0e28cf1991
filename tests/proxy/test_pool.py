"""A pool hands out instances that are well, and counts what it handed out."""

from __future__ import annotations

import threading

import pytest

from wsgigate.discovery import Instance
from wsgigate.proxy.pool import Pool

URLS = [f"http://127.0.0.1:{port}" for port in (3001, 3002, 3003)]


def pool(*urls: str, **options: float) -> Pool:
    return Pool("users", [Instance(url) for url in urls or URLS], **options)


def picked(from_pool: Pool, times: int = 60) -> set[str]:
    urls = set()
    for _ in range(times):
        lease = from_pool.pick()
        assert lease is not None
        urls.add(lease.instance.url)
        lease.release()
    return urls


def test_every_instance_takes_requests() -> None:
    assert picked(pool()) == set(URLS)


def test_an_unhealthy_instance_takes_none_until_it_is_well_again() -> None:
    users = pool()
    users.mark(URLS[0], False)
    assert picked(users) == set(URLS[1:])
    assert [instance.url for instance in users.available()] == URLS[1:]
    users.mark(URLS[0], True)
    assert picked(users) == set(URLS)


def test_when_most_are_unhealthy_health_is_ignored() -> None:
    """O10: it is more likely that the checks are wrong, or that the rest would drown."""
    users = pool()
    users.mark(URLS[0], False)
    users.mark(URLS[1], False)
    assert picked(users) == set(URLS)
    strict = pool(panic=0.0)
    for url in URLS[:2]:
        strict.mark(url, False)
    assert picked(strict) == {URLS[2]}


def test_a_drained_instance_takes_none() -> None:
    users = Pool("users", [Instance(URLS[0], weight=0), Instance(URLS[1])])
    assert picked(users) == {URLS[1]}


def test_a_service_without_instances_has_none_to_give() -> None:
    assert Pool("users", []).pick() is None
    assert Pool("users", [Instance(URLS[0], weight=0)]).pick() is None
    strict = pool(URLS[0], panic=0.0)
    strict.mark(URLS[0], False)
    assert strict.pick() is None


def test_the_busier_instance_is_spared() -> None:
    users = pool(*URLS[:2])
    leases = [users.pick() for _ in range(10)]
    assert users.in_flight() == {URLS[0]: 5, URLS[1]: 5}
    for lease in leases:
        assert lease is not None
        lease.release()
        lease.release()  # once more does nothing
    assert users.in_flight() == {URLS[0]: 0, URLS[1]: 0}


def test_counting_is_right_across_threads() -> None:
    users = pool()

    def work() -> None:
        for _ in range(500):
            lease = users.pick()
            assert lease is not None
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(users.in_flight().values()) == {0}


def test_a_url_that_is_not_the_pools_is_ignored() -> None:
    users = pool()
    users.mark("http://10.0.0.1:1", False)
    assert len(users.available()) == 3


def test_an_instance_twice_and_an_impossible_panic_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        pool(URLS[0], URLS[0] + "/")
    with pytest.raises(ValueError, match="panic"):
        pool(panic=1.5)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:3001", "http://"),
        ("file:///etc/passwd", "http://"),
        ("http://user:secret@a.test", "credentials"),
        ("http://a.test/base", "add_prefix"),
        ("http://a.test?x", "add_prefix"),
        ("http://", "host"),
        ("http://a b", "host"),
        ("http://a.test:0", "port"),
        ("http://a.test:99999", "port"),
        ("http://a.test:x", "port"),
        ("http://[::g]", "host|IPv6|address"),
    ],
)
def test_an_instance_needs_an_address_and_nothing_else(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Instance(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "normal", "authority"),
    [
        ("http://A.test", "http://a.test", "a.test"),
        ("http://a.test:80/", "http://a.test", "a.test"),
        ("https://a.test:443", "https://a.test", "a.test"),
        ("http://[::1]:3001", "http://[::1]:3001", "[::1]:3001"),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000", "10.0.0.1:8000"),
    ],
)
def test_an_instance_is_named_in_one_way(url: str, normal: str, authority: str) -> None:
    instance = Instance(url)
    assert (instance.url, instance.authority) == (normal, authority)
