"""Limits around apps that have no gateway: who counts together, and who is told from whom."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.redis_server import Server
from tests.support.servers import Served, Servers, home

APP = """
from flask import Flask
from wsgigate import ClientAddress, Limiter

app = Flask(__name__)
app.add_url_rule("/", view_func=lambda: "Hello!")
app.wsgi_app = Limiter(app.wsgi_app, "3 per hour", store={store!r})
"""

TWO = """
from flask import Flask
from wsgigate import Limiter

shop, blog = Flask(__name__), Flask(__name__)
for app in (shop, blog):
    app.add_url_rule("/", view_func=lambda: "Hello!")
    app.wsgi_app = Limiter(app.wsgi_app, "3 per hour", store={store!r})
"""

Run = Callable[..., Served]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Return a starter of an app in a folder: ``run("shop", "app:app", "--workers", "2")``."""
    with Servers() as servers:

        def start(folder: str, app: str, *options: str) -> Served:
            place = tmp_path / folder
            command = [sys.executable, "-m", "gunicorn", app, "--chdir", str(place), *options]
            return servers.start(
                lambda port: [*command, "-b", f"127.0.0.1:{port}"],
                tmp_path / f"log{servers.number}",
                home(tmp_path),
            )

        yield start


@pytest.fixture(params=["the default", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    if request.param == "the default":
        yield None
        return
    server = Server(tmp_path / "redis")
    yield server.url
    server.stop()


def ask(served: Served, times: int) -> list[int]:
    return [requests.get(served.url, timeout=30).status_code for _ in range(times)]


def write(folder: Path, text: str, store: str | None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(text.format(store=store))


def test_processes_of_an_app_count_together_and_projects_apart(
    run: Run, tmp_path: Path, store: str | None
) -> None:
    for folder in ("shop", "blog"):
        write(tmp_path / folder, APP, store)
    shop = run("shop", "app:app", "--workers", "2")
    again = run("shop", "app:app", "--threads", "2")  # another port, other arguments
    blog = run("blog", "app:app")  # another project whose module is called app
    assert ask(shop, 2) + ask(again, 2) == [200, 200, 200, 429]
    assert ask(blog, 4) == [200, 200, 200, 429]
    again.stop()
    later = run("shop", "app:app")  # after a restart
    assert ask(later, 1) == [429]


def test_two_apps_of_a_module_count_apart_in_processes_of_their_own(
    run: Run, tmp_path: Path, store: str | None
) -> None:
    write(tmp_path / "both", TWO, store)
    shop, blog = run("both", "app:shop"), run("both", "app:blog")
    assert ask(shop, 4) == [200, 200, 200, 429]
    assert ask(blog, 4) == [200, 200, 200, 429]


def ask_by(path: Path, client: str) -> int:
    """Ask by a Unix socket, as a proxy that forwards for *client*."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/", headers={"X-Forwarded-For": client, "Connection": "close"})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("trusted", [True, False])
def test_clients_behind_a_unix_socket_are_distinguished_or_a_warning_is_logged(
    run: Run, tmp_path: Path, trusted: bool
) -> None:
    write(tmp_path / "shop", APP, None)
    if trusted:
        with (tmp_path / "shop" / "app.py").open("a") as file:
            file.write('app.wsgi_app = ClientAddress(app.wsgi_app, trusted_proxies=["unix"])\n')
    path = tmp_path / "shop.sock"
    served = run("shop", "app:app", "-b", f"unix:{path}")
    statuses = [ask_by(path, f"203.0.113.{number}") for number in range(6)]
    assert statuses == ([200] * 6 if trusted else [200, 200, 200, 429, 429, 429])
    warning = "the limit 'default' counts all clients behind the proxy in front as one"
    assert served.log.count(warning) == (0 if trusted else 1)


def test_a_folder_that_cannot_be_had_is_an_error_and_no_unlimited_app(
    run: Run, tmp_path: Path
) -> None:
    write(tmp_path / "shop", APP, None)
    (tmp_path / ".local").write_text("a file in the way")
    served = run("shop", "app:app")
    assert ask(served, 2) == [500, 500]
    assert 'pass store="lmdb:/path" with a folder that this user may write' in served.log
    (tmp_path / ".local").unlink()
    assert ask(served, 4) == [200, 200, 200, 429]


def test_the_same_file_run_as_a_program_counts_with_the_others(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "shop", APP, None)
    with (tmp_path / "shop" / "app.py").open("a") as file:
        file.write("if __name__ == '__main__':\n")
        file.write("    print(app.test_client().get('/').status_code)\n")
    served = run("shop", "app:app")
    assert ask(served, 3) == [200] * 3
    done = subprocess.run(
        [sys.executable, str(tmp_path / "shop" / "app.py")],
        env=home(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "429\n"
