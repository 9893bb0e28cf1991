"""A slower machine is not taken for a slower project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.changes import compare

CONTROLS = ["nginx", "gthread", "naive"]


def document(times, middlewares=(), calls=(), **more):
    servers = {}
    for name, rounds in times.items():
        rounds = rounds if isinstance(rounds, list) else [rounds]
        servers[name] = {
            "cpu": sorted(rounds)[len(rounds) // 2],
            "rounds": [{"cpu": each} for each in rounds],
        }
    return {
        "servers": servers,
        "middlewares": dict(middlewares),
        "calls": dict(calls),
        **more,
    }


BEFORE = {"nginx": 20.0, "gthread": 200.0, "naive": 1000.0, "gunicorn-full": 300.0}
SLOWER = {"nginx": 40.0, "gthread": 400.0, "naive": 2000.0}


@pytest.mark.parametrize(
    ("now", "adjusted", "verdict"),
    [
        (600.0, 1.0, ""),
        (900.0, 1.5, "slower"),
        (300.0, 0.5, "faster"),
        ([540.0, 660.0, 600.0], 1.0, ""),
        ([630.0, 560.0, 640.0], 1.05, ""),
        ([630.0, 630.0, 630.0], 1.05, "slower"),
    ],
)
def test_a_row_is_compared_beside_the_machine_and_beyond_its_noise(now, adjusted, verdict):
    found = compare(document(BEFORE), document({**SLOWER, "gunicorn-full": now}), CONTROLS)
    assert found.machine == 2.0
    *controls, row = found.servers
    assert row.adjusted == pytest.approx(adjusted)
    assert row.verdict == verdict
    assert [control.verdict for control in controls] == ["", "", ""]


def test_one_control_that_changed_does_not_change_the_machine():
    now = {"nginx": 20.0, "gthread": 900.0, "naive": 1000.0, "gunicorn-full": 300.0}
    found = compare(document(BEFORE), document(now), CONTROLS)
    assert found.machine == 1.0
    assert found.servers[-1].verdict == ""


def test_controls_that_disagree_hide_a_small_change():
    now = {"nginx": 24.0, "gthread": 200.0, "naive": 800.0, "gunicorn-full": 340.0}
    found = compare(document(BEFORE), document(now), CONTROLS)
    assert found.machine == 1.0
    assert found.servers[-1].noise == pytest.approx(1.2)
    assert found.servers[-1].verdict == ""


def test_calls_are_exact_and_no_machine_changes_them():
    before = document(BEFORE, {"Limiter": 8.0}, {"bare": 56.0})
    now = document({**SLOWER, "gunicorn-full": 600.0}, {"Limiter": 16.0}, {"bare": 57.0})
    found = compare(before, now, CONTROLS)
    assert [change.verdict for change in found.calls] == ["slower"]
    assert [change.adjusted for change in found.middlewares] == [1.0]


def test_a_row_without_a_control_is_called_neither_faster_nor_slower():
    before, now = document({"gunicorn-full": 300.0}), document({"gunicorn-full": 30.0})
    found = compare(before, now, CONTROLS)
    assert [(row.ratio, row.adjusted, row.verdict) for row in found.servers] == [(0.1, None, "")]
    assert table.changes_table(found).endswith("the machine is not known)")


def test_only_what_is_in_both_runs_is_compared():
    found = compare({}, document(BEFORE), CONTROLS)
    assert found.machine is None
    assert table.changes_table(found) == ""
    found = compare(document({"granian": 30.0}), document(BEFORE), CONTROLS)
    assert found.servers == []


def test_the_table_names_the_controls_first_and_what_else_differs():
    recorded = document(BEFORE, machine={"python": "3.11.7"}, settings={"threads": 4})
    now = {**SLOWER, "gunicorn-full": 300.0}
    again = document(now, machine={"python": "3.12.1"}, settings={"threads": 4})
    text = table.changes_table(compare(recorded, again, CONTROLS))
    lines = text.splitlines()
    assert lines[2:4] == ["(without wsgigate)", lines[3]]
    assert lines[3].startswith("nginx, ")
    assert lines[-3].split()[-3:] == ["0.50", "1.00", "faster"]
    assert lines[-2].startswith("(this machine takes 2.00 times the recorded run's time")
    assert lines[-1] == "(python: 3.11.7 in the recorded run, 3.12.1 now)"


def test_the_recorded_run_can_be_compared_with_itself_and_written():
    recorded = json.loads((Path(__file__).parents[2] / "benchmarks" / "results.json").read_text())
    found = compare(recorded, recorded, CONTROLS)
    assert found.machine == 1.0
    assert {change.verdict for change in (*found.servers, *found.middlewares)} == {""}
    assert json.loads(json.dumps(found.document()))["machine"] == 1.0
