"""The dashboard in a real browser, of a gateway with two workers and services that fail."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests.support.browser import Browser, Page
from tests.support.ports import free_port
from tests.support.servers import Served, Servers, home
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

ADMIN = "the-admin-token-of-the-dashboards-tests"
VIEWER = "the-viewer-token-of-the-dashboards-tests"
HOSTILE = "<img src=x onerror=document.title='owned'>"

FILE = """
[gateway]
name = "shop <b>bold</b>"
threads = 4
bind = "127.0.0.1:{port}"
[store]
url = "lmdb:{folder}/store"
[admin]
token = "{admin}"
viewer_token = "{viewer}"
[maintenance]
[registry]
token = "{admin}-of-services"
[services.orders]
instances = ["{one}", "{two}"]
health = {{ path = "/health", interval = "0.3s", timeout = "2s", unhealthy_after = 1 }}
[services.users]
instances = ["{broken}"]
breaker = {{ consecutive_failures = 2, failure_rate = 0, open_for = "1h", jitter = 0 }}
[services.constructor]
instances = ["{broken}"]
breaker = {{ consecutive_failures = 2 }}
[[routes]]
path = "/orders"
service = "orders"
[[routes]]
path = "/users"
service = "users"
[[routes]]
path = "/hostile"
service = "orders"
name = "{hostile}"
"""


class Shop(NamedTuple):
    """A gateway in front of services that the tests steer."""

    url: str
    start: Callable[[], Served]
    one: Backend
    two: Backend
    broken: Backend

    def ask(self, path: str, **fields: str) -> int:
        """Send a request by a connection of its own; return the status."""
        return requests.get(self.url + path, headers=fields, timeout=20).status_code


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def running() -> list[Served]:
    """Return the gateways that were started; the last one serves."""
    return []


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, running: list[Served]
) -> Iterator[Shop]:
    folder, port = tmp_path_factory.mktemp("shop"), free_port()
    with Backend() as one, Backend() as two, Backend() as broken:
        for each in (one, two):
            each.answers = [reply(b"fine")]
        broken.answers = [reply(b"broken", status="500 Broken")]
        urls = {"one": one.url, "two": two.url, "broken": broken.url}
        file = folder / "gateway.toml"
        file.write_text(
            FILE.format(
                port=port, folder=folder, admin=ADMIN, viewer=VIEWER, hostile=HOSTILE, **urls
            )
        )

        def start() -> Served:
            command = [sys.executable, "-m", "wsgigate", "run", str(file), "--workers", "2"]
            served = servers.start(
                command, folder / f"log{servers.number}", home(folder), port=port
            )
            running.append(served)
            return served

        start()
        yield Shop(f"http://127.0.0.1:{port}", start, one, two, broken)


@pytest.fixture
def page(browser: Browser, shop: Shop) -> Iterator[Page]:
    with browser.page() as page:
        page.open(f"{shop.url}/_gateway/")
        yield page


def sign_in(page: Page, token: str = ADMIN, *, keep: bool = False) -> None:
    page.wait("!document.querySelector('#sign-in').hidden")
    page.eval("document.querySelector('#token').focus()")
    page.type(token)
    if keep:
        page.click("#keep")
    page.click("#sign-in-form button")


def signed_in(page: Page, token: str = ADMIN, *, keep: bool = False) -> Page:
    sign_in(page, token, keep=keep)
    page.wait_for_text("orders", "#services table")
    return page


def row(table: str, name: str) -> str:
    """Return an expression for the row of *table* whose first cell has *name*."""
    return (
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        f".find(row => row.cells[0].innerText.includes({json.dumps(name)}))"
    )


def press_button(page: Page, table: str, name: str, label: str) -> None:
    """Click a button in a row, and confirm."""
    page.click_on(
        f"[...({row(table, name)}?.querySelectorAll('button') ?? [])]"
        f".find(each => each.innerText === {json.dumps(label)})"
    )
    page.wait("document.querySelector('#confirm').open")
    page.click("#confirm-yes")


def test_the_page_loads_under_its_policy_without_an_error(page: Page, shop: Shop) -> None:
    signed_in(page)
    page.wait("document.querySelectorAll('.canvas[data-drawn]').length === 3")
    answer = requests.get(f"{shop.url}/_gateway/", timeout=20)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in answer.headers
    assert page.errors == []
    assert {each["url"].partition("/_gateway/")[0] for each in page.requests} == {shop.url}


def test_an_instance_that_fails_is_shown_with_the_reason_and_once_it_has_recovered(
    page: Page, shop: Shop
) -> None:
    signed_in(page)
    address = shop.two.url.removeprefix("http://")
    page.wait(f"{row('instances', address)}?.innerText.includes('healthy')")
    shop.two.answers = [reply(b"gone", status="503 Gone")]
    # a check of a busy machine may fail for another reason before
    page.wait(f"/failing[^]*503/.test({row('instances', address)}?.innerText)")
    page.wait_for_text("orders", "#alerts")
    shop.two.answers = [reply(b"fine")]
    page.wait(f"{row('instances', address)}?.innerText.includes('healthy')")
    page.wait("!document.querySelector('#alerts').innerText.includes(\"'orders'\")")


def test_a_click_resets_a_breaker(page: Page, shop: Shop) -> None:
    until(lambda: shop.ask("/users") == 503)
    signed_in(page)
    page.wait(f"{row('circuits', 'users')}?.cells[1].innerText === 'open'")
    shop.broken.answers = [reply(b"fine")]
    press_button(page, "circuits", "users", "Reset")
    page.wait_for_text("The circuit breaker of users is closed.", "#result")
    page.wait(f"{row('circuits', 'users')}?.cells[1].innerText === 'closed'")
    until(lambda: shop.ask("/users") == 200)  # the other worker learns of it within a second
    shop.broken.answers = [reply(b"broken", status="500 Broken")]


def test_a_wrong_token_is_rejected_and_the_right_one_is_in_no_place_that_is_kept(
    page: Page,
) -> None:
    sign_in(page, "not-the-token-but-long-enough-for-one")
    page.wait_for_text("The token was rejected.", "#sign-in-error")
    signed_in(page)
    assert ADMIN not in page.eval("location.href")
    assert page.eval("localStorage.length + sessionStorage.length") == 0
    assert page.eval("document.cookie") == ""
    assert page.eval("document.documentElement.outerHTML").count(ADMIN) == 0
    assert page.eval("document.querySelector('#token').value") == ""
    assert not [each for each in page.requests if ADMIN in each["url"]]


def test_a_token_is_kept_until_the_tab_is_closed_if_the_user_asks_for_it(
    page: Page, shop: Shop
) -> None:
    signed_in(page, keep=True)
    page.open(f"{shop.url}/_gateway/?reload")
    page.wait_for_text("orders", "#services table")
    assert page.eval("localStorage.length") == 0
    page.click("#sign-out")
    page.wait("!document.querySelector('#sign-in').hidden")
    assert page.eval("sessionStorage.length") == 0
    assert "orders" not in page.eval("document.body.textContent")


def test_a_viewer_sees_all_and_has_no_buttons_that_change_anything(page: Page) -> None:
    signed_in(page, VIEWER)
    page.wait_for_text("signed in as viewer", "#facts")
    assert page.eval("document.querySelectorAll('#circuits td button').length") == 0
    assert page.eval("document.querySelectorAll('#instances td button').length") == 0
    assert ADMIN not in page.eval("document.body.innerText")


def test_hostile_names_stay_text(page: Page, shop: Shop) -> None:
    signed_in(page)
    page.wait_for_text(HOSTILE, "#routes table")
    assert page.text("#name") == "shop <b>bold</b>"
    assert page.eval("document.querySelectorAll('main img, #name b').length") == 0
    assert "owned" not in page.eval("document.title")


def test_a_service_may_have_the_name_of_a_member_of_objects(page: Page) -> None:
    signed_in(page)
    page.wait_for_text("constructor", "#circuits table")
    label = "Circuit breaker of constructor: closed"
    page.wait(f"document.querySelector('#strips svg[aria-label^={json.dumps(label)}]') !== null")
    assert page.errors == []


def test_it_says_that_the_gateway_is_away_and_recovers_after_its_restart(
    page: Page, shop: Shop, running: list[Served]
) -> None:
    signed_in(page)
    running[-1].stop()
    page.wait_for_text("does not answer", "#connection")
    shop.start()
    # it asks at most every 30 s by then
    page.wait_for_text("answers again", "#connection")
    page.wait_for_text("orders", "#services table")
    assert page.eval("document.querySelector('#sign-in').hidden")


def test_the_search_narrows_routes_services_and_instances(page: Page) -> None:
    signed_in(page)
    page.click("#search")
    page.type("users")
    page.wait("document.querySelectorAll('#services tbody tr').length === 1")
    page.wait("document.querySelectorAll('#routes tbody tr').length === 1")
    page.wait_for_text("Found: 1 routes, 1 services, 1 instances.", "#found")


def test_the_samples_of_the_history_go_on_after_its_workers_were_killed(
    page: Page, shop: Shop, running: list[Served]
) -> None:
    signed_in(page)

    def newest() -> float:
        answer = requests.get(
            f"{shop.url}/_gateway/history",
            headers={"Authorization": f"Bearer {VIEWER}"},
            timeout=20,
        )
        return max(answer.json()["times"], default=0.0)

    before = until(newest)
    killed = set(running[-1].workers(2))
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    # one that is not dead yet may accept a connection, and reset it
    until(lambda: not killed & set(running[-1].workers(2)))
    until(lambda: newest() > before)


# What a person with a keyboard, a screen reader, a phone or a dark room gets.

CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color[3] > 0) return color;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest('[aria-hidden]')) continue;
    const [one, other] = [light(rgb(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) poor.push(`${element.outerHTML.slice(0, 80)}: ${contrast.toFixed(2)}`);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_have_contrast(browser: Browser, shop: Shop, dark: bool) -> None:
    with browser.page(dark=dark) as page:
        page.open(f"{shop.url}/_gateway/")
        page.wait("!document.querySelector('#sign-in').hidden")
        assert page.eval(CONTRASTS) == []
        signed_in(page)
        assert page.eval(CONTRASTS) == []
        light = page.eval("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
        assert light is not dark


def test_everything_has_a_name_for_assistive_technology(page: Page) -> None:
    signed_in(page)
    found = page.accessible()
    named = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "region", "table"}
    assert [each for each in found if each[0] in named and not each[1].strip()] == []
    roles = {role for role, _ in found}
    assert {"main", "navigation", "search", "banner", "heading", "status"} <= roles
    levels = page.eval("[...document.querySelectorAll('h1, h2, h3')].map(each => each.tagName)")
    assert levels.count("H1") == 1
    assert page.eval("document.documentElement.lang") == "en"
    assert page.eval("document.querySelectorAll('figure details table').length") == 3
    unscoped = "[...document.querySelectorAll('th:not([scope])')]"
    assert page.eval(f"{unscoped}.filter(each => !each.closest('.u-legend')).length") == 0


def test_the_keyboard_reaches_everything_in_order(page: Page, shop: Shop) -> None:
    page.wait("document.activeElement.id === 'token'")
    page.type(ADMIN)
    page.press("Enter")
    page.wait("document.activeElement.id === 'main'")
    page.wait_for_text("orders", "#services table")
    page.eval("document.activeElement.blur()")
    page.open(f"{shop.url}/_gateway/")
    page.wait("document.activeElement.id === 'token'")
    page.press("Tab")
    assert page.eval("document.activeElement.id") == "keep"
    page.press(" ")
    assert page.eval("document.querySelector('#keep').checked")
    page.press("Tab")
    assert page.eval("document.activeElement.innerText") == "Sign in"
    page.press("Tab", shift=True)
    page.press("Tab", shift=True)
    assert page.eval("document.activeElement.id") == "token"
    page.press("Tab", shift=True)
    assert page.eval("document.activeElement.className") == "skip"
    assert page.eval("document.activeElement.getBoundingClientRect().top") >= 0


def test_escape_leaves_a_confirmation_and_nothing_is_changed(page: Page) -> None:
    signed_in(page)
    page.click("#instances td button")
    page.wait("document.querySelector('#confirm').open")
    page.press("Escape")
    page.wait("!document.querySelector('#confirm').open")
    assert page.eval("document.querySelector('#result').hidden")


def test_an_instance_is_drained_and_activated_by_clicks(page: Page, shop: Shop) -> None:
    signed_in(page)
    address = shop.one.url.removeprefix("http://")
    press_button(page, "instances", address, "Drain")
    page.wait(f"{row('instances', address)}?.innerText.includes('drained')")
    press_button(page, "instances", address, "Activate")
    page.wait(f"{row('instances', address)}?.innerText.includes('healthy')")


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_has_no_horizontal_scroll(browser: Browser, shop: Shop, width: int) -> None:
    with browser.page(width=width, height=800, phone=True) as page:
        page.open(f"{shop.url}/_gateway/")
        signed_in(page)
        wide = page.eval(
            "[...document.querySelectorAll('body *')]"
            ".filter(each => each.checkVisibility() && !each.closest('.scroll, .hidden, .skip')"
            f" && each.getBoundingClientRect().right > {width} + 1)"
            ".map(each => each.outerHTML.slice(0, 100))"
        )
        assert wide == []
        assert page.eval("document.documentElement.scrollWidth") <= width


def test_screenshots_for_the_documentation(browser: Browser, shop: Shop) -> None:
    """They are written where ``SCREENSHOTS`` names a folder, as ``make screenshots`` does."""
    folder = os.environ.get("SCREENSHOTS")
    for name, dark in (("dashboard-light", False), ("dashboard-dark", True)):
        with browser.page(width=1200, height=860, dark=dark) as page:
            page.open(f"{shop.url}/_gateway/")
            signed_in(page)
            page.wait("document.querySelectorAll('.canvas[data-drawn]').length === 3")
            page.eval("scrollTo(0, 0)")
            page.eval("document.querySelector('#range').value = '300'")
            if folder:
                times = "document.querySelector('#charts .summary').innerText"
                seen = {page.eval(times)}

                def half_a_minute() -> bool:
                    for number in range(60):
                        shop.ask("/orders" if number % 30 else "/users")
                    seen.add(page.eval(times))  # noqa: B023
                    return len(seen) >= 7  # noqa: B023

                until(half_a_minute, seconds=120)
                page.eval("document.querySelector('#name').textContent = 'shop'")
                page.screenshot(Path(folder) / f"{name}.png", height=860)
