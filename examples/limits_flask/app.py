"""A Flask app with rate limits by plan and address and a concurrency limit, outside the views."""

from __future__ import annotations

from typing import Any

from flask import Flask

from wsgigate import ConcurrencyLimiter, Limiter
from wsgigate.http.caller import matching
from wsgigate.http.wsgi import api_key, client_address

app = Flask(__name__)

PLANS = {"free": "100 per hour", "pro": ["50/s", "1_000_000 per calendar month"]}
KEYS = {"key-of-ada": "pro", "key-of-bob": "free"}  # in production: a table, cached


@app.get("/")
def home() -> dict[str, str]:
    return {"message": "Hello!"}


@app.post("/login")
def login() -> dict[str, str]:
    return {"message": "Welcome!"}


@app.get("/report")
def report() -> dict[str, str]:
    return {"message": "It took a while."}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


def plan(environ: dict[str, Any]) -> str | None:
    """Return the plan of the caller's API key, None for an unknown key."""
    return KEYS.get(environ.get("HTTP_X_API_KEY", ""))


def caller(environ: dict[str, Any]) -> str | None:
    """Return a valid API key, else the address: unknown keys are easily forged."""
    return api_key(environ) if plan(environ) else client_address(environ)


is_report = matching(paths=["/report"])


def cost(environ: dict[str, Any]) -> int:
    """Return the cost of the request: a report costs ten units."""
    return 10 if is_report(environ) else 1


logins = {"paths": ["/login"], "methods": ["POST"]}
free = {"paths": ["/health"], "methods": ["OPTIONS"]}

# the innermost is first: a request passes them in the opposite order
wsgi = app.wsgi_app
wsgi = ConcurrencyLimiter(wsgi, 10, key=caller, exempt=free)
wsgi = Limiter(
    wsgi, "20 per hour", plans=PLANS, plan=plan, key=caller, cost=cost, exempt=free, name="api"
)
wsgi = Limiter(wsgi, "5 per minute", only=logins, name="login")
app.wsgi_app = wsgi
