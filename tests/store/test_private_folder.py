"""The folder of a plain ``lmdb:`` is private to its user, and one per app."""

import os
import stat
import sys
from typing import Any

import pytest

from wsgigate.store import StoreError
from wsgigate.store.lmdb_folders import private_folder
from wsgigate.store.open import open_store

FIX = 'set store.url = "lmdb:/path"'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home, a runtime folder and a working directory of nobody's but this test's."""
    for name in ("home", "run", "work"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_the_folder_is_in_the_runtime_folder_and_named_after_its_owner(home):
    folder = private_folder("my shop/gateway")
    assert os.path.dirname(folder) == str(home / "run" / "wsgigate")
    assert os.path.basename(folder).startswith("my-shop-gateway-")
    for path in (folder, home / "run" / "wsgigate"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert private_folder("my shop/gateway") == folder


@pytest.mark.parametrize("other", ["shop2", "shop ", "Shop", "sh/op", "s" * 5000, "日本"])
def test_two_owners_have_different_folders(other):
    assert private_folder(other) != private_folder("shop")


@pytest.mark.parametrize("runtime", [None, "", "relative", "/nonexistent/runtime"])
def test_without_a_runtime_folder_the_state_folder_is_used(home, monkeypatch, runtime):
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert private_folder("shop").startswith(f"{home}/home/.local/state/wsgigate/shop-")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    assert private_folder("shop").startswith(f"{home}/state/wsgigate/shop-")


def test_an_unsafe_runtime_folder_is_not_used(home):
    (home / "elsewhere").mkdir()
    (home / "run" / "wsgigate").symlink_to(home / "elsewhere")
    assert private_folder("shop").startswith(f"{home}/home/.local/state/")
    assert list((home / "elsewhere").iterdir()) == []


def test_the_error_names_both_places_and_the_remedy(home):
    (home / "run" / "wsgigate").mkdir(mode=0o755)
    (home / "run" / "wsgigate").chmod(0o755)
    (home / "home" / ".local").write_text("a file in the way")
    with pytest.raises(StoreError) as caught:
        private_folder("shop")
    words = str(caught.value)
    assert f"{home}/run/wsgigate is open to other users; chmod 700" in words
    assert f"{home}/home/.local/state/wsgigate cannot be made" in words
    assert FIX in words


def test_the_workers_of_one_program_share_a_folder(home, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gunicorn", "shop:app"])
    folder = private_folder("")
    assert os.path.basename(folder).startswith("gunicorn-work-")
    assert private_folder("") == folder


def test_another_program_or_place_has_another_folder(home, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gunicorn", "shop:app"])
    folders = {private_folder("")}
    monkeypatch.setattr(sys, "argv", ["gunicorn", "blog:app"])
    folders.add(private_folder(""))
    monkeypatch.chdir(home / "home")
    folders.add(private_folder(""))
    assert len(folders) == 3


def test_a_plain_lmdb_url_is_a_private_folder(home):
    store: Any = open_store("lmdb:", owner="shop")
    assert store.path == private_folder("shop")
    store.check()


@pytest.mark.parametrize("url", ["", "lmdb", "memory", "memory:x", "sqlite:/x", "LMDB:/x"])
def test_an_invalid_url_is_rejected(url):
    with pytest.raises(ValueError, match='a store is "memory:", "lmdb:", "lmdb:PATH" or a URL'):
        open_store(url)
