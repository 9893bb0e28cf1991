"""The strangler example, as its README runs it: a Flask shop that moves its orders to a service."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.test_examples import EXAMPLES, Client, Program, gunicorn, running
from tests.support.ports import HOME, free_ports, is_free
from tests.support.waiting import until

SERVICE = "gunicorn --no-control-socket --bind 127.0.0.1:1 orders:app"
SITE = re.search(
    r"^    gunicorn (--pid .+)$", (EXAMPLES / "strangler" / "README.rst").read_text(), re.MULTILINE
)
BY_THE_SERVICE = {"X-Orders": "route"}


class Shop:
    """The shop in a copy of the example's folder."""

    def __init__(self, folder: Path, program: Program, url: str) -> None:
        self.folder = folder
        self.program = program
        self.url = url

    def visitor(self, address: str = HOME, name: str = "ada", password: str = "lovelace") -> Client:
        """Return a client that is logged in."""
        client = Client(self.url, address)
        form = {"name": name, "password": password}
        assert client.ask("POST", "/login", data=form).status_code == 302
        return client

    def move(self, percent: str) -> None:
        """Change one line of the file, and reload the workers."""
        file = self.folder / "gateway.toml"
        text, count = re.subn(
            r"^percent = \S+", f"percent = {percent}", file.read_text(), flags=re.M
        )
        assert count == 1
        file.write_text(text)
        before = self.program.told().count("Booting worker")
        self.program.popen.send_signal(signal.SIGHUP)
        until(lambda: self.program.told().count("Booting worker") == before + 2)
        until(lambda: self.program.told().count("Worker exiting") == before)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("strangler")
    for file in (EXAMPLES / "strangler").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    with gunicorn(SERVICE, folder) as service, serving(folder, service.url) as shop:
        yield shop


@contextmanager
def serving(folder: Path, service: str) -> Iterator[Shop]:
    assert SITE is not None
    port = free_ports()
    line = SITE[1].replace("127.0.0.1:8000", f"{HOME}:{port}").split()
    with running(["-m", "gunicorn", *line], folder, ORDERS_SERVICE_URL=service) as program:
        program.wait_for(lambda: not is_free(port))
        yield Shop(folder, program, f"http://{HOME}:{port}")


def answered_by(client: Client, **headers: str) -> str:
    answer = client.ask("GET", "/api/orders", headers=headers)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["answered_by"]
    return found


def test_the_service_is_behind_the_login_of_the_shop(shop: Shop) -> None:
    stranger = Client(shop.url)
    for headers in ({}, BY_THE_SERVICE, {**BY_THE_SERVICE, "X-User-Id": "ada"}):
        answer = stranger.ask("GET", "/api/orders", headers=headers)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Log in first."})
    page = {**BY_THE_SERVICE, "Accept": "text/html"}
    answer = stranger.ask("GET", "/api/orders?a=b", headers=page)
    assert (answer.status_code, answer.headers["Location"]) == (
        302,
        "/login?next=%2Fapi%2Forders%3Fa%3Db",
    )
    alan = shop.visitor(name="alan", password="turing")
    headers = {**BY_THE_SERVICE, "X-User-Id": "ada"}
    assert alan.ask("GET", "/api/orders", headers=headers).json() == {
        "answered_by": "the new service",
        "customer": "alan",
        "orders": ["2 enigmas", "1 bombe"],
    }
    alan.ask("POST", "/logout")
    assert alan.ask("GET", "/api/orders", headers=BY_THE_SERVICE).status_code == 401


def test_a_page_of_another_site_changes_nothing(shop: Shop) -> None:
    ada = shop.visitor()
    evil = {**BY_THE_SERVICE, "Origin": "https://evil.example"}
    assert ada.ask("POST", "/api/orders", headers=evil).status_code == 403
    own = {**BY_THE_SERVICE, "Origin": shop.url}
    assert ada.ask("POST", "/api/orders", headers=own).status_code == 201


def test_the_service_neither_sees_nor_ends_the_session(shop: Shop) -> None:
    ada = shop.visitor()
    ada.cookies.set("theme", "dark")
    answer = ada.ask("GET", "/api/orders/seen", headers=BY_THE_SERVICE)
    assert answer.json() == {"cookies": ["theme"], "user": "ada", "link": f"{shop.url}/"}
    assert "Set-Cookie" not in answer.headers
    assert "ada" in ada.ask("GET", "/").text


def test_the_path_moves_and_moves_back_by_one_line(shop: Shop) -> None:
    ada = shop.visitor()
    for percent, expected in (("100", "the new service"), ("0", "the monolith")):
        shop.move(percent)
        assert answered_by(ada) == expected
        assert "ada" in ada.ask("GET", "/").text
    shop.move("50")
    visitors = [Client(shop.url, f"127.0.1.{number}") for number in range(1, 25)]
    for each in visitors:
        each.cookies.update(ada.cookies)
    sides = [answered_by(each) for each in visitors]
    # which addresses move is a hash of them: the same in each run
    assert set(sides) == {"the monolith", "the new service"}
    assert [answered_by(each) for each in visitors] == sides
    for each in (ada, *visitors):
        each.close()


def test_the_rest_of_the_shop_works_while_the_service_is_down(tmp_path: Path) -> None:
    for file in (EXAMPLES / "strangler").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    with serving(tmp_path, f"http://{HOME}:{free_ports()}") as shop:
        ada = shop.visitor()
        answer = ada.ask("GET", "/api/orders", headers=BY_THE_SERVICE)
        assert answer.status_code == 503
        assert answer.json()["error"] == "Connection refused"
        assert "ada" in ada.ask("GET", "/").text
        assert answered_by(ada, **{"X-Orders": "fallback"}) == "the monolith"
