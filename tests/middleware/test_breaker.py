"""The circuit breaker around an app: failures, rejections, probes and its store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, EnvironBuilder

from tests.support.logs import silence
from wsgigate import Breaker, CircuitRules
from wsgigate.http.wsgi import REASON, BodyTooLarge
from wsgigate.rules.circuit import State
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

RULES = CircuitRules(consecutive_failures=2, open_for=60, probes=1, jitter=0)


_silent = silence("wsgigate.circuits")


class App:
    """An app with a configurable response that counts its calls."""

    def __init__(self, answer: Any = 200) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        start_response(f"{self.answer} Something", [("Content-Type", "text/plain")])
        return iter([b"body"])  # no list, which would have ended when it is returned


def breaker(app: Any, clock: FakeClock, **options: Any) -> Breaker:
    options.setdefault("store", MemoryStore(clock=clock))
    return Breaker(app, options.pop("rules", RULES), clock=clock, random=lambda: 0.0, **options)


def get(app: Any, method: str = "GET") -> int:
    try:
        return Client(app).open("/", method=method, buffered=True).status_code
    except Exception:
        return 0


def test_an_open_breaker_rejects_without_calling_the_app_until_its_probe(clock: FakeClock) -> None:
    app = App(500)
    guarded = breaker(app, clock)
    assert [get(guarded) for _ in range(4)] == [500, 500, 503, 503]
    assert app.asked == 2
    clock.advance(60)
    app.answer = 200
    assert get(guarded) == 200
    assert guarded.circuit.status().state is State.CLOSED


def test_the_refusal_says_what_the_lesson_says_and_when_to_come_again(clock: FakeClock) -> None:
    guarded = breaker(App(500), clock)
    get(guarded), get(guarded)
    clock.advance(12.5)
    environ = EnvironBuilder().get_environ()
    told: list[Any] = []
    body = guarded(environ, lambda *head: told.extend(head) or (lambda data: None))  # type: ignore[func-returns-value]
    status, headers = told[0], dict(told[1])
    assert status == "503 Service Unavailable"
    assert headers["Retry-After"] == "48"
    assert headers["Content-Type"] == "application/problem+json"
    document = json.loads(b"".join(body))
    assert document["success"] is False
    assert document["message"] == document["detail"] == "Service temporarily unavailable"
    assert document["error"] == "Circuit breaker open"
    assert environ[REASON] == "the circuit 'default' is open"


def test_the_response_of_a_rejection_can_be_replaced(clock: FakeClock) -> None:
    def refuse(problem: Any) -> Any:
        return Flask("refused").response_class(problem.detail.upper(), problem.status)

    guarded = breaker(App(500), clock, refuse=refuse)
    get(guarded), get(guarded)
    assert Client(guarded).get("/").text == "SERVICE TEMPORARILY UNAVAILABLE"


@pytest.mark.parametrize(
    ("answer", "opens"),
    [
        (200, False),
        (304, False),
        (400, False),
        (404, False),
        (408, False),
        (429, False),
        (499, False),
        (500, True),
        (501, False),
        (502, True),
        (503, True),
        (504, True),
        (RuntimeError("broken"), True),
        (KeyError("broken"), True),
        (TimeoutError(), True),
        (BodyTooLarge("too large"), False),
    ],
    ids=str,
)
def test_each_kind_of_response_counts_as_a_failure_or_not(
    clock: FakeClock, answer: Any, opens: bool
) -> None:
    guarded = breaker(App(answer), clock)
    for _ in range(25):
        get(guarded)
    assert (guarded.circuit.status().state is State.OPEN) is opens


def test_statuses_and_exceptions_that_count_as_failures_are_configurable(clock: FakeClock) -> None:
    guarded = breaker(App(501), clock, statuses=[501])
    get(guarded), get(guarded)
    assert get(guarded) == 503
    guarded = breaker(App(500), clock, statuses=[501])
    get(guarded), get(guarded)
    assert get(guarded) == 500
    guarded = breaker(App(KeyError()), clock, exceptions=(OSError,))
    get(guarded), get(guarded)
    assert guarded.circuit.status().state is State.CLOSED


def test_a_failure_in_the_middle_of_the_body_counts(clock: FakeClock) -> None:
    def cut(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"half"
        raise RuntimeError("the other half is lost")

    guarded = breaker(cut, clock)
    assert [get(guarded) for _ in range(3)] == [0, 0, 503]


def left(app: Any, *, after: int) -> None:
    """Ask as a client does that leaves after so many chunks."""
    body = app(EnvironBuilder().get_environ(), lambda *_: lambda data: None)
    chunks = iter(body)
    for _ in range(after):
        next(chunks)
    body.close()


@pytest.mark.parametrize("after", [0, 1])
def test_a_client_that_disconnects_is_not_counted(clock: FakeClock, after: int) -> None:
    def endless(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"more"

    guarded = breaker(endless, clock)
    for _ in range(50):
        left(guarded, after=after)
    assert guarded.circuit.status()[:3] == (State.CLOSED, 0, 0)


def test_a_client_that_leaves_gives_its_probe_to_another(clock: FakeClock) -> None:
    app = App(500)
    guarded = breaker(app, clock)
    get(guarded), get(guarded)
    clock.advance(60)
    app.answer = 200
    left(guarded, after=0)
    assert guarded.circuit.status().state is State.HALF_OPEN
    assert get(guarded) == 200
    assert guarded.circuit.status().state is State.CLOSED


def test_a_response_to_head_counts_although_it_has_no_body(clock: FakeClock) -> None:
    guarded = breaker(App(200), clock)
    body: Any = guarded(EnvironBuilder(method="HEAD").get_environ(), lambda *_: lambda data: None)
    body.close()
    assert guarded.circuit.status().successes == 1


def test_slow_responses_open_the_circuit_but_slow_clients_do_not(clock: FakeClock) -> None:
    rules = CircuitRules(slow_after=1, minimum_calls=2, jitter=0)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        clock.advance(float(environ["HTTP_TAKES"]))
        start_response("200 OK", [])
        yield b"first"
        clock.advance(float(environ["HTTP_READS"]))
        yield b"last"

    guarded = breaker(app, clock, rules=rules)
    for _ in range(5):
        Client(guarded).get("/", headers={"Takes": "0.5", "Reads": "20"}, buffered=True)
    assert guarded.circuit.status().state is State.CLOSED
    clock.advance(60)
    for _ in range(2):
        Client(guarded).get("/", headers={"Takes": "1.5", "Reads": "0"}, buffered=True)
    assert guarded.circuit.status().state is State.OPEN


def test_workers_share_it_and_apps_of_another_name_do_not(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    one, other, apart = (
        breaker(App(500), clock, store=store, name=name) for name in ("a", "a", "b")
    )
    get(one), get(one)
    assert get(other) == 503
    assert get(apart) == 500


def test_by_default_all_workers_of_an_app_share_a_folder_of_this_machine(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: None
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    class Other(App):
        pass

    app = App(500)
    made = [breaker(each, clock, store=None) for each in (app, app, Other(500))]
    assert not list(tmp_path.iterdir()), "nothing is made before it is needed"
    one, other, apart = made
    get(one), get(one)
    assert [get(other), get(apart)] == [503, 500]
    for each in made:
        each.close()


def test_a_store_that_is_down_breaks_nothing(clock: FakeClock) -> None:
    app = App(500)
    guarded = breaker(app, clock, store=BrokenStore())
    assert [get(guarded) for _ in range(3)] == [500, 500, 503]
    clock.advance(60)
    app.answer = 200
    assert get(guarded) == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"statuses": [404]}, "statuses are 500 to 599: others are no failures, got 404"),
        ({"statuses": ["500"]}, "statuses are 500 to 599"),
        ({"statuses": [True]}, "statuses are 500 to 599"),
        ({"store": 7}, "store: a store or the URL of one, not 7"),
        ({"store": "nothing:"}, "a store is"),
        ({"name": ""}, "a circuit's name is"),
        ({"sync_interval": 0}, "sync_interval is more than 0 s"),
    ],
)
def test_an_invalid_setting_raises(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Breaker(App(), **options)


def test_a_breaker_protects_a_flask_app(clock: FakeClock) -> None:
    app = Flask(__name__)

    @app.get("/")
    def view() -> str:
        raise RuntimeError("broken")

    app.wsgi_app = breaker(app.wsgi_app, clock)  # type: ignore[method-assign]
    client = app.test_client()
    assert [client.get("/", buffered=True).status_code for _ in range(3)] == [500, 500, 503]


def test_a_breaker_protects_a_django_app(clock: FakeClock, django_app: Callable[..., Any]) -> None:
    from django.http import HttpResponse

    def view(request: Any) -> HttpResponse:
        return HttpResponse("busy", status=503)

    guarded = breaker(django_app({"": view}), clock)
    answers = [Client(guarded).get("/", buffered=True).text[:4] for _ in range(3)]
    assert answers == ["busy", "busy", '{"ty']
