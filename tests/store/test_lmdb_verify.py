"""A damaged file is recognized before LMDB opens it."""

import logging
import os
import random
import signal
import struct

import pytest

from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_files import Damaged, reach, verify

PAGE = 4096


def filled(folder, seed=0, steps=3000):
    """Fill a store with values of all sizes, many of them removed again; return its file."""
    chance = random.Random(seed)
    store = LmdbStore(folder)
    for _ in range(steps):
        size = chance.choice((0, 17, 17, 17, 400, 3000, 9000))
        new = None if chance.random() < 0.3 else bytes(size)
        store.update(f"key/{chance.randrange(400)}", lambda old, now, new=new: (new, 600.0, None))
    store.close()
    return folder / "data.mdb"


@pytest.mark.parametrize("seed", range(5))
def test_an_undamaged_file_is_accepted_after_any_writes(folder, seed):
    path = filled(folder, seed)
    with path.open("rb") as file:
        verify(file)
        assert 20 * PAGE < reach(file) <= path.stat().st_size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "shorter than its meta pages"),
        (b"short", "shorter than its meta pages"),
        (b"some text " * 5000, "no LMDB header"),
        (bytes(100_000), "no LMDB header"),
    ],
)
def test_a_file_of_another_format_is_rejected(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file, pytest.raises(Damaged, match=words):
        verify(file)


@pytest.mark.parametrize("pages", [3, 10])
def test_a_truncated_file_is_rejected(folder, pages):
    path = filled(folder)
    os.truncate(path, pages * PAGE)
    with path.open("rb") as file, pytest.raises(Damaged, match=f"truncated: {pages * PAGE} bytes"):
        verify(file)


@pytest.mark.parametrize("number", [3, 4, 5, 6], ids=["branch", "leaf", "overflow", "entries"])
def test_a_wrong_number_of_pages_or_entries_is_rejected(folder, number):
    """LMDB reports these numbers as they are, and the store would be full for ever."""
    path = filled(folder)
    data = bytearray(path.read_bytes())
    for page in (0, PAGE):
        at = page + 16 + 72 + (8 + 8 * (number - 3))  # in the tree of the values
        data[at] ^= 1
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(Damaged, match="branch, leaf and overflow pages"):
        verify(file)
    store = LmdbStore(folder)
    assert store.swap("key", None, b"value", 60.0), "the damaged file was moved aside"
    store.close()


def flip_bits(data, chance):
    for _ in range(chance.choice((1, 1, 8, 100))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def lose_a_page(data, chance):
    at = chance.randrange(2, len(data) // PAGE) * PAGE
    data[at : at + PAGE] = bytes(PAGE)


def scribble_on_a_page(data, chance):
    at = chance.randrange(2, len(data) // PAGE) * PAGE
    data[at : at + PAGE] = chance.randbytes(PAGE)


def swap_pages(data, chance):
    one, other = (chance.randrange(2, len(data) // PAGE) * PAGE for _ in range(2))
    kept = data[one : one + PAGE]
    data[one : one + PAGE] = data[other : other + PAGE]
    data[other : other + PAGE] = kept


def damage_a_head(data, chance):
    at = chance.randrange(len(data) // PAGE) * PAGE + chance.randrange(160)
    data[at] = chance.randrange(256)


def use(folder):
    """Use all methods of the store; return the message of the error, if any."""
    store = LmdbStore(folder)
    try:
        for number in range(400):
            store.get(f"key/{number}")
        list(store.items(""))
        for number in range(400):
            store.update(f"key/{number}", lambda old, now: (bytes(17), 1.0, None))
        for number in range(80):  # until the pages that were free are used
            store.update(f"new/{number}", lambda old, now: (bytes(5000), 1.0, None))
        return b"usable"
    except StoreError as error:
        return str(error).encode()


@pytest.mark.parametrize(
    "damage", [flip_bits, lose_a_page, scribble_on_a_page, swap_pages, damage_a_head]
)
def test_no_damage_kills_a_process_that_uses_the_file(folder, damage):
    path = filled(folder)
    with path.open("rb") as file:
        used = reach(file)
    whole = path.read_bytes()
    moved = 0
    for seed in range(60):
        chance = random.Random(f"{damage.__name__} {seed}")
        data = bytearray(whole[:used])
        damage(data, chance)
        path.write_bytes(data + whole[used:])
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            logging.disable()  # what was moved aside: see the faults of LMDB
            os.write(writing, use(folder)[:4000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            words = file.read().decode()
        assert os.waitpid(child, 0)[1] == 0, f"seed {seed}: {words}"
        assert words == "usable" or str(path) in words
        moved += any(".damaged-" in each.name for each in folder.iterdir())
        for each in folder.iterdir():
            each.unlink()
    assert moved > 1


def test_a_check_reports_damage_and_leaves_the_file_unchanged(folder):
    path = filled(folder)
    data = bytearray(path.read_bytes())
    data[2 * PAGE :] = bytes(len(data) - 2 * PAGE)
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        LmdbStore(folder).check()
    assert str(caught.value).startswith(f"{path} is damaged or not an LMDB file (page ")
    assert str(caught.value).endswith("moves it aside and begins an empty one")
    assert path.read_bytes() == data


def test_a_file_of_another_version_of_lmdb_is_rejected_and_left_unchanged(folder):
    path = filled(folder)
    data = bytearray(path.read_bytes())
    for head in (0, PAGE):
        data[head + 20 : head + 24] = struct.pack("<I", 2)
    path.write_bytes(data)
    with pytest.raises(MisconfiguredStore, match="of another version of LMDB"):
        LmdbStore(folder).get("key/1")
    assert path.read_bytes() == data
