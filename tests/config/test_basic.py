"""HTTP Basic in the file: the file of users is relative to it, and check reads it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from argon2 import PasswordHasher
from werkzeug.test import Client

from tests.config.files import APP, built, errors_of
from wsgigate.config.build import check_file
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import read_file

HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")
BASIC = '[[routes.middleware]]\nuse = "basic"\nusers_file = "users"\n'
LIMIT = '[[routes.middleware]]\nuse = "limiter"\nquota = "1/h"\nkey = "subject"\n'


def test_a_user_of_the_file_passes_and_is_the_subject_of_limits(
    site: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "users").write_text(f"ann:{HASH}\nbob:{HASH}\n")
    client = Client(built(APP + BASIC + LIMIT, str(tmp_path / "gateway.toml")))
    answers = [
        client.get("/echo", auth=given).status_code
        for given in (("ann", "secret"), ("ann", "secret"), ("bob", "secret"), ("bob", "x"))
    ]
    assert answers == [200, 429, 200, 401]
    assert client.get("/echo").status_code == 401


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("", "users_file"),
        ("users_file = 7\n", "users_file"),
        ('users_file = "users"\nremember = "2d"\n', "remember"),
        ('users_file = "users"\nmax_failures = 65\n', "max_failures"),
    ],
)
def test_an_invalid_key_is_named(site: ModuleType, line: str, key: str) -> None:
    [(path, _)] = errors_of(APP + BASIC.replace('users_file = "users"\n', line))
    assert path == f"routes[0].middleware[0].{key}"


def checked(folder: Path) -> list[tuple[str, str]]:
    file = folder / "gateway.toml"
    file.write_text(APP + BASIC)
    parsed = read_file(str(file))
    check_file(parsed, str(file)).gateway.close()
    return list(parsed.warnings)


def test_check_warns_of_a_line_and_shows_no_password(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann:{HASH}\nbob:hunter2\n")
    [(path, warning)] = checked(tmp_path)
    assert path == "routes[0].middleware[0].users_file"
    assert "users: line 2: it has no argon2 hash" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"\xff", "UTF-8")])
def test_a_file_that_cannot_be_used_is_an_error(
    site: ModuleType, tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "users").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        checked(tmp_path)
    [(path, error)] = raised.value.errors
    assert path == "routes[0].middleware[0].users_file"
    assert words in error
