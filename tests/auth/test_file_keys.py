"""The keys of a file, which is read again when it changes."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.issuer import signing_key
from tests.support.logs import silence
from wsgigate.auth.jwks import FileKeys

quiet = silence("wsgigate.jwks")

ONE, TWO = signing_key("ES256"), signing_key("ES256", 1)


class Written:
    """A file of keys, with a time of its own for each change."""

    def __init__(self, file):
        self.file = file
        self.now = 0.0
        self.set(ONE)
        self.keys = FileKeys(str(file), ["ES256"], name="shop", clock=lambda: self.now)

    def set(self, *keys):
        self.write(json.dumps({"keys": [key.jwk() for key in keys]}))

    def write(self, text):
        self.now += 1
        self.file.write_text(text)
        os.utime(self.file, (self.now, self.now))

    @property
    def names(self):
        return sorted(self.keys.current.names)


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path / "keys.json")


def test_a_changed_file_is_read_again(written):
    before = written.keys.current
    written.now += 5
    assert written.keys.current is before
    written.set(ONE, TWO)
    assert written.names == sorted([ONE.kid, TWO.kid])
    assert written.keys.newer(before) is written.keys.current
    assert written.keys.newer(written.keys.current) is None
    assert written.keys.status() == {"keys": 2}


def test_it_is_looked_at_once_a_second(written):
    written.now += 1
    assert written.names == [ONE.kid]
    written.set(TWO)
    written.now -= 0.5
    assert written.names == [ONE.kid]
    written.now += 0.5
    assert written.names == [TWO.kid]


@pytest.mark.parametrize("text", ["", "{", '{"keys": []}', "-----BEGIN PUBLIC KEY-----"])
def test_a_file_that_cannot_be_used_changes_nothing(written, text):
    written.write(text)
    assert written.names == [ONE.kid]
    assert written.keys.status() == {"keys": 1, "error": "the changed file cannot be used"}
    written.set(TWO)
    assert written.names == [TWO.kid]
    assert written.keys.status() == {"keys": 1}


def test_a_file_that_is_gone_changes_nothing(written):
    written.file.unlink()
    written.now += 1
    assert written.names == [ONE.kid]
    written.set(TWO)
    assert written.names == [TWO.kid]
