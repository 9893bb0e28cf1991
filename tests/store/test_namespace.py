"""Apps that share a store have separate values, shared by all processes of one app."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flask
import pytest

from wsgigate.store.memory import MemoryStore
from wsgigate.store.namespace import check_namespace, relative
from wsgigate.store.open import Namespaced, OpenedStore

ROOT = Path(__file__).parents[2]

TELL = """
import json, sys

def opened(limiter):
    from tests.support.objects import part
    from wsgigate.store.open import OpenedStore
    return part(OpenedStore, limiter)

def folder(store):
    from tests.support.objects import part
    from wsgigate.store.namespace import AppNamespace
    return part(AppNamespace, store).folder().rpartition(chr(0))[2]

def tell(**limiters):
    stores = {name: opened(each) for name, each in limiters.items()}
    print(json.dumps({name: [each.prefix, folder(each)] for name, each in stores.items()}))
"""

SHOP = """
from flask import Flask
from wsgigate import Limiter

app = Flask(__name__)
app.wsgi_app = Limiter(app.wsgi_app, "2/h")
if __name__ == "__main__":
    from tell import tell
    tell(app=app.wsgi_app)
"""

TWO = """
from flask import Flask
from wsgigate import Limiter, RequestId

shop = Flask(__name__)
shop.wsgi_app = Limiter(RequestId(shop.wsgi_app), "2/h")
blog = Flask(__name__)
blog.wsgi_app = Limiter(blog.wsgi_app, "2/h")
"""

FACTORIES = """
from flask import Flask
from wsgigate import Limiter

def protected(app):
    app.wsgi_app = Limiter(app.wsgi_app, "2/h")
    return app

def create_shop():
    return protected(Flask(__name__))

def create_blog():
    return protected(Flask(__name__))
"""

CLOSURES = """
from wsgigate import Limiter

def make(text):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [text]
    return app

shop = Limiter(make(b"shop"), "2/h")
blog = Limiter(make(b"blog"), "2/h")
unnamed = [Limiter(make(b"a"), "2/h"), Limiter(make(b"b"), "2/h")]
"""

OBJECTS = """
import wsgiref.validate
from wsgigate import Limiter

class App:
    def __call__(self, environ, start_response): ...

class Other(App): ...

one = Limiter(App(), "2/h")
two = Limiter(App(), "2/h")
other = Limiter(Other(), "2/h")
"""

DJANGO = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.wsgi import get_wsgi_application
from wsgigate import Limiter

application = Limiter(get_wsgi_application(), "2/h")
"""


class Projects:
    """Folders with programs, and what programs say in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tell.py").write_text(TELL)

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def run(self, *arguments: str, cwd: str = ".", path: str = ".") -> list[dict[str, Any]]:
        env = {"PYTHONPATH": f"{self.folder}:{self.folder / path}:{ROOT}", "HOME": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder / cwd,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def told(self, code: str, **where: str) -> list[dict[str, Any]]:
        return self.run("-c", f"from tell import opened, tell\n{code}", **where)


@pytest.fixture
def projects(tmp_path: Path) -> Projects:
    return Projects(tmp_path)


def test_all_processes_of_one_app_have_one_name_and_folder(projects: Projects) -> None:
    """Another port, another server, another working directory, another name of the module."""
    file = projects.write("shop/app.py", SHOP)
    loaded = f"""
import sys, types
from app import app  # as gunicorn does
ways = [app]
for name in ("_mod_wsgi_0f3c", "uwsgi_file_app_py"):  # as mod_wsgi and uWSGI load a file
    module = types.ModuleType(name)
    module.__file__ = {str(file)!r}
    sys.modules[name] = module
    exec(compile(open(module.__file__).read(), module.__file__, "exec"), vars(module))
    ways.append(module.app)
for way in ways:
    tell(app=way.wsgi_app)
"""
    ways = [
        *projects.run(str(file), "--port", "8000"),
        *projects.run("app.py", "--port", "8001", cwd="shop"),
        *projects.told("from shop.app import app; tell(app=app.wsgi_app)"),
        *projects.told(loaded, path="shop"),
    ]
    assert len(ways) == 6
    assert ways == [ways[0]] * len(ways)
    assert ways[0]["app"][1] == str(file)


def test_projects_whose_module_has_the_same_name_do_not_share(projects: Projects) -> None:
    for folder in ("shop", "blog"):
        projects.write(f"{folder}/app.py", SHOP)
    code = "import app; tell(app=app.app.wsgi_app)"
    shop, blog = (projects.told(code, path=folder)[0]["app"] for folder in ("shop", "blog"))
    assert shop[0] != blog[0]
    assert shop[1] != blog[1]


def test_two_apps_of_one_module_do_not_share_in_either_order(projects: Projects) -> None:
    projects.write("two.py", TWO)
    code = "import two; tell({first}=two.{first}.wsgi_app, {then}=two.{then}.wsgi_app)"
    [one] = projects.told(code.format(first="shop", then="blog"))
    [other] = projects.told(code.format(first="blog", then="shop"))
    assert one == other
    assert one["shop"][0] != one["blog"][0]


def test_factories_of_one_module_make_apps_that_do_not_share(projects: Projects) -> None:
    projects.write("made.py", FACTORIES)
    code = "import made; app = made.create_{}(); tell(app=app.wsgi_app)"
    shop, again, blog = (projects.told(code.format(n))[0]["app"] for n in ("shop", "shop", "blog"))
    assert shop == again
    assert shop[0] != blog[0]


@pytest.mark.parametrize("text", [CLOSURES, OBJECTS], ids=["closures", "objects"])
def test_apps_of_one_kind_do_not_share(projects: Projects, text: str) -> None:
    projects.write("many.py", text)
    code = """
import random, many
found = {name: value for name, value in vars(many).items() if type(value).__name__ == "Limiter"}
found |= {f"unnamed{n}": each for n, each in enumerate(getattr(many, "unnamed", []))}
names = list(found)
random.shuffle(names)
for name in names:
    opened(found[name]).prefix  # in any order
tell(**found)
"""
    [one], [other] = projects.told(code), projects.told(code)
    assert one == other
    prefixes = [prefix for prefix, _ in one.values()]
    assert len(set(prefixes)) == len(prefixes) >= 3


def test_django_projects_are_distinguished_by_their_settings(projects: Projects) -> None:
    for folder in ("shop", "blog"):
        projects.write(f"{folder}/settings.py", "SECRET_KEY = 'x'\nROOT_URLCONF = 'urls'\n")
        projects.write(f"{folder}/wsgi.py", DJANGO)
        projects.write(f"{folder}/other_wsgi.py", DJANGO)
    code = "import {0}; tell(app={0}.application)"
    shop, again, blog = (
        projects.told(code.format(module), path=folder)[0]["app"]
        for folder, module in (("shop", "wsgi"), ("shop", "other_wsgi"), ("blog", "wsgi"))
    )
    assert shop[0] != blog[0]
    assert shop[1] == again[1] == str(projects.folder / "shop/settings.py")


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_middlewares_around_one_app_share_its_namespace() -> None:
    app = flask.Flask(__name__)
    inner = OpenedStore(None, app.wsgi_app)
    app.wsgi_app = lambda environ, start: []  # type: ignore[assignment, method-assign]
    assert inner.prefix == OpenedStore("lmdb:", app).prefix
    assert inner.prefix != OpenedStore(None, hello).prefix


def test_garbage_collected_apps_are_not_counted() -> None:
    def made() -> str:
        return OpenedStore(None, flask.Flask("gone")).prefix

    first = made()
    assert all(made() == first for _ in range(3))
    kept = [flask.Flask("gone") for _ in range(2)]
    stores = [OpenedStore(None, app) for app in kept]
    assert len({store.prefix for store in stores}) == 2


URLS = ["redis://127.0.0.1:1/0", "lmdb:/tmp/nowhere", "lmdb:", None]


@pytest.mark.parametrize("url", URLS)
def test_apps_that_share_a_url_do_not_share_values(url: str | None) -> None:
    shop, blog = flask.Flask("shop"), flask.Flask("blog")
    one, two, again = (OpenedStore(url, app) for app in (shop, blog, shop.wsgi_app))
    assert one.prefix == again.prefix != two.prefix
    assert len(one.prefix) == 17


@pytest.mark.parametrize("url", [*URLS, "redis://127.0.0.1:1/0?prefix=a:", "memory:"])
def test_users_of_one_namespace_share_values(url: str | None) -> None:
    for app in (flask.Flask("shop"), hello, None):
        assert OpenedStore(url, app, namespace="all-shops").prefix == "all-shops/"
    assert OpenedStore(MemoryStore(), hello, namespace="a").prefix == "a/"


def test_users_of_one_prefix_in_the_url_share_values() -> None:
    url = "redis://127.0.0.1:1/0?prefix=shops:"
    assert OpenedStore(url, hello).prefix == OpenedStore(url, flask.Flask("a")).prefix == ""


def test_users_of_one_store_object_share_values() -> None:
    assert OpenedStore(MemoryStore(), hello).prefix == ""


@pytest.mark.parametrize("namespace", ["", "a/b", "a b", "ä", "x" * 65, "a\n", 7, b"a"])
def test_a_malformed_namespace_is_rejected(namespace: Any) -> None:
    with pytest.raises(ValueError, match="namespace is 1 to 64 visible ASCII characters"):
        check_namespace(namespace)
    with pytest.raises(ValueError, match="namespace is 1 to 64"):
        OpenedStore(None, hello, namespace=namespace)


def test_keys_of_a_namespace_are_found_by_it_alone() -> None:
    store = MemoryStore()
    mine, theirs = (Namespaced(OpenedStore(store, namespace=name)) for name in ("a", "b"))
    assert mine.swap("deny/k", None, b"1", 10)
    assert mine.get("deny/k")[0] == b"1"
    assert theirs.get("deny/k")[0] is None
    theirs.update("deny/k", lambda old, now: (b"2", 10, None))
    assert list(mine.items("deny/")) == [("deny/k", b"1")]
    assert list(theirs.items("deny/k")) == [("deny/k", b"2")]
    assert list(mine.items("health/")) == []
    assert sorted(key for key, _ in store.items("")) == ["deny//a/k", "deny//b/k"]


def test_a_namespace_is_no_part_of_the_keys_without_one() -> None:
    store = MemoryStore()
    alone, named = (Namespaced(OpenedStore(store, namespace=name)) for name in (None, "record"))
    assert named.swap("api-keys/record/1", None, b"1", 10)
    assert alone.swap("api-keys/record/1", None, b"2", 10)
    assert list(alone.items("api-keys/record/")) == [("api-keys/record/1", b"2")]
    assert list(named.items("api-keys/record/")) == [("api-keys/record/1", b"1")]


def test_a_key_of_a_namespace_has_a_first_part() -> None:
    store = Namespaced(OpenedStore(MemoryStore(), namespace="a"))
    for use in (store.get, lambda key: list(store.items(key))):
        with pytest.raises(ValueError, match="has a first part and a slash, not 'deny'"):
            use("deny")


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("/srv/shop/app.py", "/srv/shop/app.py"),
        ("/opt/v/lib/python3.11/site-packages/shop/web.py", "site-packages/shop/web.py"),
        ("/usr/lib/python3/dist-packages/shop.py", "dist-packages/shop.py"),
        ("/a/site-packages/b/site-packages/c.py", "site-packages/c.py"),
    ],
)
def test_an_installed_app_has_the_same_name_under_every_python(file: str, place: str) -> None:
    assert relative(file) == place
