"""Sticky sessions: clients stay with the instance that answered first, by a signed cookie."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.sticky import Stickiness, StickyCookie
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.retry import RetryRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, reply

SECRET = b"a secret of the tests"
COOKIE = "wsgigate-svc"

Gate = Callable[..., "Browser"]


class Browser(Client):
    """A client that keeps its cookies, or not, and knows the pool behind its forwarder."""

    pool: Pool
    sticky: Stickiness

    def ask(self, path: str = "/", **options: Any) -> Any:
        return self.get(path, buffered=True, **options)

    def who(self, times: int = 1, **options: Any) -> set[str]:
        return {self.ask(**options).text for _ in range(times)}


def sign(service: str, id: str, secret: bytes = SECRET) -> str:
    """Return the value of a cookie that never expires."""
    return StickyCookie(secret, service).sign(id, 0.0)


@pytest.fixture
def three() -> Iterator[list[Backend]]:
    """Yield three backends that answer with their names."""
    with ExitStack() as stack:
        yield [stack.enter_context(Backend(reply(name))) for name in (b"a", b"b", b"c")]


@pytest.fixture
def gate(sessions: Sessions, three: list[Backend]) -> Gate:
    """Return a maker of browsers, all of them in front of one pool of their own."""

    def make(
        *, cookies: bool = True, pool: dict[str, Any] | None = None, sticky: Any = None, **more: Any
    ) -> Browser:
        stays = Stickiness("svc", SECRET, **(sticky or {}))
        made = Pool(
            "svc",
            [Instance(backend.url) for backend in three],
            **{"balance": "round-robin", "sticky": stays, "random": lambda: 0.0} | (pool or {}),
        )
        browser = Browser(Forwarder(made, sessions=sessions, **more), use_cookies=cookies)
        browser.pool, browser.sticky = made, stays
        return browser

    return make


def set_cookies(answer: Any) -> list[str]:
    return [each for each in answer.headers.getlist("Set-Cookie") if each.startswith(COOKIE + "=")]


def asked(three: list[Backend]) -> list[list[str]]:
    """Return the Cookie fields that came with each request to any of them."""
    return [request.values("Cookie") for backend in three for request in backend.requests]


def test_a_client_stays_and_others_are_spread(gate: Gate, three: list[Backend]) -> None:
    browser = gate()
    assert browser.who(8) == {"a"}
    others = Browser(browser.application, use_cookies=False)
    assert [others.ask().text for _ in range(4)] == ["b", "c", "a", "b"]
    assert browser.who(3) == {"a"}
    assert asked(three) == [[]] * 15


def test_the_cookie_is_not_forwarded(gate: Gate) -> None:
    [cookie] = set_cookies(gate().ask())
    value, *attributes = cookie.removeprefix(COOKIE + "=").split("; ")
    assert re.fullmatch(r"[\w-]{12}\.0\.[\w-]{24}", value)
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
    [secure] = set_cookies(gate().ask(base_url="https://shop.example"))
    assert secure.split("; ")[1:] == ["Path=/", "HttpOnly", "SameSite=Lax", "Secure"]


@pytest.mark.parametrize(
    ("settings", "attributes"),
    [
        ({"cookie": "shop", "path": "/shop"}, ["Path=/shop", "HttpOnly", "SameSite=Lax"]),
        ({"max_age": 60}, ["Path=/", "Max-Age=60", "HttpOnly", "SameSite=Lax"]),
        (
            {"cookie": "__Host-shop"},
            ["Path=/", "HttpOnly", "SameSite=Lax", "Secure"],
        ),
        (
            {"cookie": "__Secure-shop"},
            ["Path=/", "HttpOnly", "SameSite=Lax", "Secure"],
        ),
    ],
)
def test_the_cookie_has_the_configured_attributes(
    settings: dict[str, Any], attributes: list[str], gate: Gate
) -> None:
    cookie = gate(sticky=settings).ask().headers["Set-Cookie"]
    assert cookie.startswith(settings.get("cookie", COOKIE) + "=")
    assert cookie.split("; ")[1:] == attributes


def test_a_client_with_the_cookie_gets_no_new_one(gate: Gate) -> None:
    browser = gate()
    assert [len(set_cookies(browser.ask())) for _ in range(4)] == [1, 0, 0, 0]


def test_the_signature_is_computed_once_per_request(gate: Gate) -> None:
    asked: list[float] = []

    def clock() -> float:
        asked.append(time.time())
        return asked[-1]

    browser = gate(sticky={"clock": clock})
    browser.ask()
    asked.clear()
    browser.ask()
    assert len(asked) == 1


def test_two_services_with_one_cookie_each_read_their_own() -> None:
    one, other = (Stickiness(name, SECRET, cookie="shop") for name in ("one", "other"))
    value = sign("other", other.id_of("http://a"))
    environ = {"HTTP_COOKIE": f"shop={value}"}
    assert one.read(environ) is None
    stuck = other.read(environ)
    assert stuck is not None
    assert stuck.id == other.id_of("http://a")


def test_the_cookie_is_renewed_before_it_expires_and_ignored_after(gate: Gate) -> None:
    clock = FakeClock()
    browser = gate(cookies=False, sticky={"max_age": 100, "clock": clock})
    first = browser.ask()
    said = {"Cookie": set_cookies(first)[0].partition(";")[0]}
    for later, who, renewed in [(50, "a", 0), (10, "a", 1), (39, "a", 1), (1, "b", 1), (1, "c", 1)]:
        clock.advance(later)
        answer = browser.ask(headers=said)
        assert (answer.text, len(set_cookies(answer))) == (who, renewed)


@pytest.mark.parametrize(
    "forge",
    [
        lambda value: value[:-1] + ("A" if value[-1] != "A" else "B"),
        lambda value: "x",
        lambda value: "",
        lambda value: sign("svc", value[:12], b"not the secret of the tests"),
        lambda value: sign("other", value[:12]),
    ],
)
def test_a_forged_cookie_is_replaced(
    forge: Callable[[str], str], gate: Gate, three: list[Backend]
) -> None:
    browser = gate(cookies=False)
    value = set_cookies(browser.ask())[0].partition(";")[0].partition("=")[2]
    answers = [browser.ask(headers={"Cookie": f"{COOKIE}={forge(value)}"}) for _ in range(3)]
    assert [answer.text for answer in answers] == ["b", "c", "a"]
    assert all(len(set_cookies(answer)) == 1 for answer in answers)
    assert asked(three) == [[]] * 4


def test_the_valid_cookie_of_several_is_used(gate: Gate) -> None:
    browser = gate(cookies=False)
    valid = set_cookies(browser.ask())[0].partition(";")[0]
    answer = browser.ask(headers={"Cookie": f"{COOKIE}=planted; {valid}; {COOKIE}=x"})
    assert (answer.text, set_cookies(answer)) == ("a", [])


def test_a_cookie_of_an_unknown_instance_is_replaced(gate: Gate, three: list[Backend]) -> None:
    browser = gate(cookies=False)
    gone = browser.sticky.id_of("http://10.9.9.9:1")
    answer = browser.ask(headers={"Cookie": f"{COOKIE}={sign('svc', gone)}"})
    assert (answer.text, len(set_cookies(answer))) == ("a", 1)


def test_a_client_of_an_unhealthy_instance_moves_and_stays(
    gate: Gate, three: list[Backend]
) -> None:
    browser = gate()
    assert browser.who(2) == {"a"}
    browser.pool.mark(three[0].url, False)
    moved = browser.ask()
    assert (moved.text, len(set_cookies(moved))) == ("b", 1)
    browser.pool.mark(three[0].url, True)
    assert browser.who(4) == {"b"}


def test_a_client_of_a_removed_instance_moves(gate: Gate, three: list[Backend]) -> None:
    browser = gate()
    assert browser.who(2) == {"a"}
    browser.pool.renew([Instance(backend.url) for backend in three[1:]])
    assert browser.who(3) in ({"b"}, {"c"})
    browser.pool.renew([Instance(backend.url) for backend in three[::-1]])
    assert browser.who(3) in ({"b"}, {"c"})


def test_a_client_of_an_ejected_instance_moves(gate: Gate, three: list[Backend]) -> None:
    browser = gate(pool={"outlier": OutlierRules(consecutive_failures=2)})
    browser.ask()
    three[0].answers = [reply(b"", status="500 No")]
    assert [browser.ask().status_code for _ in range(3)] == [500, 500, 200]
    assert browser.who(4) == {"b"}


@pytest.mark.parametrize(("keep", "who"), [(False, {"b"}), (True, {"a"})])
def test_a_draining_instance_keeps_its_clients_only_if_configured(
    keep: bool, who: set[str], gate: Gate, three: list[Backend], sessions: Sessions
) -> None:
    browser = gate()
    browser.ask()
    stays = Stickiness("svc", SECRET, keep_draining=keep)
    instances = [Instance(backend.url, at and 1) for at, backend in enumerate(three)]
    pool = Pool("svc", instances, balance="round-robin", sticky=stays, random=lambda: 0.0)
    browser.application = Forwarder(pool, sessions=sessions)
    assert browser.who(4) == who
    stranger = Browser(browser.application, use_cookies=False)
    assert stranger.who(6) == {"b", "c"}
    pool.mark(three[0].url, False)
    assert browser.who(4) <= {"b", "c"}  # ill, it keeps nobody


def test_a_draining_instance_that_fails_loses_its_clients(
    sessions: Sessions, three: list[Backend]
) -> None:
    stays = Stickiness("svc", SECRET, keep_draining=True)
    instances = [Instance(backend.url, at and 1) for at, backend in enumerate(three)]
    rules = OutlierRules(consecutive_failures=1)
    pool = Pool("svc", instances, sticky=stays, outlier=rules)
    id = stays.id_of(three[0].url)
    lease = pool.pick(sticky_id=id)
    assert lease is not None
    assert lease.instance.url == three[0].url
    lease.answered(Outcome.FAILED, 0.1, 500)
    lease.release()
    again = pool.pick(sticky_id=id)
    assert again is not None
    assert again.instance.url != three[0].url


def test_clients_leave_a_standby_tier_while_the_first_is_available() -> None:
    stays = Stickiness("svc", SECRET)
    first, spare = Instance("http://10.0.0.1"), Instance("http://10.0.0.2", tier=1)
    pool = Pool("svc", [first, spare], sticky=stays)
    for stuck in (first, spare):
        lease = pool.pick(sticky_id=stays.id_of(stuck.url))
        assert lease is not None
        assert lease.instance is first
    pool.mark(first.url, False)
    moved = pool.pick(sticky_id=stays.id_of(spare.url))
    assert moved is not None
    assert moved.instance is spare


@pytest.mark.parametrize("weight", [0, 1], ids=["all drain", "the others are full"])
def test_a_draining_instance_keeps_its_clients_without_another_instance(weight: int) -> None:
    stays = Stickiness("svc", SECRET, keep_draining=True)
    urls = ["http://10.0.0.1", "http://10.0.0.2"]
    instances = [Instance(urls[0], 0), Instance(urls[1], weight)]
    pool = Pool("svc", instances, sticky=stays, instance_limit=1)
    if weight:
        assert pool.pick() is not None
    assert pool.pick() is None
    lease = pool.pick(sticky_id=stays.id_of(urls[0]))
    assert lease is not None
    assert lease.instance.url == urls[0]
    assert pool.pick(sticky_id=stays.id_of(urls[0])) is None  # it is full itself by now


def test_a_client_stays_on_the_instance_that_answered_the_retry(
    gate: Gate, three: list[Backend]
) -> None:
    browser = gate(resilience=Resilience(retry=RetryRules(backoff=0.0)))
    browser.ask()
    three[0].answers = [lambda *_: False]
    moved = browser.ask()
    assert (moved.text, len(set_cookies(moved))) == ("b", 1)
    assert browser.who(3) == {"b"}


def test_a_failing_instance_loses_its_clients(gate: Gate, three: list[Backend]) -> None:
    three[0].answers = [reply(b"a", status="500 No")]
    browser = gate()
    assert set_cookies(browser.ask()) == []
    assert browser.ask().text == "b"


def test_cookies_of_the_service_are_forwarded_both_ways(gate: Gate, three: list[Backend]) -> None:
    own = [("Set-Cookie", "sid=1; Path=/"), ("Set-Cookie", "theme=dark")]
    for backend in three:
        backend.answers = [reply(b"a", fields=own)]
    browser = gate(cookies=False)
    answer = browser.ask(headers={"Cookie": f"sid=0;  {COOKIE}=x; theme=light"})
    assert answer.headers.getlist("Set-Cookie")[:2] == ["sid=1; Path=/", "theme=dark"]
    assert len(answer.headers.getlist("Set-Cookie")) == 3
    assert asked(three) == [["sid=0; theme=light"]]


def test_services_do_not_get_the_cookies_of_other_services(
    backend: Backend, sessions: Sessions
) -> None:
    pool = Pool("other", [Instance(backend.url)])
    browser = Browser(
        Forwarder(pool, sessions=sessions, hidden_cookies=[COOKIE]), use_cookies=False
    )
    browser.ask(headers={"Cookie": f"{COOKIE}=secret; a=1"})
    browser.ask(headers={"Cookie": f"{COOKIE}=secret"})
    assert [request.values("Cookie") for request in backend.requests] == [["a=1"], []]


def test_the_balancing_key_is_used_without_a_cookie(gate: Gate) -> None:
    browser = gate(
        cookies=False,
        pool={"balance": "consistent-hash", "key": lambda environ: environ["HTTP_X_TENANT"]},
    )
    homes = {tenant: browser.who(2, headers={"X-Tenant": tenant}) for tenant in map(str, range(60))}
    assert all(len(home) == 1 for home in homes.values())
    assert set().union(*homes.values()) == {"a", "b", "c"}
    [stays] = homes["0"]
    [cookie] = set_cookies(browser.ask(headers={"X-Tenant": "0"}))
    said = {"Cookie": cookie.partition(";")[0]}
    for tenant in homes:
        assert browser.who(1, headers={"X-Tenant": tenant, **said}) == {stays}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cookie": "a b"}, "cookie: 'a b' is not a valid cookie name"),
        ({"cookie": ""}, "cookie"),
        ({"path": "shop"}, "path: must be a path"),
        ({"path": "/a;b"}, "path"),
        ({"path": "/caf\xe9"}, "path"),
        ({"path": "/a\r\nSet-Cookie: x"}, "path"),
        ({"cookie": "__Host-a", "path": "/a"}, "path"),
        ({"max_age": 0}, "max_age"),
    ],
)
def test_an_invalid_setting_is_rejected(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Stickiness("svc", SECRET, **settings)


def test_the_number_of_cached_cookie_values_is_bounded() -> None:
    """They come and go, and each has a name of its own where they are found."""
    stays = Stickiness("svc", SECRET)
    for number in range(2000):
        stays.id_of(f"http://10.0.0.1:{number}")
    assert stays.id_of.cache_info().currsize <= 1024


def test_a_client_stays_with_its_instance_in_another_zone() -> None:
    """So it does when it comes to a gateway in one zone and then to one in the other."""
    stays = Stickiness("svc", SECRET)
    instances = [Instance("http://a", zone="a"), Instance("http://b", zone="b")]
    pool = Pool("svc", instances, zone="a", sticky=stays)
    for url in ("http://a", "http://b"):
        lease = pool.pick(sticky_id=stays.id_of(url))
        assert lease is not None
        assert lease.instance.url == url
    later = [Instance("http://a", zone="a"), Instance("http://b", tier=1, zone="a")]
    pool.renew(later)  # one that only stands by lets its clients go
    lease = pool.pick(sticky_id=stays.id_of("http://b"))
    assert lease is not None
    assert lease.instance.url == "http://a"
