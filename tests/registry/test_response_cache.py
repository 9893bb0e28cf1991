"""The cached bodies of listings, which equal the documents encoded as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.objects import texts_kept
from wsgigate.registry.api import ResponseCache, instance_document
from wsgigate.registry.listing import Listing
from wsgigate.rules.registry import LeaseRules, Registered, Status

RULES = LeaseRules()
PLAIN = Registered("users", "users-1", "10.0.0.5", 3001, registered_at=50.0).heard(90.0)
TOLD = replace(
    PLAIN,
    instance_id="users-2",
    metadata={"lastHeartbeat": 'x", "healthy": true', "ä": [1, None, {"healthy": False}]},
    tags=("blue", "canary"),
    version="2.1.0",
    zone="eu-1",
    health_check_path='/alive?"healthy"',
    status=Status.DRAINING,
)


def stored(entry: Registered) -> Registered:
    """Return *entry* as it comes out of the store."""
    read = Registered.from_bytes(entry.to_bytes())
    assert read is not None
    return read


def whole(*entries: Registered, now: float = 100.0, **more: Any) -> bytes:
    """Return the body of these as it is written in one go."""
    documents = [instance_document(entry, now, RULES) for entry in entries]
    told = {"success": True, "serviceName": "users", "instances": documents}
    return json.dumps({**told, "count": len(entries), **more}).encode()


@pytest.mark.parametrize("entries", [(), (PLAIN,), (PLAIN, TOLD), (stored(PLAIN), stored(TOLD))])
def test_a_cached_body_equals_the_encoded_documents(entries: tuple[Registered, ...]) -> None:
    bodies = ResponseCache(RULES)
    for tag in ("a", "b"):  # the second time parts of it are there
        assert bodies.of("users", "", Listing(entries, 7, 100.0), tag) == whole(*entries)


def test_self_preservation_and_age_are_in_the_body() -> None:
    listing = Listing((stored(PLAIN),), 7, 100.0, age=1.5, preserving=True)
    body = ResponseCache(RULES).of("users", "", listing, "a")
    assert body == whole(PLAIN, preserving=True, age=1.5)


def test_a_cached_body_is_replaced_after_a_change() -> None:
    bodies = ResponseCache(RULES)
    entry = stored(PLAIN)
    assert b'"healthy": true' in bodies.of("users", "", Listing((entry,), 7, 100.0), "a")
    silent = bodies.of("users", "", Listing((entry,), 7, 900.0), "b")
    assert silent == whole(entry, now=900.0)
    assert b'"healthy": false' in silent
    heard = entry.heard(890.0)
    assert bodies.of("users", "", Listing((heard,), 7, 900.0), "c") == whole(heard, now=900.0)
    changed = stored(replace(entry, weight=9))
    assert bodies.of("users", "", Listing((changed,), 8, 100.0), "d") == whole(changed)


def test_the_number_of_cached_instances_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgigate.registry.api.MOST_INSTANCES", 3)
    bodies = ResponseCache(RULES)
    entries = tuple(stored(replace(PLAIN, port=port)) for port in range(3001, 3008))
    assert bodies.of("users", "", Listing(entries, 7, 100.0), "a") == whole(*entries)
    texts = [text for text in texts_kept(bodies) if '"port": 300' in text]
    assert 0 < len(texts) <= 3
