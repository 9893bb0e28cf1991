"""Webhooks in the file: secrets from text and files, and errors at their keys."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from werkzeug.test import Client

from tests.config.files import APP, built, errors_of
from tests.support.webhooks import SECRETS, github

HOOK = '[[routes.middleware]]\nuse = "webhook"\nprovider = "github"\n'
BODY = b"hello"


@pytest.mark.parametrize(
    "key", [f'secret = "{SECRETS["github"]}"', 'secret_file = "secret"', "secret = [{}, {}]"]
)
def test_a_webhook_is_verified(key: str, site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRETS['github']}\n")
    text = key.format('"an old secret"', f'"{SECRETS["github"]}"')
    client = Client(built(f"{APP}{HOOK}{text}\n", str(tmp_path / "gateway.toml")))
    assert client.post("/echo", data=BODY, headers=github(BODY, 0)).status_code == 200
    assert client.post("/echo", data=b"x", headers=github(BODY, 0)).status_code == 401


def test_a_copy_is_recognized_by_the_store_of_the_gateway(site: ModuleType, tmp_path: Path) -> None:
    hook = HOOK.replace("github", "stripe") + 'secret = "a secret of stripe"\nonce = true\n'
    built(APP + hook, str(tmp_path / "gateway.toml")).close()


@pytest.mark.parametrize(
    ("more", "key", "problem"),
    [
        ("", "secret", "is required"),
        ('secret = "short"', "secret", "at least 8 are required"),
        ('secret_file = "nothing"', "secret_file", "cannot be read"),
        ('secret = "a secret of mine"\nonce = true', "once", "requires a signed time"),
        ('secret = "a secret of mine"\nheader = "X"', "header", 'provider = "hmac" only'),
        ('secret = "a secret of mine"\ntolerance = "2d"', "tolerance", "at most a day"),
        ('secret = "a secret of mine"\nmax_body = "x"', "max_body", "expected"),
        ('secret = "a secret of mine"\nencoding = "x"', "encoding", "base64"),
    ],
)
def test_an_error_names_its_key(
    more: str, key: str, problem: str, site: ModuleType, tmp_path: Path
) -> None:
    found = errors_of(f"{APP}{HOOK}{more}\n", str(tmp_path / "gateway.toml"))
    assert [path for path, _ in found] == [f"routes[0].middleware[0].{key}"]
    assert problem in found[0][1]
    assert "short" not in found[0][1]
