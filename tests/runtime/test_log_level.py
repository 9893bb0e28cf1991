"""The level and the handler of the log of the package."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from wsgigate.runtime.logs import adopt, set_up

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
