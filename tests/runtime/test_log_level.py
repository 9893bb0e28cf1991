"""The level and the handler of the log of the package."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from wsgigate.runtime.logs import JsonFormatter, adopt, set_up

CODE = """
import logging, sys
from wsgigate.runtime.logs import adopt, set_up
{before}
{call}
for level in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("wsgigate.circuits"), level)("it is %s", level)
"""


@pytest.mark.parametrize(
    ("before", "call", "shown"),
    [
        ("", "set_up(None)", ["info", "warning", "error"]),
        ("", "set_up('debug')", ["debug", "info", "warning", "error"]),
        ("", "set_up('error'); set_up('error')", ["error"]),
        ("logging.basicConfig()", "set_up(None)", ["warning", "error"]),
        ("logging.basicConfig()", "set_up('info')", ["info", "warning", "error"]),
        ("logging.getLogger('wsgigate').setLevel('ERROR')", "set_up('debug')", ["error"]),
        ("", "adopt([logging.StreamHandler()], 'info'); set_up()", ["info", "warning", "error"]),
        ("", "adopt([logging.StreamHandler()], 'error'); set_up('debug')", ["error"]),
        (
            "logging.getLogger('wsgigate').setLevel('DEBUG')",
            "adopt([logging.StreamHandler()], 'error')",
            ["debug", "info", "warning", "error"],
        ),
    ],
)
def test_set_up_and_adopt_decide_which_records_a_process_logs(
    before: str, call: str, shown: list[str]
) -> None:
    code = CODE.format(before=before, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == shown
    if before == "" and call.startswith("set_up"):
        assert all("wsgigate.circuits: it is" in line for line in lines)


def test_no_handler_is_added_where_the_application_has_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = logging.getLogger("wsgigate")
    before = own.handlers, own.level, own.propagate
    try:
        set_up("info")
        adopt([logging.NullHandler()], "debug")
        assert own.handlers == before[0]
        assert own.level == logging.INFO
    finally:
        own.handlers, own.level, own.propagate = before


def test_a_json_record_is_one_line_with_the_fields_of_the_record() -> None:
    record = logging.LogRecord(
        "wsgigate.x", logging.WARNING, "", 0, 'a "b"\n{"level":%s} \u2028\x7f\x85', ("c",), None
    )
    record.created = 1_700_000_000.25
    record.wsgigate = {"request_id": "r1", "trace_id": None, "level": "forged", "other": object}
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    shown = json.loads(line)
    assert shown.pop("pid") == record.process
    assert shown == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "wsgigate.x",
        "message": 'a "b"\n{"level":c} \u2028\x7f\x85',
        "request_id": "r1",
        "trace_id": None,
        "other": "<class 'object'>",
    }


def test_a_json_record_has_its_traceback_in_the_same_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("wsgigate", 40, "", 0, "failed", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: a\nb")


def test_set_up_writes_json_where_it_adds_the_handler() -> None:
    code = CODE.format(before="", call="set_up('warning', as_json=True)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    shown = [json.loads(line) for line in done.stderr.splitlines()]
    assert [each["message"] for each in shown] == ["it is warning", "it is error"]
