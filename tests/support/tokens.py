"""Signed tokens, and an authenticator that judges them at a moment of the test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from wsgiref.util import setup_testing_defaults

from wsgigate.http.wsgi import CLAIMS, IDENTITY, REASON
from wsgigate.middleware.authenticator import Authenticator

SECRET = "0123456789abcdef0123456789abcdef"


NOW = 1_700_000_000.0


GOOD = {"sub": "user-1", "exp": NOW + 60}


INVALID = (401, "Invalid or expired token!")


MISSING = (401, "Access token required!")


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload, header='{"alg":"HS256","typ":"JWT"}', secret=SECRET, digest=hashlib.sha256):
    """Return a token over these very texts, signed well, whatever they say."""
    payload = json.dumps(payload) if isinstance(payload, dict) else payload
    header = json.dumps(header) if isinstance(header, dict) else header
    body = ".".join(encoded(p.encode() if isinstance(p, str) else p) for p in (header, payload))
    return f"{body}.{encoded(hmac.new(secret.encode(), body.encode(), digest).digest())}"


def claims(**changes):
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}


class Gate:
    """An authenticator around an app that notes what it is asked."""

    def __init__(self, **options):
        self.seen = []
        if not {"public_key", "jwks", "jwks_file", "issuers", "key_sources"} & options.keys():
            options.setdefault("algorithms", ["HS256"])
            options.setdefault("secret", SECRET)
        self.clock = options.setdefault("clock", Clock())
        self.stack = Authenticator(self.app, **options)

    def app(self, environ, start_response):
        self.seen.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    def ask(self, authorization=None, **environ):
        """Return status, detail, challenge and reason of the answer."""
        if authorization is not None:
            environ["HTTP_AUTHORIZATION"] = authorization
        setup_testing_defaults(environ)
        answer = []
        body = b"".join(self.stack(environ, lambda *args: answer.extend(args)))
        fields = dict(answer[1])
        self.reason = environ.get(REASON)
        self.challenge = fields.get("WWW-Authenticate")
        self.retry_after = fields.get("Retry-After")
        self.body = body
        ok = answer[0] == "200 OK"
        return int(answer[0][:3]), "" if ok or not body else json.loads(body)["detail"]

    def bearer(self, token, **environ):
        return self.ask(f"Bearer {token}", **environ)

    @property
    def claims(self):
        return self.seen[-1][CLAIMS]

    @property
    def identity(self):
        return self.seen[-1][IDENTITY]
