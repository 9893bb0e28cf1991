"""The rules of the registry's checks, as tables: verdicts, states and storage."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from wsgigate.rules.health import CheckResult
from wsgigate.rules.registry import LeaseRules, Registered, Status
from wsgigate.rules.registry_checks import (
    CRITICAL,
    PASSING,
    WARNING,
    RegisteredCheck,
    Streak,
    carried_over,
    judged,
    result_of,
)

CHECK = RegisteredCheck("c", "C", "http://10.0.0.5:80", "/up", 10.0)
GOOD = replace(CHECK, status=PASSING, carried_out=True)
BAD = replace(CHECK, status=CRITICAL, carried_out=True)
WARNED = replace(CHECK, status=WARNING, carried_out=True)
ENTRY = Registered("users", "u", "10.0.0.5", 80).heard(100.0)
RULES = LeaseRules()


@pytest.mark.parametrize(
    ("outcome", "result", "output"),
    [
        (CheckResult(True, 200), PASSING, "HTTP 200"),
        (CheckResult(True), PASSING, "Connected"),
        (CheckResult(False, 429, error="Status 429"), WARNING, "HTTP 429"),
        (CheckResult(False, 503, error="Status 503"), CRITICAL, "Status 503"),
        (CheckResult(False, 302, error="Redirected"), CRITICAL, "Redirected"),
        (CheckResult(False, error="Connection refused"), CRITICAL, "Connection refused"),
    ],
)
def test_each_result_has_a_status_and_a_description(
    outcome: CheckResult, result: str, output: str
) -> None:
    assert result_of(outcome) == (result, output)


@pytest.mark.parametrize(
    ("good_after", "bad_after", "results", "verdicts"),
    [
        (1, 1, "+-+!-", "+-+!-"),
        (1, 3, "+--+---+", "+++++" + "+-+"),
        (2, 1, "++-+++", "-+--++"),  # critical until it has passed twice
        (2, 2, "-++-+--", "--++++-"),
    ],
)
def test_a_verdict_changes_after_several_results_in_a_row(
    good_after: int, bad_after: int, results: str, verdicts: str
) -> None:
    words = {"+": PASSING, "-": CRITICAL, "!": WARNING}
    check = replace(CHECK, good_after=good_after, bad_after=bad_after)
    streak, seen = Streak(), ""
    for now, letter in enumerate(results):
        streak = streak.after(words[letter])
        check = check.says(judged(check, streak), "", float(now))
        seen += next(letter for letter, word in words.items() if word == check.status)
    assert seen == verdicts


@pytest.mark.parametrize(
    ("status", "checks", "state"),
    [
        (Status.UP, (), Status.UP),
        (Status.UP, (CHECK,), Status.STARTING),
        (Status.UP, (GOOD,), Status.UP),
        (Status.UP, (WARNED,), Status.UP),
        (Status.UP, (BAD,), Status.DOWN),
        (Status.UP, (GOOD, BAD), Status.DOWN),
        (Status.UP, (GOOD, CHECK), Status.STARTING),
        (Status.DRAINING, (BAD,), Status.DRAINING),
        (Status.STARTING, (GOOD,), Status.STARTING),
        (Status.DOWN, (GOOD,), Status.DOWN),
    ],
)
def test_the_state_combines_the_status_with_the_checks(
    status: Status, checks: tuple[RegisteredCheck, ...], state: Status
) -> None:
    entry = replace(ENTRY, status=status, checks=checks)
    assert entry.state is state
    assert entry.healthy(100.0, RULES) is (state is Status.UP)


def test_checks_set_the_lease_of_an_instance() -> None:
    checked = replace(ENTRY, checks=(replace(GOOD, interval=60.0),))
    assert checked.unhealthy_after(RULES) == 190.0
    assert not checked.reports
    assert checked.healthy(290.0, RULES)
    assert not checked.healthy(291.0, RULES)
    both = replace(checked, lease=45.0)
    assert both.unhealthy_after(RULES) == 45.0
    assert both.reports


def test_a_repeated_registration_keeps_the_verdict() -> None:
    other = replace(CHECK, interval=20.0)
    assert carried_over([CHECK], [GOOD]) == (GOOD,)
    assert carried_over([replace(CHECK, status=PASSING)], [BAD]) == (BAD,)
    assert carried_over([other], [GOOD]) == (other,)
    assert carried_over([CHECK, replace(CHECK, check_id="d")], [GOOD])[1].status == CRITICAL


def test_since_is_the_time_of_the_last_change_of_the_verdict() -> None:
    check = CHECK.says(CRITICAL, "no", 5.0)
    assert (check.since, check.carried_out) == (5.0, True)
    assert check.says(CRITICAL, "no", 9.0).since == 5.0
    assert check.says(PASSING, "", 9.0).since == 9.0


def test_checks_are_stored_with_the_entry() -> None:
    entry = replace(ENTRY, checks=(replace(GOOD, fields=(("A", "b"),)), replace(BAD, path=None)))
    assert Registered.from_bytes(entry.to_bytes()) == entry
    # an instance without one is written as ever
    assert ENTRY.to_bytes() == replace(entry, checks=()).to_bytes()


@pytest.mark.parametrize(
    "members", [[], ["c"], [*GOOD.members()[:-1]], [*GOOD.members(), 1], "text", [None] * 16]
)
def test_an_entry_with_a_malformed_check_is_not_an_entry(members: object) -> None:
    body = ENTRY.to_bytes()[:-1] + b"," + json.dumps([members]).encode() + b"]"
    assert Registered.from_bytes(body) is None
