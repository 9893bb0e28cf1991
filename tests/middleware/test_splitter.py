"""The splitter divides requests between apps, those of one caller to the same app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder

from wsgigate import Splitter
from wsgigate.http.wsgi import SHAPED
from wsgigate.testing.fakes import Server


def named(name: str) -> Any:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [name.encode()]

    return app


APPS = {"old": (named("old"), 90), "new": (named("new"), 10)}


def test_without_a_key_chance_decides() -> None:
    draws = iter([0.0, 0.899, 0.9, 0.999])
    client = Client(Splitter(APPS, random=lambda: next(draws)))
    assert [client.get("/").text for _ in range(4)] == ["old", "old", "new", "new"]


def test_a_whole_number_is_a_key() -> None:
    apps = [
        Client(Splitter(APPS, key=lambda environ, said=said: said, random=lambda: 0.0))
        for said in (7, "7")
    ]
    assert len({client.get("/").text for client in apps}) == 1


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("cookie:session", lambda name: {"headers": {"Cookie": f"a=1; session={name}"}}),
        ("header:X-Tenant", lambda name: {"headers": {"X-Tenant": name}}),
        ("address", lambda name: {"environ_base": {"REMOTE_ADDR": name}}),
        ("subject", lambda name: {"environ_overrides": {"wsgigate.claims": {"sub": name}}}),
    ],
)
def test_the_same_caller_gets_to_the_same_app_in_every_worker(key: str, field: Any) -> None:
    one, other = (
        Client(Splitter(APPS, key=key, random=lambda: 0.0), use_cookies=False) for _ in range(2)
    )
    callers = [f"10.0.{number // 256}.{number % 256}" for number in range(300)]
    found = [one.get("/", **field(caller)).text for caller in callers]
    assert found == [other.get("/", **field(caller)).text for caller in callers]
    assert 10 <= found.count("new") <= 60


def test_a_request_without_the_key_is_drawn() -> None:
    client = Client(Splitter(APPS, key="cookie:session", random=lambda: 0.95), use_cookies=False)
    assert client.get("/").text == "new"


@pytest.mark.parametrize(
    ("override", "value", "name"),
    [
        ("X-Canary", "new", "new"),
        ("X-Canary", "off", "off"),
        ("X-Canary", "nowhere", "old"),
        ("X-Canary", "", "old"),
        (None, "new", "old"),
    ],
)
def test_a_field_chooses_only_if_it_was_named(override: str | None, value: str, name: str) -> None:
    apps = {**APPS, "off": (named("off"), 0)}
    client = Client(Splitter(apps, override=override, random=lambda: 0.0))
    assert client.get("/", headers={"X-Canary": value}).text == name


def test_the_chosen_branch_is_logged() -> None:
    environ = EnvironBuilder().get_environ()
    Server().serve(Splitter(APPS, random=lambda: 0.99), environ)
    assert environ[SHAPED] == "split=new"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"apps": {}}, "apps: at least one weight must be above 0"),
        ({"apps": {"a b": (named("a"), 1)}}, "apps: 'a b' is not a word"),
        ({"apps": {"a": (named("a"), -1)}}, "apps: a weight must be 0 or more"),
        ({"key": "moon"}, "key: key is one of"),
        ({"override": "X Y"}, "override: 'X Y' is not a valid header field name"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Splitter(**{"apps": APPS, **settings})
