"""AnyOf: one authenticator of several accepts the request, or all are answered for at once."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.authenticators import AUTHENTICATORS, Row, Way
from wsgigate import AllOf, AnyOf, Authenticator, Identity, Logger, Problem
from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.http.problem import answer_with, refused
from wsgigate.http.wsgi import ATTEMPT, CLAIMS, IDENTITIES, IDENTITY, LOGGED, REASON, SET_FIELDS
from wsgigate.store.namespace import innermost
from wsgigate.testing import check_middleware

each = pytest.mark.parametrize("row", AUTHENTICATORS.values(), ids=AUTHENTICATORS)


class App:
    """An app that keeps the environ of the last request that reached it."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen = environ.copy()
        self.body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    @property
    def caller(self) -> Any:
        return self.seen.get(IDENTITY)


@pytest.fixture
def app() -> App:
    return App()


class Never:
    """An authenticator whose credential no request of these tests has."""

    def __init__(self, app: Any, *, refuse: Any = answer_with, status: int = 401) -> None:
        self.app = app
        self.closed = 0
        challenge = ("WWW-Authenticate", "Never")
        self._missing = refuse(CredentialsMissing(401, "Never!", headers=(challenge,)))
        self._invalid = refuse(Problem(status, "Not you!"))

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        environ.pop(IDENTITY, None)
        given = environ.pop("HTTP_X_NEVER", None)
        if given == "yes":
            environ[IDENTITY] = Identity("never", "never", claims={"sub": "never"})
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        refused(environ, "Never", "an invalid one" if given else "none given")
        return (self._invalid if given else self._missing)(environ, start_response)  # type: ignore[no-any-return]

    def hide(self, environ: Any) -> None:
        environ.pop("HTTP_X_NEVER", None)

    def close(self) -> None:
        self.closed += 1


@each
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_each_authenticator_is_an_alternative(
    row: Row, first: bool, app: App, tmp_path: Path
) -> None:
    way = row(tmp_path)
    of = [way.factory, Never] if first else [Never, way.factory]
    client = Client(AnyOf(app, of))

    assert client.post("/", data=b"a body", **way.valid).status_code == 200
    assert (app.caller.subject, app.caller.scheme) == (way.subject, way.scheme)
    assert app.caller.claims["sub"] == way.subject  # as a field of identity may name it
    assert app.body == b"a body"
    assert not {ATTEMPT, LOGGED, REASON} & app.seen.keys()

    answer = client.post("/", data=b"a body", **way.invalid)
    alone = Client(way.factory(app, refuse=answer_with)).post("/", data=b"a body", **way.invalid)
    assert (answer.status_code, answer.json["detail"]) == (alone.status_code, alone.json["detail"])
    if answer.status_code == 401:
        assert "Never" in answer.headers.getlist("WWW-Authenticate")

    missing = client.post("/", data=b"a body")
    alone = Client(way.factory(app, refuse=answer_with)).post("/", data=b"a body")
    challenges = [*alone.headers.getlist("WWW-Authenticate"), "Never"]
    assert (missing.status_code, missing.json["detail"]) == (401, "Authentication required!")
    assert sorted(missing.headers.getlist("WWW-Authenticate")) == sorted(challenges)


@each
def test_an_invalid_credential_does_not_hinder_a_valid_one(
    row: Row, app: App, tmp_path: Path
) -> None:
    way = row(tmp_path)
    client = Client(AnyOf(app, [way.factory, Never]))
    fields = {**way.invalid.get("headers", {}), "X-Never": "yes"}
    assert client.get("/", **{**way.invalid, "headers": fields}).status_code == 200
    assert app.caller.subject == "never"
    assert CLAIMS not in app.seen
    assert "HTTP_X_NEVER" not in app.seen


@each
def test_anonymous_is_without_any_credential(row: Row, app: App, tmp_path: Path) -> None:
    way = row(tmp_path)
    client = Client(AnyOf(app, [Never, way.factory], anonymous=True))
    assert client.get("/").status_code == 200
    assert not app.caller
    assert client.get("/", **way.valid).status_code == 200
    assert app.caller.subject == way.subject
    assert client.get("/", **way.invalid).status_code >= 400


@each
def test_it_nests(row: Row, app: App, tmp_path: Path) -> None:
    way = row(tmp_path)
    client = Client(AnyOf(app, [partial(AnyOf, of=[Never]), partial(AnyOf, of=[way.factory])]))
    assert client.get("/", **way.valid).status_code == 200
    assert app.caller.subject == way.subject
    assert ATTEMPT not in app.seen
    assert client.get("/").status_code == 401
    assert client.get("/", headers={"X-Never": "yes"}).status_code == 200


def test_alternatives_of_both_at_once(app: App, tmp_path: Path) -> None:
    key, token = AUTHENTICATORS["api-key"](tmp_path), AUTHENTICATORS["authenticator"](tmp_path)
    client = Client(AnyOf(app, [Never, partial(AllOf, of=[key.factory, token.factory])]))
    assert client.get("/", **key.valid).status_code == 401
    both = {"headers": {**key.valid["headers"], **token.valid["headers"]}}
    assert client.get("/", **both).status_code == 200
    assert app.caller.subject == key.subject
    assert [who.subject for who in app.seen[IDENTITIES]] == [key.subject, token.subject]


def test_a_key_that_no_authenticator_was_asked_for_reaches_no_app(app: App, tmp_path: Path) -> None:
    key, token = AUTHENTICATORS["api-key"](tmp_path), AUTHENTICATORS["authenticator"](tmp_path)
    client = Client(AnyOf(app, [token.factory, key.factory], anonymous=True))
    both = {"headers": {**key.valid["headers"], **token.valid["headers"]}}
    assert client.get("/", **both).status_code == 200
    assert app.caller.subject == token.subject
    assert "HTTP_X_API_KEY" not in app.seen


@pytest.mark.parametrize("nested", [False, True])
def test_what_one_hides_wherever_it_is_reaches_no_app(
    nested: bool, app: App, tmp_path: Path
) -> None:
    key, basic = AUTHENTICATORS["api-key"](tmp_path), AUTHENTICATORS["basic"](tmp_path)
    of: list[Any] = [partial(key.factory, query="k", authorization="ApiKey"), basic.factory]
    if nested:
        of = [partial(AllOf, of=of), partial(AnyOf, of=of)]
    client = Client(AnyOf(app, [Never, *of]))
    fields = {**basic.valid["headers"], **key.valid["headers"], "X-Never": "yes"}
    url = f"/?a=1&k={key.valid['headers']['X-API-Key']}&b=2"
    for scheme in (fields["Authorization"], "basic !", "ApiKey x"):
        answer = client.get(url, headers={**fields, "Authorization": scheme})
        assert (answer.status_code, app.caller.subject) == (200, "never")
        assert app.seen["QUERY_STRING"] == "a=1&b=2"
        assert not {"HTTP_AUTHORIZATION", "HTTP_X_API_KEY"} & app.seen.keys()
    answer = client.get(url, headers={**fields, "Authorization": "Digest of another"})
    assert app.seen["HTTP_AUTHORIZATION"] == "Digest of another"


SESSIONS = {"django-session": "sessionid", "flask-session": "session"}


@pytest.mark.parametrize("use", SESSIONS)
@pytest.mark.parametrize("nested", [None, AllOf, AnyOf])
@pytest.mark.parametrize("anonymous", [False, True])
def test_a_service_neither_sees_nor_changes_a_session_of_another_alternative(
    use: str, nested: Any, anonymous: bool, tmp_path: Path
) -> None:
    seen: list[str | None] = []

    def service(environ: Any, start_response: Any) -> Iterable[bytes]:
        seen.append(environ.get("HTTP_COOKIE"))
        changes = [("Set-Cookie", f"{SESSIONS[use]}=evil; Path=/"), ("Clear-Site-Data", '"*"')]
        start_response("200 OK", [*changes, ("Set-Cookie", "cart=7")])
        return []

    way = AUTHENTICATORS[use](tmp_path)
    of = [partial(nested, of=[way.factory]) if nested else way.factory]
    client = Client(AnyOf(service, [Never, *of], anonymous=anonymous), use_cookies=False)
    cookie = "made-up" if anonymous else way.valid["headers"]["X-Session"].partition("=")[2]
    fields = {"Cookie": f"{SESSIONS[use]}={cookie}; theme=dark"}
    given = [fields, *([] if anonymous else [{**fields, "X-Never": "yes"}])]
    for headers in given:
        answer = client.get("/", headers=headers)
        assert answer.status_code == 200
        assert answer.headers.getlist("Set-Cookie") == ["cart=7"]
        assert "Clear-Site-Data" not in answer.headers
        assert answer.headers["Vary"] == "Cookie"
    assert seen == ["theme=dark"] * len(given)


@pytest.mark.parametrize("use", SESSIONS)
def test_one_that_guards_routes_does_so_among_others(use: str, app: App, tmp_path: Path) -> None:
    of = [Never, AUTHENTICATORS[use](tmp_path).factory]
    assert AnyOf(app, of).guards_routes
    assert AllOf(app, of).guards_routes
    assert not AnyOf(app, [Never]).guards_routes


def test_a_field_that_the_gateway_has_set_stays(app: App) -> None:
    """Also one with the value that the client sent."""

    def setting(app: Any, *, refuse: Any) -> Any:
        def set_field(environ: Any, start_response: Any) -> Iterable[bytes]:
            environ[IDENTITY] = Identity("ann", "forward-auth")
            environ["HTTP_X_NEVER"] = "1"
            environ[SET_FIELDS] = ("HTTP_X_NEVER",)
            return app(environ, start_response)  # type: ignore[no-any-return]

        return set_field

    client = Client(AnyOf(app, [setting, Never]))
    assert client.get("/", headers={"X-Never": "1"}).status_code == 200
    assert app.seen["HTTP_X_NEVER"] == "1"


def test_the_response_of_refuse_has_the_request_as_it_came(app: App) -> None:
    """An application that renders it must not lose the session of its user."""
    seen: list[Any] = []

    def refuse(problem: Problem) -> Any:
        def page(environ: Any, start_response: Any) -> Any:
            seen.append(environ.get("HTTP_X_NEVER"))
            return problem(environ, start_response)

        return page

    assert Client(AnyOf(app, [Never], refuse=refuse)).get("/", headers={"X-Never": "no"}).json
    assert seen == ["no"]


def test_a_caller_of_no_authenticator_is_removed(app: App) -> None:
    forged = {IDENTITY: Identity("root", "bearer"), CLAIMS: {"sub": "root"}}
    client = Client(AnyOf(app, [Never]))
    assert client.get("/", environ_overrides=forged).status_code == 401
    optional = Client(AnyOf(app, [Never], anonymous=True))
    assert optional.get("/", environ_overrides={IDENTITY: "root", CLAIMS: {}}).status_code == 200
    assert not app.caller
    assert CLAIMS not in app.seen
    # that of an authenticator around it, as for each optional authenticator
    both = {**forged, IDENTITIES: (forged[IDENTITY], Identity("7", "badge"))}
    assert optional.get("/", environ_overrides=both).status_code == 200
    assert app.caller.subject == "root"
    assert app.seen[IDENTITIES] == both[IDENTITIES]
    assert optional.get("/", headers={"X-Never": "yes"}, environ_overrides=both).status_code == 200
    assert IDENTITIES not in app.seen


@pytest.mark.parametrize(("status", "asked"), [(403, True), (429, True), (503, True), (413, False)])
def test_a_rejection_of_the_request_itself_ends_it(status: int, asked: bool, app: App) -> None:
    def other(_app: Any, *, refuse: Any) -> Any:
        return refuse(Problem(499, "asked"))

    client = Client(AnyOf(app, [partial(Never, status=status), other]))
    answer = client.get("/", headers={"X-Never": "no"})
    assert (answer.status_code == 499) is asked


def test_an_authenticator_may_respond_by_itself(app: App) -> None:
    def login(_app: Any, *, refuse: Any) -> Any:
        def redirect(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("302 Found", [("Location", "/login")])
            return [b""]

        return redirect

    answer = Client(AnyOf(app, [Never, login])).get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")


class Reader(Never):
    """An authenticator that reads the body, and leaves another one, as those of signatures do."""

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read())
        environ["HTTP_X_READ"] = "yes"
        return super().__call__(environ, start_response)


def test_a_body_that_was_read_is_not_lost(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    client = Client(AnyOf(app, [Reader, way.factory]))
    assert client.post("/", data=b"a body", **way.valid).status_code == 200
    assert app.body == b"a body"
    assert "HTTP_X_READ" not in app.seen


def test_the_reasons_of_all_are_in_the_access_log(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    log = io.StringIO()
    logged = Logger(AnyOf(app, [Never, way.factory]), stream=log, format="json")
    Client(logged).get("/", buffered=True)
    Client(logged).get("/", buffered=True, **way.valid)
    logged.close()
    first, second = log.getvalue().splitlines()
    assert '"reason":"none given; no API key"' in first
    assert '"reason"' not in second


def test_a_rejected_alternative_is_no_rejection(
    app: App, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    client = Client(AnyOf(app, [Never, way.factory]))
    with caplog.at_level(logging.INFO, "wsgigate.refusals"):
        client.get("/", **way.valid)
        assert not caplog.records
        client.get("/")
    [record] = caplog.records
    assert record.getMessage().startswith("AnyOf refused 'GET' /")
    assert "none given; no API key" in record.getMessage()


@pytest.mark.parametrize("option", [{"required": False}, {"exempt": lambda environ: True}])
def test_one_that_lets_pass_without_an_identity_does_not_hide_an_invalid_credential(
    option: dict[str, Any], app: App, tmp_path: Path
) -> None:
    key, token = AUTHENTICATORS["api-key"](tmp_path), AUTHENTICATORS["authenticator"](tmp_path)
    client = Client(AnyOf(app, [partial(token.factory, **option), key.factory]))
    assert client.get("/").status_code == 200
    assert not app.caller
    assert client.get("/", **key.valid).status_code == 200
    assert app.caller.subject == key.subject
    assert client.get("/", **key.invalid).status_code == 401


def test_a_preflight_passes(app: App, tmp_path: Path) -> None:
    ways: list[Way] = [row(tmp_path) for row in AUTHENTICATORS.values()]
    client = Client(AnyOf(app, [way.factory for way in ways]))
    fields = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
    assert client.options("/", headers=fields).status_code == 200
    assert not app.caller


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_a_default_store_belongs_to_the_innermost_app(kind: Any, app: App) -> None:
    """Otherwise all apps of a machine that combine authenticators would share their counts."""
    found: list[object] = []

    def noting(behind: Any, *, refuse: Any) -> Any:
        found.append(innermost(behind))
        return Never(behind, refuse=refuse)

    kind(app, [noting, partial(kind, of=[noting])])
    assert found == [app, app]


def test_close_closes_each_of_them(app: App) -> None:
    made: list[Never] = []

    def kept(app: Any, *, refuse: Any) -> Any:
        made.append(Never(app, refuse=refuse))
        return made[-1]

    AnyOf(app, [kept, kept]).close()
    AllOf(app, [kept, kept]).close()
    assert [each.closed for each in made] == [1, 1, 1, 1]


def test_the_response_is_that_of_refuse(app: App) -> None:
    def refuse(problem: Problem) -> Any:
        return Problem(418, problem.detail)

    assert Client(AnyOf(app, [Never], refuse=refuse)).get("/").status_code == 418


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([], "of: expected a list of authenticators"),
        ("bearer", "of: expected a list of authenticators"),
        ([Never, "bearer"], r"of\[1\]: expected a factory such as"),
        ([lambda app: app], r"of\[0\]: a factory is called with the app and refuse="),
        ([lambda app, refuse: None], r"of\[0\] returned no WSGI application, but NoneType"),
        ([partial(Authenticator, algorithms=["HS256"], secret="x")], r"of\[0\]\.secret"),
    ],
)
def test_an_error_names_the_place(kind: Any, of: Any, message: str, app: App) -> None:
    with pytest.raises(ValueError, match=message):
        kind(app, of)


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
@pytest.mark.parametrize("wrap", [lambda each: each, lambda each: {each}])
@pytest.mark.parametrize("what", [partial(Authenticator, secret="hunter2"), "hunter2"])
def test_an_error_shows_no_secret(kind: Any, wrap: Any, what: Any, app: App) -> None:
    for of in (wrap(what), [{"secret": what}], ["hunter2"]):
        with pytest.raises(ValueError, match="of") as caught:
            kind(app, of)
        assert "hunter2" not in str(caught.value)


@pytest.fixture
def _silent() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@each
@pytest.mark.usefixtures("_silent")
def test_each_keeps_the_contract_as_an_alternative(row: Row, tmp_path: Path) -> None:
    way = row(tmp_path)
    check_middleware(lambda app: AnyOf(app, [way.factory, Never], anonymous=True), leaves_body=True)
