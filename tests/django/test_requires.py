"""The decorator and the mixin that guard views by the rules of an Authorizer."""

from __future__ import annotations

import logging

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncRequestFactory, Client
from django.utils.decorators import method_decorator
from django.views import View

from wsgigate import Identity
from wsgigate.auth.authorization import deny
from wsgigate.django import RequiresMixin, force_identity, render_refusals, requires


def hello(request):
    return HttpResponse("hello")


def caller(*scopes: str, scheme: str = "bearer", **claims) -> Identity:
    return Identity("ada", scheme, claims=claims, scopes=frozenset(scopes))


def answer(project, view, identity=None, method="GET", **settings):
    project({"": view}, **{"MIDDLEWARE": [], **settings})
    client = Client()
    force_identity(client, identity)
    return client.generic(method, "/")


ORDERS = (["orders:write"], {})


@pytest.mark.parametrize(
    ("arguments", "identity", "status", "challenge"),
    [
        (([], {}), None, 401, 'Bearer realm="api"'),
        (([], {}), caller(), 200, None),
        (ORDERS, None, 401, 'Bearer realm="api", scope="orders:write"'),
        (
            ORDERS,
            caller("orders:read"),
            403,
            'Bearer realm="api", error="insufficient_scope", scope="orders:write"',
        ),
        (ORDERS, caller("orders:read", scheme="session"), 403, None),
        (ORDERS, caller("orders:write"), 200, None),
        (([], {"roles": ["clerk"]}), caller(roles=["guest"]), 403, None),
        (([], {"roles": ["clerk"]}), caller(realm_access={"roles": ["clerk"]}), 200, None),
        (([], {"groups": ["staff"]}), caller(groups=["staff"]), 200, None),
        (([], {"claims": {"org": "acme"}}), caller(org="evil"), 403, None),
        (([], {"claims": {"org": "acme"}}), caller(org="acme"), 200, None),
        (([], {"policy": lambda identity, facts: facts.method == "GET"}), caller(), 200, None),
        (([], {"policy": lambda identity, facts: deny("closed")}), caller(), 403, None),
        (([], {"policy": lambda identity, facts: None}), caller(), 500, None),
        (([], {"realm": "shop"}), None, 401, 'Bearer realm="shop"'),
    ],
)
def test_a_view_is_called_if_the_rule_is_satisfied(
    project, arguments, identity, status, challenge
) -> None:
    scopes, others = arguments
    response = answer(project, requires(*scopes, **others)(hello), identity)
    assert (response.status_code, response.get("WWW-Authenticate")) == (status, challenge)
    if status != 200:
        assert response.json()["status"] == status
        assert response["Cache-Control"] == "no-store"


def test_coroutine_views_are_guarded_as_well(project) -> None:
    @requires("orders:write")
    async def view(request):
        return HttpResponse("hello")

    assert answer(project, view).status_code == 401
    assert answer(project, view, caller("orders:write")).content == b"hello"


def test_methods_of_class_based_views_are_guarded(project) -> None:
    class Orders(View):
        def get(self, request):
            return HttpResponse("orders")

        @method_decorator(requires("orders:write"))
        def post(self, request):
            return HttpResponse("made")

    view = Orders.as_view()
    assert answer(project, view).content == b"orders"
    assert answer(project, view, method="POST").status_code == 401
    assert answer(project, view, caller("orders:write"), method="POST").content == b"made"


def test_the_mixin_guards_each_method(project) -> None:
    class Orders(RequiresMixin, View):
        required_scopes = ("orders:read",)

        def get(self, request):
            return HttpResponse("orders")

    class Closed(Orders):
        @staticmethod
        def policy(identity, facts):
            return deny("closed")

    view = Orders.as_view()
    assert answer(project, view).status_code == 401
    assert answer(project, view, caller()).status_code == 403
    assert answer(project, view, caller("orders:read")).content == b"orders"
    assert answer(project, Closed.as_view(), caller("orders:read")).status_code == 403


def test_the_mixin_guards_coroutine_methods(project) -> None:
    class Orders(RequiresMixin, View):
        required_roles = ("clerk",)

        async def get(self, request):
            return HttpResponse("orders")

    assert answer(project, Orders.as_view(), caller()).status_code == 403
    assert answer(project, Orders.as_view(), caller(roles=["clerk"])).content == b"orders"


def test_a_wrong_rule_fails_when_the_view_is_defined() -> None:
    with pytest.raises(ValueError, match="is not a scope name"):
        requires("orders write")
    with pytest.raises(TypeError, match=r"write @requires\(\)"):
        requires(hello)
    with pytest.raises(ValueError, match="roles: expected a list"):

        class Orders(RequiresMixin, View):
            required_roles = "clerk"


WITH_USERS = {
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "wsgigate.django.IdentityMiddleware",
    ],
    "AUTHENTICATION_BACKENDS": ["wsgigate.django.backends.IdentityBackend"],
}


def test_the_token_of_an_inactive_user_is_refused_whatever_its_scopes(project, db, caplog) -> None:
    get_user_model().objects.create_user("ada", is_active=False)
    with caplog.at_level(logging.INFO):
        response = answer(project, requires("orders:write")(hello), caller("orders:write"),
                          **WITH_USERS)  # fmt: skip
    assert response.status_code == 403
    assert "the user is inactive" in caplog.text


def test_a_view_may_require_a_user_of_the_project(project, db) -> None:
    view = requires(user=True)(hello)
    assert answer(project, view, caller(), **WITH_USERS).status_code == 403
    get_user_model().objects.create_user("ada")
    assert answer(project, view, caller(), **WITH_USERS).status_code == 200


def test_rejections_can_be_rendered_by_the_project(project) -> None:
    def denied(request, exception):
        return HttpResponse(f"<h1>{exception.problem.detail}</h1>", status=403)

    project({"": requires("orders:write", refuse=render_refusals(view=lambda request, problem:
             denied(request, type("Refused", (), {"problem": problem}))))(hello)},
            MIDDLEWARE=[])  # fmt: skip
    client = Client()
    force_identity(client, caller())
    response = client.get("/")
    assert (response.status_code, response.content) == (403, b"<h1>Insufficient scope.</h1>")
    assert response["WWW-Authenticate"].startswith("Bearer ")


def test_under_asgi_a_guarded_view_fails_clearly() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"wsgigate.django.requires is for WSGI"):
        requires()(hello)(AsyncRequestFactory().get("/"))
