"""Stale responses are served when the app fails, to callers that may see them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder

from tests.support.objects import texts_kept
from wsgigate import FallbackRules, Identity, StaleAnswers
from wsgigate.http.wsgi import CLAIMS, FAILURE, IDENTITY, SHAPED
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import ClosableBody, Server, new_environ


class App:
    """An app whose responses and failures a test sets."""

    def __init__(self, body: Any = b"good", **fields: str) -> None:
        self.body = body
        self.fields = [(name.replace("_", "-"), value) for name, value in fields.items()]
        self.fails = 0
        self.asked = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.asked += 1
        if self.fails:
            environ[FAILURE] = "Connection refused"
            start_response(f"{self.fails} Failed", [("Content-Type", "text/plain")])
            return [b"bad"]
        start_response("200 OK", [("Content-Type", "text/plain"), *self.fields])
        body = self.body(environ) if callable(self.body) else self.body
        return [body] if isinstance(body, bytes) else body


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


def stale(app: Any, clock: FakeClock, **options: Any) -> StaleAnswers:
    return StaleAnswers(app, now=clock, clock=clock, **options)


def ask(app: Any, path: str = "/", **options: Any) -> Any:
    return Client(app, use_cookies=False).open(path, **{"buffered": True, **options})


def test_while_the_app_is_well_every_request_reaches_it(clock: FakeClock) -> None:
    app = App(Cache_Control="max-age=3600")
    kept = stale(app, clock)
    for _ in range(3):
        assert "X-Gateway-Fallback" not in ask(kept).headers
    assert (app.asked, kept.shown) == (3, 0)


def test_when_the_app_fails_the_stored_response_is_served_with_its_age(clock: FakeClock) -> None:
    app = App(Age="5", ETag='"1"', Cache_Control="max-age=60, stale-if-error=60")
    kept = stale(app, clock)
    ask(kept, "/a?x=1")
    app.fails = 503
    clock.advance(90)
    answer = ask(kept, "/a?x=1")
    assert (answer.status, answer.text) == ("200 OK", "good")
    assert answer.headers["Age"] == "95"
    assert answer.headers["X-Gateway-Fallback"] == "stale"
    assert answer.headers["ETag"] == '"1"'
    assert answer.content_length == 4
    assert kept.shown == 1
    clock.advance(30.001)
    assert ask(kept, "/a?x=1").status_code == 503


def test_head_is_answered_with_what_get_was(clock: FakeClock) -> None:
    app = App()
    kept = stale(app, clock)
    ask(kept)
    app.fails = 504
    answer = ask(kept, method="HEAD")
    assert (answer.status_code, answer.data, answer.content_length) == (200, b"", 4)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "/b"},
        {"path": "/a?x=2"},
        {"path": "/a", "base_url": "http://other.example"},
        {"path": "/a", "base_url": "https://localhost"},
        {"path": "/a", "method": "POST"},
        {"path": "/a", "method": "OPTIONS"},
        {"path": "/a", "headers": {"If-Match": '"1"'}},
        {"path": "/a", "headers": {"If-Unmodified-Since": "Mon, 01 Dec 2025 00:00:00 GMT"}},
        {"path": "/a", "headers": {"Upgrade": "websocket"}},
    ],
)
def test_a_stored_response_is_served_for_its_own_target_only(
    clock: FakeClock, other: dict[str, Any]
) -> None:
    app = App()
    kept = stale(app, clock)
    ask(kept, "/a")
    app.fails = 503
    assert ask(kept, **other).status_code == 503
    assert ask(kept, "/a").status_code == 200


CREDENTIALS = [
    {"headers": {"Authorization": "Bearer x"}},
    {"headers": {"Cookie": "session=1"}},
    {"headers": {"X-Api-Key": "k"}},
    {"environ_overrides": {CLAIMS: {"sub": "ann"}}},
    {"environ_overrides": {IDENTITY: Identity(subject="ann", scheme="api-key")}},
]


@pytest.mark.parametrize("who", CREDENTIALS)
def test_a_response_to_one_user_is_not_served_to_another(
    clock: FakeClock, who: dict[str, Any]
) -> None:
    app = App(Cache_Control="max-age=60")
    kept = stale(app, clock)
    ask(kept, "/mine", **who)
    assert kept.size == 0
    ask(kept, "/all")
    app.fails = 503
    assert ask(kept, "/mine").status_code == 503
    assert ask(kept, "/all", **who).status_code == 503
    assert ask(kept, "/all").status_code == 200


@pytest.mark.parametrize("who", CREDENTIALS)
def test_a_response_marked_public_is_served_to_all_users(
    clock: FakeClock, who: dict[str, Any]
) -> None:
    app = App(Cache_Control="public, max-age=60")
    kept = stale(app, clock)
    ask(kept, **who)
    app.fails = 503
    assert ask(kept).text == "good"
    assert ask(kept, **who).text == "good"


@pytest.mark.parametrize(
    "fields",
    [
        {"Set_Cookie": "a=1"},
        {"Cache_Control": "private"},
        {"Cache_Control": "no-store"},
        {"Vary": "*"},
    ],
)
def test_a_response_that_may_not_be_stored_is_not(clock: FakeClock, fields: dict[str, str]) -> None:
    app = App(**fields)
    kept = stale(app, clock)
    ask(kept)
    assert kept.size == 0
    app.fails = 503
    assert ask(kept).status_code == 503


def test_responses_that_vary_are_stored_apart(clock: FakeClock) -> None:
    app = App(lambda environ: environ["HTTP_ACCEPT_LANGUAGE"].encode(), Vary="Accept-Language")
    kept = stale(app, clock)
    for language in ("de", "en"):
        ask(kept, headers={"Accept-Language": language})
    app.fails = 503
    for language in ("de", "en"):
        assert ask(kept, headers={"Accept-Language": language}).text == language
    assert ask(kept, headers={"Accept-Language": "fr"}).status_code == 503


def test_the_number_of_stored_variants_is_bounded(clock: FakeClock) -> None:
    app = App(Vary="X-A")
    kept = stale(app, clock)
    for number in range(20):
        ask(kept, headers={"X-A": str(number)})
    app.fails = 503
    shown = [ask(kept, headers={"X-A": str(number)}).status_code for number in range(20)]
    assert shown == [503] * 12 + [200] * 8


def test_a_new_response_replaces_the_stored_one(clock: FakeClock) -> None:
    app = App(b"first")
    kept = stale(app, clock)
    ask(kept)
    before = kept.size
    app.body = b"other"
    ask(kept)
    assert kept.size == before
    app.fails = 503
    assert ask(kept).text == "other"


@pytest.mark.parametrize(("status", "gone"), [(200, True), (303, True), (404, False)])
def test_a_successful_unsafe_request_removes_the_stored_response(
    clock: FakeClock, status: int, gone: bool
) -> None:
    app = App()
    kept = stale(app, clock)
    ask(kept, "/a")
    ask(kept, "/b")

    def changes(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response(f"{status} Done", [])
        return []

    kept.app = changes
    ask(kept, "/a", method="PUT")
    kept.app, app.fails = app, 503
    assert ask(kept, "/a").status_code == (503 if gone else 200)
    assert ask(kept, "/b").status_code == 200


def test_the_selecting_fields_count_toward_the_size(clock: FakeClock) -> None:
    """Else clients who send much in what ``Vary`` names have far more kept than may be."""
    kept = stale(App(b"x", Vary="Accept-Language, X-Other"), clock, max_size=50_000, max_answer=9)
    for number in range(20):
        language = f"{number}" * 4000
        ask(kept, f"/{number}", headers={"Accept-Language": language, "X-Other": language})
        assert kept.size >= 8000
    languages = {text for text in texts_kept(kept, but=[kept.app]) if len(text) >= 4000}
    assert 0 < len(languages) <= 6


def test_the_stored_bytes_are_bounded(clock: FakeClock) -> None:
    app = App(b"x" * 10_000)
    kept = stale(app, clock, max_size=50_000, max_answer=10_000)
    for number in range(20):
        ask(kept, f"/{number}")
        assert kept.size <= 50_000
    app.fails = 503
    shown = [number for number in range(20) if ask(kept, f"/{number}").status_code == 200]
    assert shown == [16, 17, 18, 19]


@pytest.mark.parametrize("body", [b"x" * 11, [b"x" * 5, b"x" * 6], "streamed"])
@pytest.mark.parametrize("length", [True, False])
def test_a_response_that_is_too_large_is_not_stored(
    clock: FakeClock, body: Any, length: bool
) -> None:
    app = App((lambda environ: iter([b"x" * 5, b"x" * 6])) if body == "streamed" else body)
    if length:
        app.fields.append(("Content-Length", "11"))
    kept = stale(app, clock, max_answer=10)
    assert ask(kept).text == "x" * 11
    assert kept.size == 0


def serve_some(app: Any, chunks: int) -> None:
    """Ask, take so many chunks and leave."""
    body = app(new_environ(), Server().start_response)
    taken = iter(body)
    for _ in range(chunks):
        next(taken)
    body.close()


def test_a_streamed_response_is_passed_on_as_it_comes_and_stored_at_its_end(
    clock: FakeClock,
) -> None:
    body = ClosableBody()
    app = App(lambda environ: body)
    kept = stale(app, clock)
    answer = Server().serve(kept, EnvironBuilder().get_environ())
    assert answer.chunks == [b"one", b"", b"two", b"three"]
    assert body.closed == 1
    app.fails = 503
    assert ask(kept).text == "onetwothree"


def test_a_response_that_was_not_read_to_its_end_is_not_stored(clock: FakeClock) -> None:
    kept = stale(App(lambda environ: ClosableBody()), clock)
    serve_some(kept, 4)  # all that there is, but not its end
    assert kept.size == 0


def test_a_response_that_failed_half_way_is_not_stored(clock: FakeClock) -> None:
    def cut(environ: Any) -> Iterable[bytes]:
        yield b"part"
        raise ConnectionResetError("cut")

    kept = stale(App(cut), clock)
    with pytest.raises(ConnectionResetError):
        ask(kept)
    assert kept.size == 0


def test_a_truncated_response_is_not_stored(clock: FakeClock) -> None:
    kept = stale(App(b"good", Content_Length="5"), clock)
    ask(kept)
    assert kept.size == 0


def test_an_app_that_raises_is_covered_where_500_is(clock: FakeClock) -> None:
    app = App()
    kept = stale(app, clock, rules=FallbackRules(statuses=[500]))
    ask(kept)

    def broken(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("a bug")

    kept.app = broken
    assert ask(kept).text == "good"
    with pytest.raises(RuntimeError):
        ask(kept, "/other")


def test_only_the_reasons_that_were_named_count(clock: FakeClock) -> None:
    app = App()
    kept = stale(app, clock, rules=FallbackRules(reasons=["timeout"]))
    ask(kept)
    app.fails = 503
    assert ask(kept).status_code == 503


def test_a_stale_response_is_logged(clock: FakeClock) -> None:
    app = App()
    kept = stale(app, clock)
    ask(kept)
    app.fails = 503
    environ = EnvironBuilder().get_environ()
    Server().serve(kept, environ)
    assert environ[SHAPED] == "fallback=stale"


def test_a_malformed_target_is_the_apps_to_refuse(clock: FakeClock) -> None:
    app = App()
    assert ask(stale(app, clock), environ_overrides={"RAW_URI": "/%zz"}).status_code == 200
    assert app.asked == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_answer": 0}, "max_answer: 1 byte"),
        ({"max_size": 10, "max_answer": 11}, "max_size: no less than max_answer"),
        ({"stale_for": -1}, "stale_for: 0 or more"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StaleAnswers(App(), **settings)


def test_a_response_to_head_is_not_stored(clock: FakeClock) -> None:
    """It has no body: whoever asks for that would get an empty one."""
    app = App([], Cache_Control="max-age=60")
    kept = stale(app, clock)
    ask(kept, method="HEAD")
    app.fails = 503
    assert ask(kept).status_code == 503
    assert kept.size == 0


def test_the_age_field_of_a_stored_response_counts(clock: FakeClock) -> None:
    app = App(Age="50", Cache_Control="max-age=60, stale-if-error=0")
    kept = stale(app, clock)
    ask(kept)
    app.fails = 503
    clock.advance(10)
    assert ask(kept).status_code == 200
    clock.advance(0.1)
    assert ask(kept).status_code == 503


def test_the_target_counts_toward_the_size(clock: FakeClock) -> None:
    kept = stale(App(), clock)
    ask(kept, "/?q=" + "x" * 3000)
    assert kept.size > 4000
