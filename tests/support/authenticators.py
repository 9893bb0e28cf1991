"""Every middleware that authenticates, for the tests of what they all do when they are combined.

One row each: a new authenticator is tested alone, as an alternative, and together with others.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from uuid import uuid4
from wsgiref.types import StartResponse, WSGIEnvironment

from argon2 import PasswordHasher
from django.test import override_settings
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from tests.support.certificates import Authority
from tests.support.django_project import configure
from tests.support.dpop import Prover
from tests.support.signing import Requester
from tests.support.webhooks import SECRETS, github
from wsgigate import (
    ApiKeyAuthenticator,
    ApiKeys,
    Authenticator,
    BasicAuthenticator,
    ClientCertificate,
    ForwardAuth,
    IntrospectionAuthenticator,
    MemoryStore,
    SignatureAuthenticator,
    WebhookVerifier,
)
from wsgigate.auth.jwt import mint
from wsgigate.client.endpoint import EndpointReply
from wsgigate.flask import FlaskSession

__all__ = ["AUTHENTICATORS", "HASH", "Row", "Way"]

SECRET = "a secret of the tests, thirty-two bytes or more"
HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")


@dataclass(frozen=True)
class Way:
    """One authenticator, and the requests that it judges.

    :ivar factory: Makes it: called with the app and ``refuse``.
    :ivar valid: The keyword arguments of a valid request, as for ``werkzeug.test.Client.open``.
    :ivar invalid: Those of a request with an invalid credential.
    :ivar subject: The subject of the valid one.
    :ivar scheme: The scheme of its identity.
    """

    factory: Callable[..., Any]
    valid: Mapping[str, Any]
    invalid: Mapping[str, Any]
    subject: str
    scheme: str


Row = Callable[[Path], Way]


def bearer(_folder: Path) -> Way:
    expired = mint(SECRET, "HS256", "ann", 60.0, time.time() - 9000)
    return Way(
        partial(Authenticator, algorithms=["HS256"], secret=SECRET),
        {"headers": {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}},
        {"headers": {"Authorization": f"Bearer {expired}"}},
        "ann",
        "bearer",
    )


def api_key(_folder: Path) -> Way:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    return Way(
        partial(ApiKeyAuthenticator, keys=keys),
        {"headers": {"X-API-Key": key}},
        {"headers": {"X-API-Key": "wk_forged"}},
        "acme",
        "api-key",
    )


def basic(folder: Path) -> Way:
    file = folder / "users"
    file.write_text(f"bob:{HASH}\n")

    def fields(password: str) -> dict[str, str]:
        return {"Authorization": f"Basic {base64.b64encode(f'bob:{password}'.encode()).decode()}"}

    return Way(
        partial(BasicAuthenticator, users_file=str(file), store=MemoryStore()),
        {"headers": fields("secret")},
        {"headers": fields("wrong")},
        "bob",
        "basic",
    )


def client_certificate(folder: Path) -> Way:
    def of_server(days: int) -> dict[str, Any]:
        pem = Authority(folder).issue("orders", [], days=days).read_text()
        pem = pem.partition("-----BEGIN PRIVATE")[0]
        return {"environ_overrides": {"SSL_CLIENT_CERT": pem, "SSL_CLIENT_VERIFY": "SUCCESS"}}

    factory = partial(ClientCertificate, subject="cn")
    return Way(factory, of_server(1), of_server(-1), "orders", "mtls")


class Signing(SignatureAuthenticator):
    """Signs each request with ``X-Sign`` itself: a signature is for one request, and used once."""

    requester = Requester()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sign = environ.get("HTTP_X_SIGN")
        if sign:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            created = int(time.time()) if sign == "well" else 1
            signed = self.requester.environ(
                environ["REQUEST_METHOD"],
                "http://localhost/",
                body,
                created=created,
                nonce=str(uuid4()),
            )
            names = ("HTTP_SIGNATURE", "HTTP_SIGNATURE_INPUT", "HTTP_CONTENT_DIGEST", "wsgi.input")
            environ.update({name: signed[name] for name in names if name in signed})
        return super().__call__(environ, start_response)


def message_signature(_folder: Path) -> Way:
    return Way(
        partial(Signing, signers=[Signing.requester.signer()], store=MemoryStore()),
        {"headers": {"X-Sign": "well"}},
        {"headers": {"X-Sign": "badly"}},
        "ann",
        "signature",
    )


def webhook(_folder: Path) -> Way:
    # of a body that some tests send, and of none
    by_body = {body: github(body, 0)["X-Hub-Signature-256"] for body in (b"a body", b"")}

    def factory(app: Any, **options: Any) -> Any:
        checked = WebhookVerifier(app, secret=SECRETS["github"], provider="github", **options)

        def signed(environ: Any, start_response: Any) -> Any:
            if environ.get("HTTP_X_HUB_SIGNATURE_256") == "valid":
                body = b"a body" if environ.get("CONTENT_LENGTH") == "6" else b""
                environ["HTTP_X_HUB_SIGNATURE_256"] = by_body[body]
            return checked(environ, start_response)

        return signed

    return Way(
        factory,
        {"headers": {"X-Hub-Signature-256": "valid"}},
        {"headers": {"X-Hub-Signature-256": f"sha256={'0' * 64}"}},
        "github",
        "webhook",
    )


class AskedEndpoint:
    """Stands in for the endpoints of a middleware, and for each of them: answers without a socket.

    :param answer: Returns the answer to the fields and the body of a request.
    """

    url = "https://id.example.com/"
    origin = "https://id.example.com"
    target = "/"
    timeout = 5.0
    max_concurrent = 16
    patience = 1.0

    def __init__(self, answer: Callable[[Mapping[str, str], bytes], EndpointReply]) -> None:
        self._answer = answer

    def get(self, *_: object, **__: object) -> AskedEndpoint:
        return self

    def ask(
        self, method: str, fields: Mapping[str, str], body: bytes | None = None, **_: object
    ) -> EndpointReply:
        return self._answer(fields, body or b"")


def introspection(_folder: Path) -> Way:
    def answer(_fields: Mapping[str, str], form: bytes) -> EndpointReply:
        document = {"active": form == b"token=opaque", "sub": "ann"}
        kind = [("Content-Type", "application/json")]
        return EndpointReply(200, kind, json.dumps(document).encode())

    return Way(
        partial(
            IntrospectionAuthenticator,
            endpoint=AskedEndpoint.url,
            bearer_token="own",
            endpoints=AskedEndpoint(answer),  # type: ignore[arg-type]
        ),
        {"headers": {"Authorization": "Bearer opaque"}},
        {"headers": {"Authorization": "Bearer forged"}},
        "ann",
        "introspection",
    )


def forward_auth(_folder: Path) -> Way:
    def answer(fields: Mapping[str, str], _body: bytes) -> EndpointReply:
        if fields.get("Authorization") == "Session ann":
            return EndpointReply(200, [("Remote-User", "ann")], b"")
        document = {"success": False, "detail": "The authentication service rejected the request."}
        return EndpointReply(
            401,
            [("WWW-Authenticate", "Session"), ("Content-Type", "application/json")],
            json.dumps(document).encode(),
        )

    return Way(
        partial(
            ForwardAuth,
            address=AskedEndpoint.url,
            header_field="Remote-User",
            endpoints=AskedEndpoint(answer),  # type: ignore[arg-type]
        ),
        {"headers": {"Authorization": "Session ann"}},
        {"headers": {"Authorization": "Session forged"}},
        "ann",
        "forward-auth",
    )


class Proving(Authenticator):
    """Proves the key of each request with ``X-Prove`` itself: a proof is for one, and used once."""

    prover = Prover()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        prove = environ.get("HTTP_X_PROVE")
        if prove:
            token = mint(SECRET, "HS256", "ann", cnf={"jkt": self.prover.key})
            environ["HTTP_AUTHORIZATION"] = f"DPoP {token}"
            environ["HTTP_DPOP"] = self.prover.proof(
                token,
                environ["REQUEST_METHOD"],
                "http://localhost/",
                iat=int(time.time()) if prove == "well" else 1,
                jti=str(uuid4()),
            )
        return super().__call__(environ, start_response)


def dpop(_folder: Path) -> Way:
    return Way(
        partial(Proving, algorithms=["HS256"], secret=SECRET, dpop="required", store=MemoryStore()),
        {"headers": {"X-Prove": "well"}},
        {"headers": {"X-Prove": "badly"}},
        "ann",
        "dpop",
    )


# Of a page of another site: the credential of a browser, which may not be used.
FORGED = {"Upgrade": "websocket", "Connection": "Upgrade", "Origin": "https://evil.example"}


class OfBrowser:
    """Takes the cookie of each request from ``X-Session``: a test client sends its own cookies."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "HTTP_X_SESSION" in environ:
            environ["HTTP_COOKIE"] = environ["HTTP_X_SESSION"]
        called: Iterable[bytes] = super().__call__(environ, start_response)  # type: ignore[misc]
        return called


class GuardedByFlask(OfBrowser, FlaskSession):
    """A session of Flask, from ``X-Session``."""


class UsersWithoutDatabase:
    """An authentication backend of Django by which each session is that of ann."""

    def get_user(self, key: int) -> Any:
        from django.contrib.auth import get_user_model

        return get_user_model()(pk=key, username="ann")


def django_session(_folder: Path) -> Way:
    configure()
    from django.contrib.sessions.backends.signed_cookies import SessionStore

    from wsgigate.django import DjangoSession

    backend = f"{__name__}.{UsersWithoutDatabase.__name__}"
    project = partial(
        override_settings,
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        AUTHENTICATION_BACKENDS=[backend],
    )

    one_at_a_time = RLock()

    class GuardedByDjango(OfBrowser, DjangoSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            with project():
                super().__init__(*arguments, subject="username", csrf="origin", **options)

        def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
            with one_at_a_time, project():  # settings are of the whole process
                return super().__call__(environ, start_response)

    user = UsersWithoutDatabase().get_user(7)
    session = SessionStore()
    session["_auth_user_id"], session["_auth_user_backend"] = "7", backend
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.save()
    cookie = {"X-Session": f"sessionid={session.session_key}"}
    valid, invalid = {"headers": cookie}, {"headers": {**cookie, **FORGED}}
    return Way(GuardedByDjango, valid, invalid, "ann", "session")


def flask_session(_folder: Path) -> Way:
    flask_app = Flask("shop")
    flask_app.secret_key = SECRET
    signer = SecureCookieSessionInterface().get_signing_serializer(flask_app)
    assert signer is not None
    signed = signer.dumps({"user_id": "ann"})
    cookie = {"X-Session": f"session={signed}"}
    return Way(
        partial(GuardedByFlask, flask_app=flask_app),
        {"headers": cookie},
        {"headers": {**cookie, **FORGED}},
        "ann",
        "session",
    )


AUTHENTICATORS: dict[str, Row] = {
    "api-key": api_key,
    "authenticator": bearer,
    "authenticator with dpop": dpop,
    "basic": basic,
    "client-certificate": client_certificate,
    "django-session": django_session,
    "flask-session": flask_session,
    "forward-auth": forward_auth,
    "introspection": introspection,
    "message-signature": message_signature,
    "webhook": webhook,
}
"""By ``use`` in the file, and what differs."""
