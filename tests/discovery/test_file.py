"""Instances in a file that is replaced, written in place, incomplete, invalid or missing."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wsgigate.config.yaml import parse_yaml
from wsgigate.discovery.sources import Found, SourceError, read_list
from wsgigate.discovery.sources.file import LOOK_EVERY, WatchedFile

NEVER = threading.Event()
A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"


def find(source: WatchedFile) -> list[tuple[str, int]]:
    found = source.find(NEVER)
    assert found.again_in == LOOK_EVERY < 0.5  # so that what is written in place counts in time
    return [(instance.url, instance.weight) for instance in found.instances]


def replace(path: Path, text: str) -> None:
    """Put another file in the place of *path*, at once."""
    beside = path.with_name("beside")
    beside.write_text(text)
    os.replace(beside, path)


def write(path: Path, text: str, *, at: int) -> None:
    """Write into the file that is there; *at* is the second in which that is."""
    path.write_text(text)
    os.utime(path, ns=(at * 10**9, at * 10**9))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.json"


@pytest.mark.parametrize(
    ("name", "text", "parse"),
    [
        ("a.json", f'["{A}", {{"url": "{B}", "weight": 3}}]', None),
        ("a.json", f'{{"instances": ["{A}", {{"url": "{B}", "weight": 3}}]}}', None),
        ("a.toml", f'instances = ["{A}", {{ url = "{B}", weight = 3 }}]', None),
        ("a.yaml", f"- {A}\n- url: {B}\n  weight: 3\n", parse_yaml),
        ("a.yml", f"instances:\n- {A}\n- {{url: '{B}', weight: 3}}\n", parse_yaml),
    ],
)
def test_each_form_of_a_list_is_read(
    name: str, text: str, parse: Callable[[str], object] | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert find(WatchedFile(tmp_path / name, parse=parse)) == [(A, 1), (B, 3)]


def test_a_file_of_another_format_requires_a_parser(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.json or \.toml"):
        WatchedFile(tmp_path / "users.ini")


def test_a_replaced_file_is_read_at_the_next_check(path: Path) -> None:
    path.write_text(f'["{A}"]')
    source = WatchedFile(path)
    assert find(source) == [(A, 1)]
    replace(path, f'["{B}"]')
    assert find(source) == [(B, 1)]


def test_a_file_written_in_place_is_read_once_it_stops_changing(path: Path) -> None:
    """Half of a YAML list is a list."""
    source = WatchedFile(path, parse=parse_yaml)
    write(path, f"- {A}\n- {B}\n", at=1)
    assert len(find(source)) == 2
    write(path, f"- {B}\n", at=2)
    assert len(find(source)) == 2
    write(path, f"- {B}\n- {A}\n", at=3)
    assert find(source) == [(A, 1), (B, 1)]  # it changed meanwhile
    assert find(source) == [(B, 1), (A, 1)]


def test_a_file_that_changes_during_reading_is_ignored(path: Path) -> None:
    write(path, f'["{A}"]', at=1)
    source = WatchedFile(path)

    class Opened(io.BytesIO):
        """The file, which somebody writes to as soon as it was read."""

        def fileno(self) -> int:
            return file.fileno()

        def read(self, size: int | None = -1) -> bytes:
            data = file.read(size)
            write(path, f'["{A}", "{B}"]', at=2)
            return data

    with path.open("rb") as file:
        source.look(Opened())
    with pytest.raises(SourceError, match="is being written"):
        source.find(NEVER)
    assert len(find(source)) == 2


def test_a_file_that_did_not_change_is_not_read_again(path: Path) -> None:
    times = []

    def parse(text: str) -> object:
        times.append(text)
        return [A]

    path.write_text("x")
    source = WatchedFile(path, parse=parse)
    for _ in range(5):
        find(source)
    assert len(times) == 1
    source.close()
    find(source)
    assert len(times) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'["{A}", ', "cannot be parsed"),
        ("", "cannot be parsed"),
        ("{}", "instances: expected a list"),
        ('"x"', "instances: expected a list"),
        ("[7]", r"instances\[0\].url: expected an address"),
        (f'["{A}", "10.0.0.2:8000"]', r"instances\[1\].url: an instance's URL must start with"),
        (f'["{A}", "{A}/"]', r"instances\[1\].url: the instance is listed twice"),
        (f'[{{"url": "{A}", "wieght": 2}}]', r"instances\[0\].wieght: is not a known key"),
        (f'[{{"url": "{A}", "weight": -1}}]', r"instances\[0\].weight: expected a whole number"),
        (f'[{{"url": "{A}", "tier": 16}}]', r"instances\[0\].tier: expected a whole number"),
        (f'[{{"url": "{A}", "weight": true}}]', r"instances\[0\].weight: expected a whole number"),
        ("[" * 100_000, "cannot be parsed"),
        (" " * 2_000_000, "larger than 1 MiB"),
    ],
)
def test_an_invalid_list_is_an_error_until_it_is_corrected(
    path: Path, text: str, said: str
) -> None:
    replace(path, f'["{A}"]')
    source = WatchedFile(path)
    find(source)
    replace(path, text)
    for _ in range(2):
        with pytest.raises(SourceError, match=said) as caught:
            source.find(NEVER)
        assert caught.value.again_in == LOOK_EVERY  # it may be whole in a moment
    replace(path, f'["{B}"]')
    assert find(source) == [(B, 1)]


def test_a_missing_file_is_an_error_and_no_empty_list(path: Path) -> None:
    source = WatchedFile(path)
    with pytest.raises(SourceError, match="No such file"):
        source.find(NEVER)
    path.write_text(f'["{A}"]')
    assert find(source) == [(A, 1)]
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        source.find(NEVER)


def test_a_file_that_is_not_utf_8_is_an_error(path: Path) -> None:
    path.write_bytes(b'["\xff"]')
    with pytest.raises(SourceError, match="cannot be parsed"):
        WatchedFile(path).find(NEVER)


def test_an_empty_list_is_certain(path: Path) -> None:
    path.write_text("[]")
    assert WatchedFile(path).find(NEVER) == Found((), LOOK_EVERY, certain=True)


def test_the_size_of_a_list_is_limited() -> None:
    with pytest.raises(SourceError, match="at most 10000"):
        read_list([A] * 10_001)


def test_an_instance_of_a_list_may_have_a_zone(path: Path) -> None:
    path.write_text(f'[{{"url": "{A}", "zone": "eu-1a"}}, "{B}"]')
    found = WatchedFile(path).find(threading.Event())
    assert [instance.zone for instance in found.instances] == ["eu-1a", ""]
    for zone, said in (("7", "expected a text"), ('"two words"', "zone must be at most")):
        path.write_text(f'[{{"url": "{A}", "zone": {zone}}}]')
        with pytest.raises(SourceError, match=said):
            WatchedFile(path).find(threading.Event())
