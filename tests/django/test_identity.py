"""The verified caller in Django: request.identity, request.user, and the backend between them."""

from __future__ import annotations

import asyncio

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ImproperlyConfigured
from django.http import JsonResponse
from django.test import AsyncClient, Client

from wsgigate import Identity
from wsgigate.auth.jwt import mint
from wsgigate.django import force_identity
from wsgigate.django.backends import IdentityBackend

SECRET = "a secret of the tests, thirty-two bytes or more"

MIDDLEWARE = [
    "wsgigate.django.GateMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "wsgigate.django.IdentityMiddleware",
]

AUTHENTICATOR = (
    "wsgigate.Authenticator",
    {"algorithms": ["HS256"], "secret": SECRET, "required": False},
)


def me(request):
    identity = request.identity
    return JsonResponse(
        {
            "subject": None if identity is None else identity.subject,
            "user": request.user.get_username(),
            "backend": getattr(request.user, "backend", ""),
        }
    )


class Creating(IdentityBackend):
    create_unknown_user = True
    username_claim = "preferred_username"
    issuers = ("https://login.example",)

    def clean_username(self, username):
        return username.lower()

    def configure_user(self, request, user, created=True):
        if created:
            user.groups.add(Group.objects.get_or_create(name="new")[0])
        return user


BACKEND = "wsgigate.django.backends.IdentityBackend"
CREATING = f"{__name__}.Creating"
MODEL = "django.contrib.auth.backends.ModelBackend"


@pytest.fixture
def client(project, db) -> Client:
    project(
        {"": me},
        MIDDLEWARE=MIDDLEWARE,
        WSGIGATE=[AUTHENTICATOR],
        AUTHENTICATION_BACKENDS=[MODEL, BACKEND],
    )
    return Client()


def user_named(name: str, **fields):
    return get_user_model().objects.create_user(name, password="secret", **fields)


def get(client: Client, subject: str | None = None, **claims):
    headers = {}
    if subject is not None:
        headers["Authorization"] = f"Bearer {mint(SECRET, 'HS256', subject, 60, **claims)}"
    return client.get("/", headers=headers).json()


def test_a_token_has_the_user_of_its_subject(client: Client) -> None:
    user_named("ada")
    assert get(client, "ada") == {"subject": "ada", "user": "ada", "backend": BACKEND}
    assert client.cookies == {}


def test_without_a_token_the_session_has_the_user(client: Client) -> None:
    client.force_login(user_named("grace"), MODEL)
    assert get(client) == {"subject": None, "user": "grace", "backend": ""}


@pytest.mark.parametrize("token", ["ada", "unknown"])
def test_a_token_never_has_the_user_of_the_session(client: Client, token: str) -> None:
    user_named("ada")
    client.force_login(user_named("root", is_superuser=True), MODEL)
    assert get(client, token)["user"] == {"ada": "ada", "unknown": ""}[token]
    assert get(client)["user"] == "root"  # the session has not changed


def test_coroutine_views_have_the_user_of_the_token_as_well(project, db) -> None:
    async def view(request):
        return JsonResponse({"user": (await request.auser()).get_username()})

    project({"": view}, MIDDLEWARE=MIDDLEWARE, WSGIGATE=[AUTHENTICATOR],
            AUTHENTICATION_BACKENDS=[MODEL, BACKEND])  # fmt: skip
    client = Client()
    user_named("ada")
    client.force_login(user_named("root"), MODEL)
    assert get(client, "ada") == {"user": "ada"}


@pytest.mark.parametrize(
    "claims",
    [
        {"azp": "service"},
        {"client_id": "service"},
        {"gty": "client-credentials"},
        {"idtyp": "app"},
        {"grant_type": "client_credentials"},
    ],
    ids=lambda claims: next(iter(claims)),
)
def test_a_token_of_a_program_has_no_user(client: Client, claims) -> None:
    user_named("service")
    assert get(client, "service", **claims) == {"subject": "service", "user": "", "backend": ""}


def test_an_inactive_user_is_none(client: Client) -> None:
    user_named("ada", is_active=False)
    assert get(client, "ada")["user"] == ""


def test_no_user_is_created_by_default(client: Client) -> None:
    assert get(client, "new")["user"] == ""
    assert not get_user_model().objects.exists()


@pytest.mark.parametrize("name", ["ada\x00", "a" * 151, " ", ""])
def test_a_subject_that_no_user_can_have_finds_none(client: Client, name: str) -> None:
    user_named("ada")
    force_identity(client, Identity(name, "bearer"))
    assert client.get("/").json()["user"] == ""


def test_the_hooks_of_a_backend_create_and_configure_users(project, db) -> None:
    project({"": me}, MIDDLEWARE=MIDDLEWARE, WSGIGATE=[AUTHENTICATOR],
            AUTHENTICATION_BACKENDS=[CREATING])  # fmt: skip
    claims = {"iss": "https://login.example", "preferred_username": "Ada"}
    assert get(Client(), "4711", **claims)["user"] == "ada"
    user = get_user_model().objects.get(username="ada")
    assert list(user.groups.values_list("name", flat=True)) == ["new"]
    assert not user.has_usable_password()
    assert get(Client(), "4711", **claims)["user"] == "ada"
    assert get_user_model().objects.count() == 1


@pytest.mark.parametrize(
    "identity",
    [
        Identity("ada", "bearer", issuer="https://other.example"),
        Identity("ada", "bearer"),
        Identity("ada", "api-key", issuer="https://login.example"),
        Identity("ada", "bearer", issuer="https://login.example", claims={"preferred_username": 7}),
    ],
    ids=["another issuer", "no issuer", "another scheme", "no text"],
)
def test_only_the_issuers_and_schemes_of_a_backend_have_users(project, db, identity) -> None:
    user_named("ada")
    project({"": me}, MIDDLEWARE=MIDDLEWARE, WSGIGATE=[AUTHENTICATOR],
            AUTHENTICATION_BACKENDS=[CREATING])  # fmt: skip
    client = Client()
    force_identity(client, identity)
    assert client.get("/").json()["user"] == ""


@pytest.mark.parametrize("scheme", ["bearer", "dpop", "introspection", "forward-auth", "basic"])
def test_a_token_a_login_elsewhere_and_a_password_are_of_a_user(project, db, scheme) -> None:
    user_named("ada")
    project({"": me}, MIDDLEWARE=MIDDLEWARE, WSGIGATE=[AUTHENTICATOR],
            AUTHENTICATION_BACKENDS=[BACKEND])  # fmt: skip
    client = Client()
    force_identity(client, Identity("ada", scheme))
    assert client.get("/").json()["user"] == "ada"


def test_the_persistent_middleware_logs_in_and_ends_the_session_of_another(project, db) -> None:
    project(
        {"": me},
        MIDDLEWARE=[*MIDDLEWARE[:3], "wsgigate.django.PersistentIdentityMiddleware"],
        WSGIGATE=[AUTHENTICATOR],
        AUTHENTICATION_BACKENDS=[MODEL, BACKEND],
    )
    client = Client()
    user_named("ada")
    client.force_login(user_named("grace"), MODEL)
    assert get(client, "ada")["user"] == "ada"
    assert get(client) == {"subject": None, "user": "ada", "backend": ""}
    assert get(client, "unknown")["user"] == ""
    assert get(client)["user"] == ""


def test_without_the_authentication_middleware_the_error_names_it(project) -> None:
    project({"": me}, MIDDLEWARE=["wsgigate.django.IdentityMiddleware"])
    with pytest.raises(ImproperlyConfigured, match=r"AuthenticationMiddleware' before it"):
        Client().get("/")


def test_under_asgi_the_error_names_the_cure(project) -> None:
    project({"": me}, MIDDLEWARE=["wsgigate.django.IdentityMiddleware"])
    with pytest.raises(ImproperlyConfigured, match="Serve the project under a WSGI server"):
        asyncio.run(AsyncClient().get("/"))


def test_a_forced_identity_passes_an_authenticator_that_requires_a_token(project, db) -> None:
    required = ("wsgigate.Authenticator", {"algorithms": ["HS256"], "secret": SECRET})
    project({"": me}, MIDDLEWARE=MIDDLEWARE, WSGIGATE=[required],
            AUTHENTICATION_BACKENDS=[BACKEND])  # fmt: skip
    user_named("ada")
    client = Client()
    assert client.get("/").status_code == 401
    force_identity(client, Identity("ada", "bearer"))
    assert client.get("/").json()["user"] == "ada"
    force_identity(client, None)
    assert client.get("/").status_code == 401
