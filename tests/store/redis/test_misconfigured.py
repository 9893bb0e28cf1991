"""Every user of a store raises the error of a store that stays unusable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from wsgiref.util import setup_testing_defaults

import pytest

from tests.support.tokens import NOW, SECRET, claims, signed
from wsgigate import Authenticator, Breaker, ConcurrencyLimiter, Limiter
from wsgigate.coordination.circuit import Circuit, Rejection
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.maintenance import MaintenanceSwitch
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.store import MisconfiguredStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

TOKEN = signed(claims(iat=NOW - 5))


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def requests_to(app):
    """Return a function that sends one request to *app* and returns the status."""

    def ask():
        environ = {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
        setup_testing_defaults(environ)
        begun = []
        body = app(environ, lambda status, fields: begun.append(int(status[:3])))
        b"".join(body)
        getattr(body, "close", lambda: None)()
        return begun[0]

    return ask


def authenticator(store, **options):
    denied = DenyList(store, staleness=0)
    return requests_to(
        Authenticator(
            hello,
            algorithms=["HS256"],
            secret=SECRET,
            deny_list=denied,
            clock=lambda: NOW,
            **options,
        )
    )


def maintenance(store):
    return requests_to(Maintenance(hello, MaintenanceSwitch(store, staleness=0)))


def breaker(store):
    clock = FakeClock()
    ask = requests_to(Breaker(hello, store=store, clock=clock))

    def later():
        clock.advance(1)  # so that the shared verdict is read again
        return ask()

    return later


def circuit(store):
    """Return a function that asks the circuit of a gateway's service for permission."""
    clock = FakeClock()
    made = Circuit("orders", store=store, clock=clock)

    def admit():
        clock.advance(1)
        return 503 if isinstance(made.admit(), Rejection) else 200

    return admit


USERS: dict[str, tuple[Callable[..., Callable[[], int]], str]] = {
    "Limiter": (
        lambda store: requests_to(Limiter(hello, "9/m", store=store)),
        "the limit 'default' cannot be counted: ",
    ),
    "ConcurrencyLimiter": (
        lambda store: requests_to(ConcurrencyLimiter(hello, 9, store=store)),
        "the limit 'concurrency' cannot be counted: ",
    ),
    "Breaker": (breaker, "the circuit 'default' cannot be shared: "),
    "Circuit": (circuit, "the circuit 'orders' cannot be shared: "),
    "Authenticator": (authenticator, "the deny list cannot be read: "),
    "Authenticator that allows on an error of the store": (
        lambda store: authenticator(store, on_store_error="allow"),
        "the deny list cannot be read: ",
    ),
    "Maintenance": (maintenance, "Maintenance notices cannot be read: "),
}
each = pytest.mark.parametrize("user", USERS)


@each
def test_each_request_raises_while_the_password_of_the_store_is_wrong(start, connect, user):
    server = start("--requirepass", "right")
    url = f"redis://:wrong@127.0.0.1:{server.port}/0?socket_timeout=10&socket_connect_timeout=10"
    make, what = USERS[user]
    ask = make(connect(url))
    for _ in range(3):
        with pytest.raises(MisconfiguredStore) as caught:
            ask()
        text = str(caught.value)
        assert text.startswith(what)
        assert "WRONGPASS" in text
        assert "correct the store that was given as store" in text


class Changing(MemoryStore):
    """A store whose password is wrong while *wrong* is set."""

    take = None
    wrong = False
    checked = False

    def get(self, key):
        self._check()
        return super().get(key)

    def update(self, key, change):
        self._check()
        return super().update(key, change)

    def _check(self):
        if self.wrong:
            raise MisconfiguredStore("WRONGPASS")


@each
def test_the_error_ends_with_its_cause_and_is_an_outage_from_then_on(user):
    store = Changing()
    store.wrong = True
    ask = USERS[user][0](store)
    for _ in range(2):
        with pytest.raises(MisconfiguredStore, match="WRONGPASS"):
            ask()
    store.wrong = False
    assert ask() == 200
    store.wrong = True
    assert ask() == (503 if user == "Authenticator" else 200)


@each
def test_the_error_of_a_store_that_was_checked_at_the_start_is_an_outage(user):
    store = Changing()
    store.wrong = store.checked = True
    assert USERS[user][0](store)() == (503 if user == "Authenticator" else 200)


def test_a_timer_that_reads_maintenance_notices_logs_the_error_once(caplog):
    store = Changing()
    store.wrong = True
    switch = MaintenanceSwitch(store, staleness=0, clock=FakeClock())
    with caplog.at_level(logging.INFO, "wsgigate.maintenance"):
        switch.look()
        assert switch.known() == {}
        store.wrong = False
        switch.look()
    assert [record.getMessage() for record in caplog.records] == [
        "Maintenance notices cannot be read: WRONGPASS; "
        'correct the store that was given as store, or pass store="lmdb:/path"',
        "Maintenance notices can be read again, after 0 s",
    ]
