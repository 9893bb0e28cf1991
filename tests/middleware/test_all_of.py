"""AllOf: every authenticator accepts the request, and one of them decides who the caller is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.authenticators import AUTHENTICATORS, Row
from wsgigate import AllOf, Identity, Problem
from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.http.problem import answer_with
from wsgigate.http.wsgi import CLAIMS, IDENTITIES, IDENTITY, VERIFYING
from wsgigate.testing import check_middleware

each = pytest.mark.parametrize("row", AUTHENTICATORS.values(), ids=AUTHENTICATORS)


class App:
    """An app that keeps the environ of the last request that reached it."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen = environ.copy()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    @property
    def caller(self) -> Any:
        return self.seen.get(IDENTITY)


@pytest.fixture
def app() -> App:
    return App()


class Badge:
    """An authenticator by a field ``X-Badge``."""

    def __init__(self, app: Any, *, refuse: Any = answer_with) -> None:
        self.app = app
        self._missing = refuse(CredentialsMissing(401, "No badge!"))

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        environ.pop(IDENTITY, None)
        if "HTTP_X_BADGE" not in environ:
            return self._missing(environ, start_response)  # type: ignore[no-any-return]
        environ[IDENTITY] = Identity(environ["HTTP_X_BADGE"], "badge")
        return self.app(environ, start_response)  # type: ignore[no-any-return]


def with_badge(request: Any, badge: str = "gate-7") -> dict[str, Any]:
    return {**request, "headers": {**request.get("headers", {}), "X-Badge": badge}}


@each
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_each_authenticator_is_one_of_several(
    row: Row, first: bool, app: App, tmp_path: Path
) -> None:
    way = row(tmp_path)
    of = [way.factory, Badge] if first else [Badge, way.factory]
    client = Client(AllOf(app, of, primary=0 if first else 1))

    assert client.get("/", **with_badge(way.valid)).status_code == 200
    assert (app.caller.subject, app.caller.scheme) == (way.subject, way.scheme)
    assert (CLAIMS in app.seen) is (way.scheme in ("bearer", "dpop", "session"))
    subjects = [who.subject for who in app.seen[IDENTITIES]]
    assert subjects == ([way.subject, "gate-7"] if first else ["gate-7", way.subject])
    assert VERIFYING not in app.seen

    for request in (way.valid, with_badge(way.invalid), with_badge({}), {}):
        answer = client.get("/", **request)
        assert answer.status_code in (401, 403), request
        assert answer.json["success"] is False


def test_the_claims_are_those_of_the_caller(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["authenticator"](tmp_path)
    client = Client(AllOf(app, [Badge, way.factory]))
    assert client.get("/", **with_badge(way.valid)).status_code == 200
    assert app.caller.subject == "gate-7"
    assert CLAIMS not in app.seen
    assert app.seen[IDENTITIES][1].claims["sub"] == way.subject


def test_three_in_every_order(app: App, tmp_path: Path) -> None:
    ways = [AUTHENTICATORS[use](tmp_path) for use in ("authenticator", "api-key")]
    fields = {key: value for way in ways for key, value in way.valid["headers"].items()}
    makes = {"badge": Badge, **{way.scheme: way.factory for way in ways}}
    for order in permutations(makes):
        client = Client(AllOf(app, [makes[name] for name in order], primary=2))
        assert client.get("/", **with_badge({"headers": fields})).status_code == 200
        assert app.caller.scheme == order[2]
        assert [who.scheme for who in app.seen[IDENTITIES]] == list(order)


def test_it_nests(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    inner = partial(AllOf, of=[Badge, way.factory], primary=1)
    client = Client(AllOf(app, [inner, Badge]))
    assert client.get("/", **with_badge(way.valid)).status_code == 200
    assert app.caller.subject == way.subject
    assert [who.scheme for who in app.seen[IDENTITIES]] == ["badge", "api-key", "badge"]
    assert VERIFYING not in app.seen


def test_one_that_is_exempt_leaves_the_others_to_decide(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    exempt = partial(way.factory, exempt={"paths": ["/open"]})
    client = Client(AllOf(app, [exempt, Badge]))
    assert client.get("/open").status_code == 401
    assert client.get("/open", **with_badge({})).status_code == 200
    assert app.caller.scheme == "badge"
    both = Client(AllOf(app, [exempt, exempt]))
    assert both.get("/open").status_code == 200
    assert not app.caller
    assert IDENTITIES not in app.seen


def test_a_caller_of_no_authenticator_is_removed(app: App, tmp_path: Path) -> None:
    way = AUTHENTICATORS["api-key"](tmp_path)
    forged = {IDENTITY: Identity("root", "bearer"), IDENTITIES: (Identity("root", "bearer"),)}
    client = Client(AllOf(app, [partial(way.factory, required=False)]))
    assert client.get("/", environ_overrides=forged).status_code == 200
    assert not app.caller
    assert IDENTITIES not in app.seen


def test_the_first_rejection_is_the_response_of_refuse(app: App) -> None:
    def refuse(problem: Problem) -> Any:
        return Problem(418, problem.detail)

    answer = Client(AllOf(app, [Badge], refuse=refuse)).get("/")
    assert (answer.status_code, answer.json["detail"]) == (418, "No badge!")


@pytest.mark.parametrize("primary", [-1, 1, True, "bearer"])
def test_primary_is_a_place(primary: Any, app: App) -> None:
    with pytest.raises(ValueError, match="primary"):
        AllOf(app, [Badge], primary=primary)


@each
def test_each_keeps_the_contract_beside_another(row: Row, tmp_path: Path) -> None:
    optional = partial(row(tmp_path).factory, required=False)
    check_middleware(lambda app: AllOf(app, [optional, optional]), leaves_body=True)
