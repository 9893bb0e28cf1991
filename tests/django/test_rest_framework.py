"""The verified caller in Django REST framework: users, 401 and 403, and required scopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from tests.support.django_project import configure

configure()

from rest_framework.response import Response  # noqa: E402 - it reads the settings
from rest_framework.test import APIClient  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from wsgigate import Identity  # noqa: E402
from wsgigate.django import force_identity  # noqa: E402
from wsgigate.django.rest_framework import (  # noqa: E402
    HasIdentity,
    HasScopes,
    IdentityAuthentication,
)

SETTINGS = {
    "MIDDLEWARE": [],
    "AUTHENTICATION_BACKENDS": ["wsgigate.django.backends.IdentityBackend"],
}


class Orders(APIView):
    authentication_classes = (IdentityAuthentication,)
    permission_classes = (HasScopes,)
    required_scopes: ClassVar[Sequence[str]] = ("orders:read",)

    def get(self, request):
        return Response({"user": request.user.get_username(), "auth": request.auth.subject})

    post = get


class Anyone(Orders):
    permission_classes = (HasIdentity,)


class Clerks(Orders):
    required_scopes = ()
    required_roles = ("clerk",)


class Acme(Orders):
    required_scopes = ()
    required_claims: ClassVar[dict[str, str]] = {"org": "acme"}


def caller(*scopes: str, **claims) -> Identity:
    return Identity("ada", "bearer", claims=claims, scopes=frozenset(scopes))


def answer(project, view, identity=None, method="get"):
    project({"": view.as_view()}, **SETTINGS)
    client = APIClient(enforce_csrf_checks=True)
    force_identity(client, identity)
    return getattr(client, method)("/")


@pytest.mark.parametrize(
    ("view", "identity", "status", "challenge"),
    [
        (Orders, None, 401, 'Bearer realm="api"'),
        (
            Orders,
            caller("orders:write"),
            403,
            'Bearer realm="api", error="insufficient_scope", scope="orders:read"',
        ),
        (Orders, caller("orders:read"), 200, None),
        (Anyone, None, 401, 'Bearer realm="api"'),
        (Anyone, caller(), 200, None),
        (Clerks, caller(), 403, None),
        (Clerks, caller(roles=["clerk"]), 200, None),
        (Acme, caller(org="evil"), 403, None),
    ],
)
def test_only_callers_with_the_scopes_are_allowed(
    project, db, view, identity, status, challenge
) -> None:
    response = answer(project, view, identity)
    assert (response.status_code, response.get("WWW-Authenticate")) == (status, challenge)


def test_the_user_of_the_identity_is_the_user_of_the_request(project, db) -> None:
    assert answer(project, Orders, caller("orders:read")).json() == {"user": "", "auth": "ada"}
    get_user_model().objects.create_user("ada")
    assert answer(project, Orders, caller("orders:read")).json() == {"user": "ada", "auth": "ada"}


def test_a_token_needs_no_csrf(project, db) -> None:
    assert answer(project, Orders, caller("orders:read"), "post").status_code == 200


def test_an_inactive_user_fails_to_authenticate(project, db) -> None:
    get_user_model().objects.create_user("ada", is_active=False)
    response = answer(project, Orders, caller("orders:read"))
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="api"'


class Misspelled(APIView):
    authentication_classes = (IdentityAuthentication,)
    permission_classes = (HasScopes,)
    require_scopes = ("orders:read",)


def test_a_view_that_does_not_say_what_it_requires_is_an_error(project) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"required_scopes, .* use HasIdentity"):
        answer(project, Misspelled, caller("orders:read"))


def test_a_forced_identity_must_be_one(project) -> None:
    with pytest.raises(TypeError, match="identity: expected an Identity, not 'ada'"):
        answer(project, Orders, "ada")
