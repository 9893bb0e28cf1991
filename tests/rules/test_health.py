"""Health checks as tables: valid settings, and the verdict after a series of outcomes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from wsgigate.rules.health import (
    CheckResult,
    Health,
    HealthCheck,
    first_due,
    judge,
    next_due,
    record,
)

OK = CheckResult(True, 200, "1.53ms")
FAIL = CheckResult(False, 503, "2.00ms", "Status 503")
CHECK = HealthCheck("/health")


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/a/b-c_d~e/", "/health?deep=1&a=%2F", "/caf%C3%A9", "/h;v=1", "/...", "/.x"],
)
def test_a_relative_path_is_taken_as_it_is(path: str) -> None:
    assert HealthCheck(path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "health",
        "http://evil/",
        "//evil/x",
        "/x//evil",
        "/%2f/evil",
        "/%2f%2fevil",
        "/../admin",
        "/a/..",
        "/a/./b",
        "/%2e%2e/admin",
        "/a%2f..%2fadmin",
        "/.%2E/admin",
        "/a\r\nHost: evil",
        "/a%0d%0aHost:%20evil",
        "/a b",
        "/a\\b",
        "/a%5c..",
        "/a%00",
        "/a\x7f",
        "/a#fragment",
        "/a%zz",
        "/a%2",
        "/é",
        "/a\n",
        "@evil/",
    ],
)
def test_a_path_that_could_leave_the_instance_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        HealthCheck(path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("interval", 0),
        ("interval", -1.0),
        ("interval", float("nan")),
        ("interval", float("inf")),
        ("timeout", 0.0),
        ("timeout", float("nan")),
        ("timeout", 86_401),
        ("healthy_after", 0),
        ("healthy_after", True),
        ("unhealthy_after", 0),
        ("unhealthy_after", 1.5),
        ("unhealthy_after", 1_001),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(setting: str, value: object) -> None:
    settings: dict[str, Any] = {setting: value}
    with pytest.raises(ValueError, match=setting):
        HealthCheck("/health", **settings)


@pytest.mark.parametrize(
    ("outcomes", "verdicts"),
    [
        # one letter a check, ten seconds apart: + good, - failed; below: U healthy, D not
        ("+", "U"),
        ("-", "D"),
        ("+---", "UUUD"),
        ("+--+---", "UUUUUUD"),
        ("-+-++", "DDDDU"),
        ("-++--+---", "DDUUUUUUD"),
        ("+---+-++-", "UUUDDDDUU"),
    ],
)
def test_the_first_check_decides_and_then_it_takes_several_in_a_row(
    outcomes: str, verdicts: str
) -> None:
    health: Health | None = None
    seen = ""
    for second, letter in enumerate(outcomes):
        health = record(health, OK if letter == "+" else FAIL, 10.0 * second, CHECK)
        seen += "U" if health.healthy else "D"
    assert seen == verdicts


def test_since_is_the_last_change_and_checked_the_last_check() -> None:
    health = record(None, OK, 100.0, CHECK)
    assert (health.since, health.checked, health.streak) == (100.0, 100.0, 1)
    for now in (110.0, 120.0):
        health = record(health, FAIL, now, CHECK)
    assert (health.healthy, health.since, health.checked, health.streak) == (True, 100.0, 120.0, 2)
    health = record(health, FAIL, 130.0, CHECK)
    assert (health.healthy, health.since, health.checked, health.last) == (
        False,
        130.0,
        130.0,
        FAIL,
    )


def test_thresholds_of_one_follow_every_outcome() -> None:
    eager = HealthCheck("/", healthy_after=1, unhealthy_after=1)
    health: Health | None = None
    for ok in (True, False, True, True, False):
        health = record(health, OK if ok else FAIL, 1.0, eager)
        assert health.healthy is ok


def test_a_streak_stops_growing() -> None:
    health = record(None, OK, 0.0, CHECK)
    for _ in range(3_000):
        health = record(health, OK, 1.0, CHECK)
    assert health.streak == 1_000


def test_the_verdict_never_differs_from_a_full_streak_in_any_history() -> None:
    chance = random.Random(7)
    for _ in range(200):
        check = HealthCheck(
            "/", healthy_after=chance.randint(1, 4), unhealthy_after=chance.randint(1, 4)
        )
        health: Health | None = None
        history: list[bool] = []
        for now in range(40):
            history.append(chance.random() < 0.5)
            health = record(health, OK if history[-1] else FAIL, float(now), check)
            needed = check.healthy_after if history[-1] else check.unhealthy_after
            if len(set(history[-needed:])) == 1 and len(history) >= needed:
                assert health.healthy is history[-1]


def test_the_next_check_is_an_interval_later_give_or_take_a_fifth() -> None:
    assert next_due(100.0, 10.0, 0.0) == 108.0
    assert next_due(100.0, 10.0, 0.5) == 110.0
    assert next_due(100.0, 10.0, 0.999) == pytest.approx(112.0, abs=0.01)


def test_first_checks_are_spread_over_a_second_or_a_shorter_interval() -> None:
    assert first_due(100.0, 30.0, 0.0) == 100.0
    assert first_due(100.0, 30.0, 0.5) == 100.5
    assert first_due(100.0, 0.2, 0.5) == 100.1


@pytest.mark.parametrize(
    "health",
    [
        Health(True, 1.5, 3, 1_763_000_000.123, OK),
        Health(False, 0, 1, 0, CheckResult(False, None, "N/A", "Connection refused")),
        record(record(None, OK, 1.0, CHECK), FAIL, 2.0, CHECK),
    ],
)
def test_a_record_is_read_back_from_its_bytes(health: Health) -> None:
    assert Health.from_bytes(health.to_bytes()) == health


GOOD = [True, 1.0, 1, 2.0, [True, 200, "1ms", ""]]


def _with(index: int, value: object) -> list[object]:
    changed: list[object] = [*GOOD]
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"{}",
        b"[]",
        b"[" * 900,
        b'"abcde"',
        b'[true,NaN,1,2,[true,200,"",""]]',
        b'[true,1,1,1e999,[true,200,"",""]]',
        *(
            json.dumps(members).encode()
            for members in (
                _with(0, 1),
                _with(0, None),
                _with(1, -1),
                _with(1, "1"),
                _with(1, True),
                _with(2, 0),
                _with(2, 1.0),
                _with(2, 10**30),
                _with(3, 10**30),
                _with(4, None),
                _with(4, [True, 200, "1ms"]),
                _with(4, [True, "200", "1ms", ""]),
                _with(4, [True, 99, "1ms", ""]),
                _with(4, [True, 200, 1, ""]),
                _with(4, [True, 200, "x" * 65, ""]),
                _with(4, [True, 200, "1ms", "a\nb"]),
                [*GOOD, 1],
            )
        ),
        json.dumps(GOOD).encode() + b" " * 2_000,
    ],
)
def test_garbage_in_the_store_is_a_value_error_and_nothing_else(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="health record"):
        Health.from_bytes(garbage)


def test_the_record_that_the_malformed_ones_are_made_of_is_valid() -> None:
    assert Health.from_bytes(json.dumps(GOOD).encode()).healthy is True


def test_a_check_without_a_path_judges_no_response() -> None:
    assert HealthCheck(None).path is None
    with pytest.raises(ValueError, match="contains"):
        HealthCheck(None, contains="ok")
    with pytest.raises(ValueError, match="statuses"):
        HealthCheck(None, statuses=[200])


@pytest.mark.parametrize("statuses", [[199], [600], [True], ["200"], [200, 1000]])
def test_statuses_are_final_ones(statuses: list[Any]) -> None:
    with pytest.raises(ValueError, match="statuses"):
        HealthCheck("/", statuses=statuses)


def test_a_long_text_that_a_response_must_contain_raises() -> None:
    with pytest.raises(ValueError, match="contains"):
        HealthCheck("/", contains="x" * 1_025)


@pytest.mark.parametrize(
    ("statuses", "contains", "status", "body", "error"),
    [
        (None, "", 200, b"", ""),
        (None, "", 299, b"", ""),
        (None, "", 302, b"", "Redirected"),
        (None, "", 404, b"", "Status 404"),
        ([302], "", 302, b"", ""),
        ([302], "", 200, b"", "Status 200"),
        (None, "ok", 200, b"it is ok", ""),
        (None, "ok", 200, b"no", "Unexpected content"),
        (None, "ok", 503, b"ok", "Status 503"),
        (None, "grün", 200, "alles grün".encode(), ""),
    ],
)
def test_a_response_is_judged_by_its_status_and_text(
    statuses: list[int] | None, contains: str, status: int, body: bytes, error: str
) -> None:
    settings: dict[str, Any] = {} if statuses is None else {"statuses": statuses}
    check = HealthCheck("/", contains=contains, **settings)
    assert judge(check, status, "1ms", body) == CheckResult(not error, status, "1ms", error)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"method": "TRACE"}, "method: is one of GET, HEAD"),
        ({"method": "get"}, "method: is one of"),
        ({"method": "HEAD", "contains": "x"}, "contains: is not for HEAD"),
        ({"host": "http://shop.example"}, "host: is a name such as"),
        ({"host": "shop.example/x"}, "host: is a name"),
        ({"host": "a\r\nX: y"}, "host: is a name"),
        ({"port": 0}, "port: is 1 to 65535"),
        ({"port": 65536}, "port: is 1 to 65535"),
        ({"port": True}, "port: is 1 to 65535"),
        ({"scheme": "ftp"}, "scheme: is"),
        ({"fields": {"Host": "a"}}, "fields: must not have Host: give host instead"),
        ({"fields": {"Content-Length": "5"}}, "fields: must not have Content-Length"),
        ({"fields": {"Transfer-Encoding": "chunked"}}, "fields: must not have"),
        ({"fields": {"X Y": "a"}}, "fields: has names"),
        ({"fields": {"X-A": "1", "x-a": "2"}}, "fields: has names of request fields, each once"),
        ({"fields": {"X-A": "a\r\nX-B: b"}}, "the value of X-A is one line"),
        ({"fields": {f"X-{n}": "" for n in range(65)}}, "fields: has at most 64"),
    ],
)
def test_an_invalid_request_of_a_check_is_rejected_by_name(
    setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        HealthCheck("/health", **setting)


@pytest.mark.parametrize(
    "setting",
    [{"host": "a"}, {"fields": {"X-A": "1"}}, {"method": "HEAD"}, {"scheme": "https"}],
)
def test_a_tcp_check_takes_no_settings_of_a_request(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is for a check that has a path"):
        HealthCheck(None, **setting)
    assert HealthCheck(None, port=9000).port == 9000


def test_the_values_of_fields_are_not_shown() -> None:
    assert "secret" not in repr(HealthCheck("/", fields={"Authorization": "Bearer secret"}))
