"""The Django site of the examples whose orders move to a new service: real servers, both ways."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers import Served, Servers, home

EXAMPLE = Path(__file__).parents[2] / "examples" / "strangler_django"
SITE, SERVICE = "the site", "the new service"

Start = Callable[[int], "Browser"]


class Browser(requests.Session):
    """A browser of one user, which sends the fields that its pages send."""

    def __init__(self, site: Served) -> None:
        super().__init__()
        self.trust_env = False
        self.site = site

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.request(method, self.site.url + path, timeout=30, allow_redirects=False, **more)

    def log_in(self) -> None:
        page = self.ask("GET", "/login/")
        token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.text)[1]
        form = {"username": "ada", "password": "secret", "csrfmiddlewaretoken": token}
        assert self.ask("POST", "/login/", data=form).status_code == 302

    def order(self, product: str, **fields: str | None) -> requests.Response:
        fields = {"X-CSRFToken": self.cookies["csrftoken"], **fields}
        return self.ask("POST", "/api/orders/", json={"product": product}, headers=fields)


def run(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=EXAMPLE, env=os.environ | env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of the site, with a database in which ada is a user."""
    folder = tmp_path_factory.mktemp("site")
    env = home(folder) | {
        "PYTHONPATH": str(EXAMPLE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DJANGO_SUPERUSER_PASSWORD": "secret",
        "SHOP_DATABASE": str(folder / "shop.sqlite3"),
    }
    run(env, "migrate", "--verbosity=0")
    run(env, "createsuperuser", "--noinput", "--username=ada", "--email=ada@example.com")
    return env


@pytest.fixture(scope="module")
def start(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that serves the site with a share of the orders at the new service."""
    folder = tmp_path_factory.mktemp("servers")
    gunicorn = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--threads=4"]

    def serve(app: str, **more: str) -> Served:
        return servers.start(
            lambda port: [*gunicorn, f"--bind=127.0.0.1:{port}", app],
            folder / f"log{servers.number}",
            env | more,
        )

    with Servers() as servers:
        service = serve("orders_service:application")
        sites: dict[int, Served] = {}

        def started(percent: int) -> Browser:
            if percent not in sites:
                sites[percent] = serve(
                    "wsgi:application", ORDERS_PERCENT=str(percent), ORDERS_URL=service.url
                )
            return Browser(sites[percent])

        yield started


def answered_by(response: requests.Response) -> str:
    name: str = response.json()["answered_by"]
    return name


def test_the_orders_move_to_the_service_and_back(start: Start) -> None:
    for percent, expected in ((0, SITE), (100, SERVICE), (0, SITE)):
        browser = start(percent)
        browser.log_in()
        made = browser.order("bread")
        assert (made.status_code, answered_by(made)) == (201, expected)
        listed = browser.ask("GET", "/api/orders/").json()
        assert (listed["answered_by"], listed["user"]) == (expected, "ada")
        assert "bread" in listed["orders"]


def test_while_a_half_has_moved_each_user_stays_with_one_of_the_two(start: Start) -> None:
    browser = start(50)
    browser.log_in()
    answers = {answered_by(browser.ask("GET", "/api/orders/")) for _ in range(8)}
    assert len(answers) == 1
    assert answers <= {SITE, SERVICE}


@pytest.mark.parametrize("percent", [0, 100])
def test_the_anonymous_are_sent_to_the_login_by_either(start: Start, percent: int) -> None:
    browser = start(percent)
    page = browser.ask("GET", "/api/orders/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (302, "/login/?next=/api/orders/")
    forged = {"Cookie": "sessionid=made-up", "X-User-Id": "1", "X-User-Name": "ada"}
    assert browser.ask("GET", "/api/orders/", headers=forged).status_code == (
        302 if percent == 0 else 401
    )


@pytest.mark.parametrize("percent", [0, 100])
def test_pages_of_other_sites_cannot_order(start: Start, percent: int) -> None:
    browser = start(percent)
    browser.log_in()
    assert browser.order("bread", **{"X-CSRFToken": None}).status_code == 403
    assert browser.order("bread", Origin="http://evil.example").status_code == 403


@pytest.mark.parametrize("percent", [0, 100])
def test_behind_a_proxy_that_terminates_tls_the_origin_is_https(start: Start, percent: int) -> None:
    browser = start(percent)
    browser.log_in()
    cookies = "; ".join(f"{each.name}={each.value}" for each in browser.cookies)
    fields = {
        "Cookie": cookies,
        "Host": "shop.example.com",
        "X-Forwarded-Proto": "https",
        "Origin": "https://shop.example.com",
    }
    assert browser.order("bread", **fields).status_code == 201
    assert browser.order("bread", **fields, Referer="x").status_code == 201
    other = {**fields, "Origin": "http://shop.example.com"}
    assert browser.order("bread", **other).status_code == 403


def test_the_service_neither_sees_nor_ends_the_session_of_the_site(start: Start) -> None:
    browser = start(100)
    browser.log_in()
    browser.cookies.set("theme", "dark")
    assert browser.ask("GET", "/api/orders/").json()["cookies"] == ["theme"]
    logout = browser.ask("GET", "/api/orders/logout")
    assert (logout.text, "Set-Cookie" in logout.headers) == ("logged out", False)
    assert browser.ask("GET", "/").status_code == 200
    browser.ask("POST", "/logout/", data={"csrfmiddlewaretoken": browser.cookies["csrftoken"]})
    assert browser.ask("GET", "/api/orders/").status_code == 401


def test_both_spellings_of_the_path_reach_the_service(start: Start) -> None:
    browser = start(100)
    browser.log_in()
    for path in ("/api/orders", "/api/orders/"):
        assert answered_by(browser.ask("GET", path)) == SERVICE


def test_no_connection_to_the_database_outlives_a_request(
    start: Start, env: dict[str, str]
) -> None:
    browser = start(100)
    browser.log_in()
    for _ in range(20):
        assert browser.ask("GET", "/api/orders/").status_code == 200
    [worker] = browser.site.workers()
    assert env["SHOP_DATABASE"] not in open_files(worker)


def open_files(process: int) -> list[str]:
    found = []
    for each in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.append(os.readlink(each))
        except FileNotFoundError:  # it was closed meanwhile
            pass
    return found


def test_the_commands_and_the_tests_of_the_site_pass(env: dict[str, str]) -> None:
    assert run(env, "check") == "System check identified no issues (0 silenced).\n"
    assert run(env, "gateway_check", "--offline") == "ok: 0 middlewares, 1 service, 1 route\n"
    assert "0 % of the requests" in run(env, "gateway_routes")
    assert run(env, "makemigrations", "--check", "--dry-run") == "No changes detected\n"
    assert "Ran 2 tests" in run(env, "test")
