"""Reads of the registry that wait for a change, or get a 304 without one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests.registry.served import Served
from wsgigate.rules.registry import Registered


@pytest.fixture
def served() -> Served:
    return Served()


def test_an_unchanged_listing_is_answered_with_304(served: Served) -> None:
    served.register("a")
    first = served.send("GET", "/discover/users")
    tag, index = first.headers["ETag"], first.headers["X-Registry-Index"]
    assert index == str(served.registry.version("users"))
    assert first.headers["Cache-Control"] == "no-cache"
    served.clock.now += 5
    served.send("POST", "/heartbeat/users/a")  # no change, so weakly the same
    for given in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
        again = served.send("GET", "/discover/users", If_None_Match=given)
        assert (again.status_code, again.data) == (304, b"")
        assert (again.headers["ETag"], again.headers["X-Registry-Index"]) == (tag, index)
    assert served.send("GET", "/discover/users", If_None_Match='"x"').status_code == 200
    served.register("b")
    changed = served.send("GET", "/discover/users", If_None_Match=tag)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


def test_an_instance_that_becomes_unhealthy_changes_the_tag(served: Served) -> None:
    served.register("a")
    for query in ("", "?onlyHealthy=false"):
        tag = served.send("GET", f"/discover/users{query}").headers["ETag"]
        served.clock.now += 31  # and nobody has looked after leases
        answer = served.send("GET", f"/discover/users{query}", If_None_Match=tag)
        assert answer.status_code == 200
        told: Any = answer.json
        assert [each["healthy"] for each in told["instances"]] == ([False] if query else [])
        served.registry.heartbeat("users", "a")


def test_a_request_may_wait_for_a_change(served: Served) -> None:
    served.register("a")
    index = served.send("GET", "/discover/users").headers["X-Registry-Index"]
    answers: list[TestResponse] = []
    path = f"/discover/users?wait=20&index={index}"
    thread = threading.Thread(target=lambda: answers.append(served.send("GET", path)))
    begun = served.waits()
    thread.start()
    assert begun.acquire(timeout=20)
    served.registry.register(Registered("users", "b", "10.0.0.2", 80))
    thread.join(30)
    assert answers[0].json
    assert answers[0].json["count"] == 2
    assert int(answers[0].headers["X-Registry-Index"]) > int(index)


def test_a_request_with_an_old_index_does_not_wait(served: Served) -> None:
    served.register("a")
    answer = served.send("GET", "/discover/users?wait=20&index=7")
    assert answer.json
    assert answer.json["count"] == 1
    assert served.send("GET", "/discover/users?wait=20").status_code == 200


def test_the_number_of_waiting_requests_is_bounded(served: Served) -> None:
    served = Served(waiting=2)
    index = served.registry.version("users")
    path = f"/discover/users?wait=25&index={index}"
    threads = [threading.Thread(target=served.send, args=("GET", path)) for _ in range(2)]
    begun = served.waits()
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=20)
    assert served.send("GET", path).status_code == 200
    assert not begun.acquire(blocking=False)
    assert all(thread.is_alive() for thread in threads)
    served.registry.stopping()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert served.send("GET", path).status_code == 200  # nor does anybody wait from now on


def test_no_request_waits_without_slots() -> None:
    served = Served(waiting=0)
    assert served.send("GET", "/discover/users?wait=25&index=0").status_code == 200
