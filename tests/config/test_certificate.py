"""The gateway's own certificate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from wsgigate.config.build import certificate_files, check
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse

MEMORY = '[store]\nurl = "memory:"\n[admin]\n[gateway]\n'


def wrong(text: str, folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        check(parse(MEMORY + text, environ={}), path=str(folder / "gateway.toml"))
    return caught.value.errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(make_certificate(other), tmp_path / "other.pem")
    (tmp_path / "none.pem").write_text("nothing")
    return tmp_path


@pytest.mark.parametrize(
    "tls", ['{ cert = "both.pem" }', '{ cert = "both.pem", key = "both.pem" }']
)
def test_a_certificate_is_found_beside_the_file_from_any_working_folder(
    tls: str, folder: Path
) -> None:
    config = parse(f"{MEMORY}http2 = true\ntls = {tls}\n", environ={})
    path = str(folder / "gateway.toml")
    check(config, path=path)
    assert certificate_files(config, path) == (str(folder / "both.pem"), str(folder / "both.pem"))


def test_there_are_no_certificate_files_without_tls() -> None:
    assert certificate_files(parse(MEMORY, environ={}), "gateway.toml") is None


@pytest.mark.parametrize(
    ("tls", "key", "text"),
    [
        ('{ cert = "missing.pem" }', "gateway.tls.cert", "does not exist"),
        ('{ cert = "both.pem", key = "missing.key" }', "gateway.tls.key", "does not exist"),
        ('{ cert = "both.pem", key = "other.pem" }', "gateway.tls", "KEY_VALUES_MISMATCH"),
        ('{ cert = "none.pem" }', "gateway.tls", "key must name the file of the key"),
        ('{ cert = "none.pem", key = "both.pem" }', "gateway.tls", "they must be PEM files"),
        ('{ key = "both.pem" }', "gateway.tls.cert", "is required"),
    ],
)
def test_an_unusable_certificate_is_reported_at_its_key(
    tls: str, key: str, text: str, folder: Path
) -> None:
    [(where, what)] = wrong(f"tls = {tls}\n", folder)
    assert where == key
    assert text in what


def test_http2_requires_a_certificate(folder: Path) -> None:
    assert wrong("http2 = true\n", folder) == [
        ("gateway.http2", "requires TLS: set gateway.tls.cert")
    ]
