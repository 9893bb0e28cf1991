"""A shop that moves its orders to a new service, path by path, behind the login it has.

The gateway is mounted around the app, in the same process; ``gateway.toml`` says what it forwards.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, redirect, request, session, url_for
from markupsafe import escape
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from wsgigate.flask import MissingCredentials, WsgiGate

USERS = {"ada": generate_password_hash("lovelace"), "alan": generate_password_hash("turing")}
ORDERS = {"ada": ["1 analytical engine"], "alan": ["2 enigmas", "1 bombe"]}  # a database, in fact

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ.get("SECRET_KEY", "change me"),
    SESSION_COOKIE_SAMESITE="Lax",
    WSGIGATE_FILE="gateway.toml",
)
gate = WsgiGate(app)


@app.get("/")
def home() -> str:
    user = session.get("user_id")
    if user is None:
        return '<h1>The shop</h1><a href="/login">Log in</a>'
    return f'<h1>The shop</h1>Hello {escape(user)}! <a href="/api/orders">Your orders</a>'


@app.get("/login")
def login_form() -> str:
    return (
        '<form method="post"><input name="name"><input name="password" type="password">'
        "<button>Log in</button></form>"
    )


@app.post("/login")
def login() -> Response | tuple[str, int]:
    name = request.form["name"]
    if not check_password_hash(USERS.get(name, ""), request.form["password"]):
        return "Wrong name or password.", 403
    session.clear()  # nothing of before the login stays
    session["user_id"] = name
    back = request.args.get("next", "/")
    # a path of this site: "//a.example" and "/\\a.example" are other sites to a browser
    is_here = back.startswith("/") and back[1:2] not in ("/", "\\")
    return redirect(back if is_here else url_for("home"))


@app.post("/logout")
def logout() -> Response:
    session.clear()
    return redirect(url_for("home"))


@app.get("/api/orders")
def orders() -> dict[str, Any] | tuple[dict[str, str], int]:
    """The path that moves. Delete this view once percent is gone from gateway.toml."""
    user = session.get("user_id")
    if user is None:
        return {"detail": "Log in first."}, 401
    return {"answered_by": "the monolith", "customer": user, "orders": ORDERS[user]}


@app.errorhandler(MissingCredentials)
def log_in_first(error: MissingCredentials) -> tuple[dict[str, str], int]:
    """Respond for the new service as the monolith does."""
    return {"detail": "Log in first."}, 401
