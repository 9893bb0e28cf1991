"""The verified caller in views: proxies, requirements, and the handlers of each failure."""

from __future__ import annotations

import pytest
from flask import Blueprint, Flask, render_template_string
from flask.views import MethodView

from wsgigate import AuthorizationRule, Identity
from wsgigate.auth.jwt import mint
from wsgigate.flask import (
    InsufficientPermissions,
    MissingCredentials,
    WsgiGate,
    current_identity,
    get_identity,
    requires,
    verify_identity_in_request,
)

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OPTIONAL = {"use": "authenticator", "secret": SECRET, "algorithms": ["HS256"], "required": False}


def made(*views, middleware=(OPTIONAL,), gate=None, **config):
    app = Flask("shop")
    app.config.update(WSGIGATE_MIDDLEWARE=middleware, **config)
    for view in views:
        app.add_url_rule("/", view_func=view, methods=["GET", "POST"])
    (gate or WsgiGate()).init_app(app)
    app.testing = True
    return app


def bearer(**claims):
    token = mint(SECRET, "HS256", "ada", **claims)
    return {"Authorization": f"Bearer {token}"}


def test_the_caller_of_a_token_is_the_current_identity():
    def whoami():
        assert current_identity == get_identity() == verify_identity_in_request()
        assert isinstance(get_identity(), Identity)
        return f"{current_identity.subject} {sorted(current_identity.scopes)}"

    client = made(whoami).test_client()
    assert client.get("/", headers=bearer(scope="b a")).text == "ada ['a', 'b']"


def test_without_a_caller_the_proxy_is_like_none():
    def whoami():
        assert not current_identity
        assert current_identity == None  # noqa: E711 - what a proxy can be
        assert get_identity() is None
        assert verify_identity_in_request(optional=True) is None
        with pytest.raises(AttributeError):
            _ = current_identity.subject
        return "nobody"

    assert made(whoami).test_client().get("/").text == "nobody"
    assert get_identity() is None
    assert not current_identity


def test_a_request_field_is_no_identity():
    def whoami():
        return str(get_identity())

    fields = {"wsgigate.identity": "root", "Wsgigate-Identity": "root"}
    assert made(whoami).test_client().get("/", headers=fields).text == "None"


def test_templates_have_the_current_identity():
    def page():
        return render_template_string(
            "{% if current_identity %}{{ current_identity.subject }}{% else %}log in{% endif %}"
        )

    client = made(page).test_client()
    assert client.get("/").text == "log in"
    assert client.get("/", headers=bearer()).text == "ada"


def view_with(requirement):
    def view():
        return "secret"

    return requirement(view)


ADMIN_OR_WRITER = requires(any_of=[{"roles": ["admin"]}, {"scopes": ["orders:write"]}])
GET_ONLY = AuthorizationRule(methods=["GET"], scopes=["orders:read"])


def fails(identity, facts):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("requirement", "claims", "status"),
    [
        (requires(), None, 401),
        (requires(), {}, 200),
        (requires("orders:write"), None, 401),
        (requires("orders:write"), {"scope": "orders:read"}, 403),
        (requires("orders:write"), {"scope": "orders:read orders:write"}, 200),
        (requires("a", "b"), {"scope": "a"}, 403),
        (requires(roles=["admin", "clerk"]), {"roles": ["clerk"]}, 200),
        (requires(roles=["admin"]), {"roles": ["clerk"]}, 403),
        (requires(groups=["staff"]), {"groups": ["staff"]}, 200),
        (requires(claims={"org.id": 7}), {"org": {"id": 7}}, 200),
        (requires(claims={"org.id": 7}), {"org": {"id": 8}}, 403),
        (requires(policy=lambda identity, facts: facts.path == "/"), {}, 200),
        (requires(policy=lambda identity, facts: False), {}, 403),
        (requires(policy=fails), {}, 500),
        (ADMIN_OR_WRITER, {"roles": ["admin"]}, 200),
        (ADMIN_OR_WRITER, {"scope": "orders:write"}, 200),
        (ADMIN_OR_WRITER, {"scope": "orders:read"}, 403),
        (ADMIN_OR_WRITER, None, 401),
        (requires("a", any_of=[{"roles": ["admin"]}]), {"roles": ["admin"]}, 403),
        (requires(any_of=[GET_ONLY]), {"scope": "orders:read"}, 200),
        (requires(any_of=[{"policy": fails}, {"roles": ["admin"]}]), {"roles": ["admin"]}, 500),
    ],
)
def test_a_view_requires_what_its_rule_says(requirement, claims, status, caplog):
    headers = {} if claims is None else bearer(**claims)
    answer = made(view_with(requirement)).test_client().get("/", headers=headers)
    assert answer.status_code == status
    assert (answer.text == "secret") is (status == 200)


def test_an_alternative_for_another_method_does_not_allow_a_request():
    client = made(view_with(requires(any_of=[GET_ONLY]))).test_client()
    assert client.post("/", headers=bearer(scope="orders:read")).status_code == 403


def test_the_challenges_are_those_of_rfc_6750():
    app = made(view_with(requires("orders:write")), WSGIGATE_REALM="shop")
    client = app.test_client()
    missing = client.get("/")
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="shop", scope="orders:write"'
    assert missing.json["detail"] == "Authentication required!"
    insufficient = client.get("/", headers=bearer())
    assert insufficient.headers["WWW-Authenticate"] == (
        'Bearer realm="shop", error="insufficient_scope", scope="orders:write"'
    )
    assert insufficient.json["detail"] == "Insufficient scope."


def test_the_rule_that_rejects_is_logged(caplog):
    caplog.set_level("INFO", "wsgigate.refusals")
    app = made(view_with(requires("orders:write")))
    app.test_client().get("/", headers=bearer())
    assert "requires orders:write: the caller lacks the scope orders:write" in caplog.text


def test_class_based_views_and_blueprints_are_protected():
    class Orders(MethodView):
        decorators = [requires("orders:write")]  # noqa: RUF012 - as Flask documents it

        def get(self):
            return "orders"

    one, two = Blueprint("one", __name__), Blueprint("two", __name__)
    one.before_request(requires("one"))
    one.add_url_rule("/one", view_func=lambda: "one", endpoint="view")
    two.add_url_rule("/two", view_func=lambda: "two", endpoint="view")
    assert requires("two")(two) is two
    app = made(Orders.as_view("orders"))
    app.register_blueprint(one)
    app.register_blueprint(two)
    client = app.test_client()
    for path, scope in (("/", "orders:write"), ("/one", "one"), ("/two", "two")):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer()).status_code == 403
        assert client.get(path, headers=bearer(scope=scope)).status_code == 200
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert client.options("/one", headers=preflight).status_code == 200


def test_each_failure_has_a_handler_of_its_own():
    gate = WsgiGate()

    @gate.on_missing
    def missing(error):
        return "log in first", 401

    app = made(view_with(requires("orders:write")), gate=gate)
    gate.on_invalid(lambda error: ("expired", 401))
    gate.on_insufficient(lambda error: (f"no {error.problem.detail}", 403))
    client = app.test_client()
    answer = client.get("/")
    assert (answer.text, answer.status_code) == ("log in first", 401)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api", scope="orders:write"'
    wrong = client.get("/", headers={"Authorization": "Bearer wrong"})
    assert (wrong.text, wrong.status_code) == ("expired", 401)
    assert 'error="invalid_token"' in wrong.headers["WWW-Authenticate"]
    assert client.get("/", headers=bearer()).text == "no Insufficient scope."


def test_a_middleware_and_a_view_have_the_same_handlers():
    required = {**OPTIONAL, "required": True}
    authorizer = {"use": "authorizer", "scopes": ["orders:write"]}
    gate = WsgiGate()
    gate.on_missing(lambda error: ("missing", 401))
    gate.on_insufficient(lambda error: ("insufficient", 403))
    client = made(middleware=[required, authorizer], gate=gate).test_client()
    assert client.get("/").text == "missing"
    assert client.get("/", headers=bearer()).text == "insufficient"


def test_handlers_of_the_status_and_of_the_exception_apply():
    app = made(view_with(requires("a")))
    app.register_error_handler(401, lambda error: (type(error).__name__, 401))
    app.register_error_handler(InsufficientPermissions, lambda error: ("forbidden", 403))
    client = app.test_client()
    assert client.get("/").text == "MissingCredentials"
    assert client.get("/", headers=bearer()).text == "forbidden"


def test_without_the_extension_views_are_protected_by_the_defaults():
    app = Flask("shop")
    app.add_url_rule("/", view_func=view_with(requires(roles=["admin"])))
    assert app.test_client().get("/").status_code == 401
    with app.test_request_context("/"), pytest.raises(MissingCredentials):
        verify_identity_in_request()


def test_roles_and_groups_are_found_where_the_settings_say():
    views = (view_with(requires(roles=["clerk"], groups=["staff"])),)
    app = made(*views, WSGIGATE_ROLES_FROM=["https://shop/roles"], WSGIGATE_GROUPS_FROM=["teams"])
    caller = Identity("ada", "bearer", claims={"https://shop/roles": ["clerk"], "teams": ["staff"]})
    assert app.test_client(identity=caller).get("/").status_code == 200


def test_a_wrong_argument_is_named():
    for arguments, message in (
        ({"roles": "admin"}, "roles: expected a list"),
        ({"any_of": {"roles": ["admin"]}}, "any_of: expected a list"),
        ({"any_of": ["admin"]}, r"any_of\[0\]: expected an AuthorizationRule"),
        ({"any_of": [{"role": ["admin"]}]}, r"any_of\[0\]\."),
        ({"policy": 7}, "policy: expected a function"),
    ):
        with pytest.raises(ValueError, match=message):
            requires(**arguments)
    with pytest.raises(ValueError, match="scopes: 'two words' is not a scope name"):
        requires("two words")
    with pytest.raises(ValueError, match=r"write @requires\(\) with parentheses"):

        @requires
        def view():
            return "forgotten"
