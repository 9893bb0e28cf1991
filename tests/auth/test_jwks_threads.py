"""The threads that fetch keys: their start, the requests that wait for them, and forks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.auth.jwks_fleet import NEW, OLD, Endpoint, names
from tests.support.logs import silence
from wsgigate.auth.jwks import KeySources, KeysUnavailable
from wsgigate.auth.jwks_fetch import FetchFailed
from wsgigate.auth.jwks_record import JwksAnswer
from wsgigate.store.memory import MemoryStore

quiet = silence("wsgigate.jwks")

PATIENCE = 30.0
"""Seconds that a request waits for keys here, however slow the machine is."""


@pytest.fixture
def sources():
    made = []

    def make(endpoint):
        made.append(KeySources(MemoryStore(), ask=endpoint))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_nothing_runs_before_the_first_use_and_the_start_waits_for_the_keys(sources):
    endpoint = Endpoint(OLD)
    made = sources(endpoint)
    keys: Any = made.remote("https://id.example.com")
    assert keys is made.remote("https://id.example.com")
    assert endpoint.fetches == 0
    assert keys.current is None
    made.start(wait=20)
    assert sorted(made.remote("https://id.example.com").newer(None).names) == names(OLD)


def test_a_start_while_the_endpoint_fails_does_not_wait_for_it(sources):
    endpoint = Endpoint()
    endpoint.failure = "it answered 500"
    made = sources(endpoint)
    keys = made.remote("https://id.example.com")
    made.start(wait=3600)
    with pytest.raises(KeysUnavailable):
        keys.newer(None)


@pytest.mark.parametrize("fails", ["https://a.example.com", "https://b.example.com"])
def test_a_failure_of_one_of_two_urls_of_an_issuer_is_reported(sources, fails):
    def ask(url, **_):
        if url == fails:
            raise FetchFailed("it answered 500")
        return JwksAnswer((OLD.jwk(),))

    made = sources(ask)
    for url in ("https://a.example.com", "https://b.example.com"):
        made.remote(url, issuer="shop").step()
    assert made.probe() == {"shop": "it answered 500"}
    assert made.status() == {"shop": {"keys": 0, "age": None, "error": "it answered 500"}}


def test_the_first_token_starts_the_thread_and_waits_for_the_keys(sources):
    keys: Any = sources(Endpoint(OLD)).remote("https://id.example.com")
    keys.wait = PATIENCE
    assert sorted(keys.newer(None).names) == names(OLD)


def test_a_token_of_a_key_that_was_just_published_waits_for_it(sources):
    endpoint = Endpoint(OLD)
    keys: Any = sources(endpoint).remote("https://id.example.com", cooldown=0.001)
    keys.wait = PATIENCE
    old = keys.newer(None)
    endpoint.keys = (OLD, NEW)
    threading.Event().wait(0.002)
    assert sorted(keys.newer(old).names) == names(OLD, NEW)


def test_a_hanging_endpoint_makes_few_requests_wait_and_none_twice(sources):
    endpoint, released = Endpoint(OLD), threading.Event()
    keys: Any = sources(endpoint).remote("https://id.example.com", cooldown=0.001)
    keys.wait = PATIENCE
    old = keys.newer(None)
    threading.Event().wait(0.002)
    fetching = threading.Event()

    def hang():
        fetching.set()
        released.wait(60)

    endpoint.during = hang
    outcomes = []

    def ask():
        with pytest.raises(KeysUnavailable, match="an unknown key, and the keys of"):
            keys.newer(old)
        outcomes.append(503)

    keys.wait = 0.1
    ask()
    assert fetching.wait(30)
    ask()  # known to be slow from now on, if the thread had not begun before
    keys.wait = 3600.0  # for ever: whoever waits now never answers
    others = [threading.Thread(target=ask, daemon=True) for _ in range(20)]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=20)
    assert outcomes == [503] * 22
    assert keys.current is old
    released.set()


def test_after_a_fork_the_keys_come_from_the_store(sources):
    endpoint = Endpoint(OLD)
    keys: Any = sources(endpoint).remote("https://id.example.com")
    keys.wait = PATIENCE
    keys.newer(None)
    keys.stop(30)
    keys.after_fork()
    assert keys.current is None
    assert sorted(keys.newer(None).names) == names(OLD)
    assert endpoint.fetches == 1
