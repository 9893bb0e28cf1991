"""API keys in a file: read again when it changes, bad entries are named, writes are atomic."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from wsgigate.auth.api_keys import digest_of, new_key
from wsgigate.coordination.api_keys import ApiKeys, KeyRejected, UnreadableKeys, read_file
from wsgigate.runtime.files import LARGEST
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

CLIENT = {"REMOTE_ADDR": "192.0.2.7"}
KEY, OTHER = new_key("wg"), new_key("wg")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys_of(file: Path, clock: FakeClock) -> ApiKeys:
    return ApiKeys(file=str(file), clock=clock)


def entry(key: str = KEY, **members: Any) -> dict[str, Any]:
    return {"id": "acme-1", "owner": "acme", "sha256": digest_of(key), **members}


def write(file: Path, *entries: object) -> None:
    """Replace the file, as a deployment does."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({"keys": entries}))
    draft.replace(file)


def valid(keys: ApiKeys, key: str = KEY) -> bool:
    try:
        keys.find(key, CLIENT)
    except KeyRejected:
        return False
    return True


def test_a_changed_file_is_in_force_within_the_staleness(file: Path, clock: FakeClock) -> None:
    write(file, entry())
    keys = keys_of(file, clock)
    assert [valid(keys), valid(keys, OTHER)] == [True, False]
    write(file, entry(), entry(OTHER, id="acme-2"))
    clock.advance(0.5)
    assert [valid(keys), valid(keys, OTHER)] == [True, True]
    write(file, entry(revoked="2025-01-01T00:00:00Z"), entry(OTHER, id="acme-2"))
    clock.advance(0.5)
    assert [valid(keys), valid(keys, OTHER)] == [False, True]


def test_a_key_that_was_just_created_is_valid_at_once(file: Path, clock: FakeClock) -> None:
    keys = keys_of(file, clock)
    assert not valid(keys)
    write(file, entry(OTHER))
    assert valid(keys, OTHER)


def test_a_toml_file_is_read_with_its_own_times(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f"""
        [[keys]]
        id = "acme-1"
        owner = "acme"
        plan = "gold"
        sha256 = "{digest_of(KEY)}"
        expires = 2125-01-01T00:00:00Z
        """
    )
    keys = keys_of(file, clock)
    assert keys.find(KEY, CLIENT).claims["plan"] == "gold"
    with pytest.raises(ValueError, match=r"^file: .*keys.toml is TOML, which is read but not"):
        keys.create("acme")


def test_a_bad_entry_is_named_and_the_others_are_in_force(
    file: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, entry(expire=1), entry(OTHER, id="acme-2"))
    keys = keys_of(file, clock)
    assert [valid(keys), valid(keys, OTHER)] == [False, True]
    assert f"In the file of API keys {file}, keys[0] (acme-1): expire: unknown" in caplog.text


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([entry(), entry(OTHER)], "keys[1] (acme-1): id: acme-1 is the id of an earlier entry"),
        ([entry(), entry(id="b")], "keys[1] (b): sha256: is the key of acme-1, too"),
        ([7], "keys[0]: expected a table such as"),
        ([{"id": 7}], "keys[0]: owner: is required"),
    ],
)
def test_each_entry_is_checked_against_the_others(entries: list[Any], error: str) -> None:
    _, errors = read_file("keys.json", json.dumps({"keys": entries}).encode())
    assert [each[: len(error)] for each in errors] == [error]


BROKEN: list[tuple[bytes, str]] = [
    (b"{", "it cannot be parsed"),
    (b"\xff", "it is not UTF-8 text"),
    (b"[]", 'it has no list "keys"'),
    (b'{"keys": {}}', 'it has no list "keys"'),
    (b"[" * 100_000, "it cannot be parsed"),
]


@pytest.mark.parametrize(("content", "error"), BROKEN)
def test_a_broken_file_leaves_the_keys_before_it_in_force(
    file: Path,
    clock: FakeClock,
    content: bytes,
    error: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(file, entry())
    keys = keys_of(file, clock)
    assert valid(keys)
    for _ in range(3):
        file.write_bytes(content)
        os.utime(file, (1, 1))  # it is no longer written
        clock.advance(0.5)
        assert [valid(keys), valid(keys, OTHER)] == [True, False]
    assert caplog.text.count(f"The file of API keys {file}: {error}") == 1
    write(file, entry(OTHER))
    clock.advance(0.5)
    assert [valid(keys), valid(keys, OTHER)] == [False, True]
    assert "can be read again" in caplog.text


@pytest.mark.parametrize(("content", "error"), BROKEN)
def test_a_file_that_was_never_good_refuses_every_key(
    file: Path, clock: FakeClock, content: bytes, error: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(UnreadableKeys, match=error):
        keys_of(file, clock).find(KEY, CLIENT)


def test_a_file_that_disappears_revokes_nothing(
    file: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, entry())
    keys = keys_of(file, clock)
    assert valid(keys)
    file.unlink()
    clock.advance(0.5)
    assert valid(keys)
    assert "it does not exist" in caplog.text


def test_a_folder_in_place_of_the_file_is_an_error(file: Path, clock: FakeClock) -> None:
    file.mkdir()
    with pytest.raises(UnreadableKeys, match="Is a directory"):
        keys_of(file, clock).find(KEY, CLIENT)


def test_the_first_key_makes_the_file_which_others_cannot_read(
    file: Path, clock: FakeClock
) -> None:
    keys = keys_of(file, clock)
    assert not valid(keys)
    key, record = keys.create("acme", plan="gold")
    assert valid(keys, key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert [each["id"] for each in json.loads(file.read_text())["keys"]] == [record.id]
    assert os.listdir(file.parent) == [file.name], "no draft is left"


def test_a_change_keeps_the_other_entries_and_the_mode(file: Path, clock: FakeClock) -> None:
    write(file, entry(name="by hand"))
    file.chmod(0o640)
    keys = keys_of(file, clock)
    keys.create("umbrella")
    new, _ = keys.rotate("acme-1", overlap=3600)
    assert [valid(keys), valid(keys, new)] == [True, True]
    keys.revoke("acme-1")
    assert [valid(keys), valid(keys, new)] == [False, False]
    first, second = json.loads(file.read_text())["keys"]
    assert (first["name"], second["owner"]) == ("by hand", "umbrella")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(file: Path, clock: FakeClock, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "keys.json"
    write(target, entry())
    file.symlink_to(target)
    keys_of(file, clock).create("umbrella")
    assert file.is_symlink()
    assert len(json.loads(target.read_text())["keys"]) == 2


def test_a_file_with_a_bad_entry_is_not_rewritten(file: Path, clock: FakeClock) -> None:
    """The entry would be lost."""
    write(file, entry(expire=1))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"keys\[0\] \(acme-1\): expire: unknown"):
        keys_of(file, clock).create("umbrella")
    assert file.read_bytes() == before


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(UnreadableKeys, match="cannot be written: No such file"):
        keys_of(tmp_path / "none" / "keys.json", clock).create("acme")


def test_changes_at_the_same_time_are_all_kept(file: Path, clock: FakeClock) -> None:
    workers = [keys_of(file, clock) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda keys=keys: [keys.create("acme") for _ in range(5)])
        for keys in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(json.loads(file.read_text())["keys"]) == 20


def test_the_last_use_is_in_the_store_not_in_the_file(file: Path, clock: FakeClock) -> None:
    write(file, entry())
    before = file.read_bytes()
    keys = ApiKeys(MemoryStore(), file=str(file), clock=clock)
    assert valid(keys)
    assert file.read_bytes() == before


def test_no_file_is_written_that_the_workers_would_not_read(file: Path, clock: FakeClock) -> None:
    scopes = [f"{number:0200}" for number in range(100)]
    write(file, *(entry(f"{n}", id=f"acme-{n}", scopes=scopes) for n in range(805)))
    before = file.read_bytes()
    assert len(before) < LARGEST
    with pytest.raises(ValueError, match=r"^file: .* remove the entries"):
        keys_of(file, clock).create("acme", scopes=scopes)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
