"""The authorizer in front of an app: statuses, challenges, the log, and a dry run."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from werkzeug import Response
from werkzeug.test import Client

from tests.support.providers import NOW, keys, token
from wsgigate import Authenticator, AuthorizationRule, Authorizer, Identity, Logger
from wsgigate.auth.authorization import RequestFacts, deny
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLAIMS, IDENTITY, PARAMS, REASON, ROUTE, RULE
from wsgigate.testing import check_middleware

ANN = Identity(
    subject="ann", scheme="bearer", claims={"roles": ["clerk"]}, scopes=frozenset({"orders:read"})
)

RULES: list[dict[str, Any]] = [
    {"name": "read", "methods": ["GET"], "scopes": ["orders:read"]},
    {"name": "write", "methods": ["POST"], "scopes": ["orders:write", "orders:read"]},
]


class Gate:
    def __init__(self, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.environ: dict[str, Any] = {}
        self.app = Authorizer(self.called, **options)

    def called(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen.append(environ)
        return Response("ok")(environ, start_response)

    def ask(self, method: str = "GET", identity: Any = ANN, **environ: Any) -> Any:
        if identity is not None:
            environ[IDENTITY] = identity

        def kept(given: dict[str, Any], start_response: Any) -> Any:
            self.environ = given
            return self.app(given, start_response)

        return Client(kept).open("/", method=method, environ_overrides=environ)


def test_it_is_a_middleware() -> None:
    check_middleware(lambda app: Authorizer(app, exempt=lambda environ: True))


def test_each_verified_caller_is_allowed_without_a_rule() -> None:
    gate = Gate()
    assert gate.ask().status_code == 200
    assert gate.environ[RULE] == "default"
    assert REASON not in gate.environ


@pytest.mark.parametrize("identity", [None, "ann", {"subject": "ann"}, {CLAIMS: {"sub": "ann"}}])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_without_a_verified_caller_it_is_401_with_a_challenge(identity: Any, method: str) -> None:
    gate = Gate(rules=[*RULES, {"methods": ["OPTIONS"], "scopes": ["x"]}])
    response = gate.ask(method, identity, **{CLAIMS: {"scope": "orders:read"}})
    assert (response.status_code, gate.seen) == (401, [])
    scope = {"POST": "orders:read orders:write", "OPTIONS": "x"}.get(method, "orders:read")
    assert response.headers["WWW-Authenticate"] == f'Bearer realm="api", scope="{scope}"'
    assert response.data == b"" if method == "HEAD" else b"Authentication" in response.data
    assert gate.environ[REASON] == "no verified caller"


def test_a_missing_scope_is_403_with_the_scopes_of_the_rule() -> None:
    gate = Gate(rules=RULES, realm="orders", resource_metadata="https://api.example.com/m")
    response = gate.ask("POST")
    assert (response.status_code, gate.seen) == (403, [])
    assert response.headers["WWW-Authenticate"] == (
        'Bearer realm="orders", error="insufficient_scope", scope="orders:read orders:write", '
        'resource_metadata="https://api.example.com/m"'
    )
    assert gate.environ[REASON] == "write: the caller lacks the scope orders:write"
    assert gate.environ[RULE] == "write"
    assert "orders:write" not in response.text


@pytest.mark.parametrize(
    ("scheme", "challenge"), [("bearer", "Bearer"), ("introspection", "Bearer"), ("dpop", "DPoP")]
)
def test_a_missing_scope_is_in_the_scheme_of_the_token(scheme: str, challenge: str) -> None:
    caller = Identity(subject="ann", scheme=scheme)
    response = Gate(scopes=["orders:read"]).ask(identity=caller)
    expected = f'{challenge} realm="api", error="insufficient_scope", scope="orders:read"'
    assert response.headers["WWW-Authenticate"] == expected


def test_a_caller_with_an_api_key_is_not_asked_for_a_token() -> None:
    key = Identity(subject="ann", scheme="api-key")
    response = Gate(scopes=["orders:read"]).ask(identity=key)
    assert (response.status_code, "WWW-Authenticate" in response.headers) == (403, False)


@pytest.mark.parametrize(
    "options",
    [
        {"roles": ["admin"]},
        {"groups": ["staff"]},
        {"claims": ["tenant"]},
        {"policy": lambda identity, facts: deny("after hours")},
        {"rules": [AuthorizationRule(methods=["POST"])]},
    ],
)
def test_another_rejection_is_403_without_a_challenge(options: dict[str, Any]) -> None:
    gate = Gate(**options)
    response = gate.ask()
    assert (response.status_code, gate.seen) == (403, [])
    assert "WWW-Authenticate" not in response.headers
    assert response.json["detail"] == "You are not allowed to do this."
    assert "after hours" not in response.text


PREFLIGHT = {"HTTP_ORIGIN": "https://a.example", "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}


def test_preflights_pass_unless_they_are_checked() -> None:
    assert Gate(roles=["admin"]).ask("OPTIONS", None, **PREFLIGHT).status_code == 200
    assert Gate(preflights=True).ask("OPTIONS", None, **PREFLIGHT).status_code == 401
    assert Gate(rules=RULES).ask("OPTIONS", ANN).status_code == 403
    assert Gate(rules=RULES).ask("POST", None, **PREFLIGHT).status_code == 401


def test_exempt_requests_pass_unchecked() -> None:
    gate = Gate(roles=["admin"], exempt={"paths": ["/"]})
    assert gate.ask(identity=None, **{RULE: "forged"}).status_code == 200
    assert RULE not in gate.environ


def test_a_policy_that_fails_is_500_and_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def policy(identity: Identity, facts: RequestFacts) -> bool:
        raise KeyError("secret-detail")

    gate = Gate(rules=[{"name": "mine", "policy": policy}])
    for _ in range(3):
        response = gate.ask()
        assert (response.status_code, gate.seen) == (500, [])
        assert "secret-detail" not in response.text
        assert gate.environ[REASON] == "mine: the policy failed: KeyError"
        assert gate.environ[RULE] == "mine"
    [record] = [each for each in caplog.records if each.name == "wsgigate.authorizer"]
    assert record.exc_info is not None
    assert "mine: the policy failed: KeyError" in record.getMessage()


def test_a_policy_gets_the_canonical_facts() -> None:
    facts: list[RequestFacts] = []

    def policy(identity: Identity, given: RequestFacts) -> bool:
        facts.append(given)
        return identity.subject == "ann"

    gate = Gate(policy=policy)
    environ = {ROUTE: "orders", PARAMS: {"id": "7"}, "RAW_URI": "/a/%7Eb?c=d", "PATH_INFO": "/a/~b"}
    environ |= {"QUERY_STRING": "c=d", "HTTP_HOST": "API.example.com:80"}
    gate.ask("post", REMOTE_ADDR="192.0.2.7", **environ)
    [found] = facts
    assert found == RequestFacts(
        *("POST", "/a/~b", "c=d", "api.example.com", "orders", {"id": "7"}, "192.0.2.7"),
        environ=found.environ,
    )


def test_an_ambiguous_target_reaches_no_policy() -> None:
    gate = Gate(policy=lambda identity, facts: True)
    response = gate.ask(RAW_URI="/a/../b", PATH_INFO="/a/../b")
    assert (response.status_code, gate.seen) == (400, [])


def failing(identity: Identity, facts: RequestFacts) -> bool:
    raise KeyError


@pytest.mark.parametrize(
    ("options", "identity", "reason"),
    [
        ({"roles": ["admin"]}, ANN, "only observed: default: the caller has none of the roles"),
        ({}, None, "only observed: no verified caller"),
        ({"policy": failing}, ANN, "only observed: default: the policy failed: KeyError"),
    ],
)
def test_a_dry_run_logs_and_rejects_nothing(
    options: dict[str, Any], identity: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(observe=True, **options)
    assert [gate.ask(identity=identity).status_code for _ in range(2)] == [200, 200]
    assert gate.environ[REASON].startswith(reason)
    assert gate.app.observed == 2
    told = [each.getMessage() for each in caplog.records if "would have been" in each.getMessage()]
    assert len(told) == 1
    assert reason.removeprefix("only observed: ") in told[0]


def test_each_decision_is_in_the_access_log_with_its_rule() -> None:
    stream = io.StringIO()
    gate = Gate(rules=RULES)
    log = gate.app = Logger(gate.app, stream=stream, format="json")  # type: ignore[assignment]
    gate.ask("GET")
    gate.ask("POST")
    log.close()
    allowed, denied = map(json.loads, stream.getvalue().splitlines())
    assert (allowed["status"], allowed["rule"]) == (200, "read")
    assert (denied["status"], denied["rule"]) == (403, "write")
    assert denied["reason"] == "write: the caller lacks the scope orders:write"


def test_a_rejection_is_rendered_by_the_given_function() -> None:
    def refuse(problem: Problem) -> Any:
        return Response("mine", status=problem.status, headers=list(problem.headers))

    response = Gate(scopes=["x"], refuse=refuse).ask()
    assert (response.text, "insufficient_scope" in response.headers["WWW-Authenticate"]) == (
        "mine",
        True,
    )


def test_a_token_of_keycloak_is_authorized_by_its_roles() -> None:
    inner = Authorizer(
        Response("ok"),
        roles=["clerk"],
        rules=[{"methods": ["GET"]}, {"methods": ["DELETE"], "roles": ["owner"]}],
    )
    app = Authenticator(
        inner,
        algorithms=["RS256"],
        public_key=keys()[1],
        audience="orders",
        clock=lambda: float(NOW),
    )
    client = Client(app)
    headers = {"Authorization": f"Bearer {token('keycloak')}"}
    statuses = [client.open("/", method=each, headers=headers).status_code for each in METHODS]
    assert statuses == [200, 200, 403, 403]


METHODS = ("GET", "HEAD", "DELETE", "POST")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scopes": "a"}, "scopes: expected a list"),
        ({"roles": "a"}, "roles: expected a list"),
        ({"claims": "a"}, "claims: a list of names, or a table"),
        ({"roles_from": "roles"}, "roles_from: expected a list"),
        ({"groups_from": ["a..b"]}, "groups_from: 'a..b' is not the path of a claim"),
        ({"rules": {"a": 1}}, "rules: expected a list of rules, not dict"),
        ({"rules": ["read"]}, r"rules\[0\]: expected an AuthorizationRule or a table"),
        ({"rules": [{"scope": ["a"]}]}, r"rules\[0\]: 'scope' is not an argument of a rule"),
        ({"rules": [{}, {"roles": "a"}]}, r"rules\[1\].roles: expected a list"),
        ({"rules": [{"name": "a"}, {"name": "a"}]}, r"rules\[1\].name: 'a' is the name of"),
        ({"realm": 'a"b'}, "realm: printable ASCII"),
        ({"resource_metadata": "/metadata"}, "resource_metadata: expected a URL"),
        ({"resource_metadata": "https://[::1"}, "resource_metadata: expected a URL"),
        ({"resource_metadata": 'https://a/"'}, "resource_metadata: expected a URL"),
        ({"policy": "a:b"}, "policy: expected a function"),
        ({"observe": "no", "roles": 7}, "roles"),
    ],
)
def test_an_invalid_option_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Authorizer(Response("ok"), **options)


def test_rejections_are_logged_without_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wsgigate.refusals"):
        Gate(roles=["admin"]).ask()
    assert "Authorizer refused 'GET' / of" in caplog.text
