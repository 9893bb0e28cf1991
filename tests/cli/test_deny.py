"""The command deny and the gateway of the same file share the deny list."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.auth.jwt import mint
from wsgigate.cli import main
from wsgigate.gateway import Gateway

SECRET = "a-secret-of-at-least-thirty-two-bytes"
FILE = f"""\
[store]
url = "lmdb:data"
[[routes]]
path = "/demo"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
deny_list = true
"""
TOKEN = mint(SECRET, "HS256", "ann", 3600, jti="j-1", iat=1_764_547_200)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    return str(path)


def ask(gateway: Gateway, token: str = TOKEN) -> int:
    response = Client(gateway).get("/demo", headers={"Authorization": f"Bearer {token}"})
    return response.status_code


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], f"{TOKEN}\n"),
        (["--jti", "j-1", "--last", "1h"], ""),
        (["--sub", "ann", "--last", "1h"], ""),
    ],
)
def test_the_gateway_rejects_a_token_that_the_command_denied(
    file: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], given: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert main(["deny", file, *arguments]) == 0
    gateway = wsgigate.load(file)
    assert ask(gateway) == 401
    assert ask(gateway, mint(SECRET, "HS256", "bob")) == 200
    gateway.close()


def test_the_command_denies_a_token_for_a_running_gateway(file: str) -> None:
    gateway = wsgigate.load(file)
    command = [sys.executable, "-m", "wsgigate", "deny", file]
    subprocess.run(command, input=TOKEN, text=True, check=True, timeout=60)
    assert ask(gateway) == 401
    gateway.close()


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        ([], "", "token: not three parts of base64url"),
        (["--jti", "j-1"], "", "--last is required"),
        (["--sub", "ann"], "", "--last is required"),
        (["--sub", "", "--last", "1h"], "", "sub: a text of 1 to 1024 characters"),
        (["--sub", "ann", "--last", "soon"], "", "expected a duration"),
        (["--sub", "ann", "--last", "9999d"], "", "until: a Unix time at most ten years ahead"),
    ],
)
def test_invalid_arguments_of_deny_are_reported(
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    given: str,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert main(["deny", file, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_store_private_to_the_workers_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE.replace("lmdb:data", "memory:"))
    assert main(["deny", str(path), "--jti", "a", "--last", "1h"]) == 2
    assert "is private to each worker" in capsys.readouterr().err


def test_a_failing_store_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    (tmp_path / "data").write_text("no folder")
    assert main(["deny", str(path), "--jti", "a", "--last", "1h"]) == 1
    assert "unknown whether the tokens are denied" in capsys.readouterr().err


def test_an_invalid_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("nothing = 1\n")
    assert main(["deny", str(path), "--jti", "a", "--last", "1h"]) == 2
    assert "nothing" in capsys.readouterr().err
