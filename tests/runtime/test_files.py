"""A file is parsed again when it has changed, and what was read last survives a broken one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wsgigate.runtime.files import SETTLES, ReloadedFile, UnreadableFile
from wsgigate.testing import FakeClock

Lines = Callable[..., ReloadedFile[list[str]]]


def parse(data: bytes) -> tuple[list[str], list[str]]:
    lines = data.decode().split()
    if "broken" in lines:
        raise ValueError("it is broken")
    return [line for line in lines if line != "bad"], ["bad: is no word"] * lines.count("bad")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "words"


@pytest.fixture
def now() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def lines(path: Path, now: FakeClock) -> Lines:
    def make(absent: list[str] | None = None, largest: int = 100) -> ReloadedFile[list[str]]:
        return ReloadedFile(
            str(path),
            parse,
            what="the list of words",
            logger=logging.getLogger("wsgigate.words"),
            absent=absent,
            largest=largest,
            now=now,
        )

    return make


def write(path: Path, text: str, at: float = 1.0) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


def test_it_is_read_again_when_it_has_changed(path: Path, lines: Lines) -> None:
    write(path, "one")
    file = lines()
    assert file.value is None, "nothing is opened before the first look"
    first = file.look()
    assert file.value == ["one"]
    kept = file.value
    assert file.look() == first
    assert file.value is kept
    write(path, "one two")
    assert file.look() != first
    assert file.value == ["one", "two"]


def test_a_file_that_is_written_in_place_is_read_when_it_is_complete(
    path: Path, lines: Lines, now: FakeClock
) -> None:
    write(path, "one two")
    file = lines()
    file.look()
    write(path, "one", at=now.now - SETTLES / 2)
    file.look()
    assert file.value == ["one", "two"], "it may be incomplete"
    now.advance(SETTLES)
    file.look()
    assert file.value == ["one"]


def test_a_file_that_was_replaced_is_read_at_once(path: Path, lines: Lines, now: FakeClock) -> None:
    write(path, "one")
    file = lines()
    file.look()
    draft = path.with_suffix(".new")
    write(draft, "two", at=now.now)
    draft.replace(path)
    file.look()
    assert file.value == ["two"]


def test_the_clock_of_another_machine_delays_nothing(
    path: Path, lines: Lines, now: FakeClock
) -> None:
    write(path, "one")
    file = lines()
    file.look()
    write(path, "two", at=now.now + 3600)
    file.look()
    assert file.value == ["two"]


@pytest.mark.parametrize("text", ["broken", "x" * 101])
def test_a_broken_file_changes_nothing_and_is_logged_once(
    path: Path, lines: Lines, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, "one")
    file = lines()
    first = file.look()
    write(path, text)
    assert [file.look(), file.look()] == [first, first]
    assert file.value == ["one"]
    assert len(caplog.records) == 1
    assert f"The list of words {path}: it is" in caplog.text
    write(path, "two", at=2.0)
    file.look()
    assert file.value == ["two"]
    assert "can be read again" in caplog.text


def test_a_file_that_comes_back_unchanged_is_in_force(
    path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, "one")
    file = lines()
    first = file.look()
    away = path.with_suffix(".old")
    path.rename(away)
    assert file.look() == first
    assert "it does not exist" in caplog.text
    away.rename(path)
    assert file.look() == first
    assert "can be read again" in caplog.text


def test_a_bad_entry_is_logged_and_left_out(
    path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, "one bad")
    file = lines()
    file.look()
    assert file.value == ["one"]
    assert f"In the list of words {path}, bad: is no word; this entry is ignored" in caplog.text


@pytest.mark.parametrize("text", ["broken", None])
def test_without_anything_read_a_broken_or_absent_file_is_an_error(
    path: Path, lines: Lines, text: str | None
) -> None:
    if text is not None:
        write(path, text)
    file = lines()
    for _ in range(2):
        with pytest.raises(UnreadableFile, match=f"the list of words {path}: it "):
            file.look()


def test_a_caller_that_needs_the_content_gets_its_errors_unlogged(
    path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    file = lines()
    with pytest.raises(FileNotFoundError):
        file.first()
    for text, error in (("broken", "it is broken"), ("x" * 101, "it is larger than 100 bytes")):
        write(path, text)
        with pytest.raises(ValueError, match=error):
            file.first()
    assert (file.value, caplog.messages) == (None, [])
    write(path, "one")
    assert (file.first(), file.value, file.failing) == (["one"], ["one"], False)
    write(path, "broken", 2.0)
    file.look()
    assert (file.value, file.failing) == (["one"], True)
    write(path, "two", 3.0)
    file.look()
    assert (file.value, file.failing) == (["two"], False)


def test_an_absent_file_may_have_a_meaning(
    path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    file = lines(absent=[])
    assert [file.look(), file.look()] == [None, None]
    assert file.value == []
    said = f"The list of words {path} does not exist, and counts as empty until it does"
    assert caplog.messages == [said]
    write(path, "one")
    assert file.look() is not None
    assert file.value == ["one"]


def test_a_change_by_this_process_is_read_at_the_next_look(path: Path, lines: Lines) -> None:
    write(path, "one")
    file = lines()
    file.look()
    write(path, "two")
    file.forget()
    file.look()
    assert file.value == ["two"]


def test_a_slow_thread_does_not_put_older_content_in_place_of_newer(path: Path) -> None:
    def slow(data: bytes) -> tuple[bytes, list[str]]:
        if data == b"old":
            path.with_suffix(".new").write_bytes(b"newer")
            path.with_suffix(".new").replace(path)
            other.start()
            other.join(0.05)  # another thread reads the file meanwhile, or waits
        return data, []

    write(path, "old")
    log = logging.getLogger("wsgigate.words")
    file = ReloadedFile(str(path), slow, what="the list of words", logger=log)
    other = threading.Thread(target=file.look)
    file.look()
    other.join(30)
    assert not other.is_alive()
    assert file.value == b"newer"


def test_threads_that_wait_for_the_same_content_do_not_parse_it_again(path: Path) -> None:
    def slow(data: bytes) -> tuple[bytes, list[str]]:
        parsed.append(data)
        if not other.ident:
            other.start()
            other.join(0.05)
        return data, []

    write(path, "words")
    parsed: list[bytes] = []
    log = logging.getLogger("wsgigate.words")
    file = ReloadedFile(str(path), slow, what="the list of words", logger=log)
    other = threading.Thread(target=file.look)
    file.look()
    other.join(30)
    assert parsed == [b"words"]
