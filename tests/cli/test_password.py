"""The command password makes a line of a file of users."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from wsgigate.auth.passwords import Credentials, Passwords
from wsgigate.cli import main


def test_the_line_is_that_of_a_user_with_this_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("päss: word \nand more"))
    assert main(["password", "ann"]) == 0
    file = tmp_path / "users"
    file.write_text(capsys.readouterr().out)
    assert Passwords(str(file)).verify(Credentials("ann", "päss: word "), "192.0.2.7")


@pytest.mark.parametrize(
    ("user", "given", "words"),
    [
        ("ann", "", "password: 1 to 1024 bytes"),
        ("ann", "a\tb", "password: control characters"),
        ("a:b", "x", "user: 1 to 256 characters"),
    ],
)
def test_invalid_arguments_are_reported(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    user: str,
    given: str,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert main(["password", user]) == 2
    assert words in capsys.readouterr().err


def test_a_terminal_that_ends_its_input_gets_an_error_and_no_traceback() -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "wsgigate", "password", "ann"]
    with subprocess.Popen(
        command, stdin=end, stdout=subprocess.PIPE, stderr=end, start_new_session=True
    ) as running:
        os.close(end)
        said = b""
        while b"Password: " not in said:
            said += os.read(terminal, 1024)
        os.write(terminal, b"\x04")
        assert running.wait(30) == 2
    said = os.read(terminal, 4096)
    os.close(terminal)
    assert b"no password was given" in said
    assert b"Traceback" not in said
