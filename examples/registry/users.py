"""The users service: it contains nothing about registries. users_conf.py does, for gunicorn."""

from __future__ import annotations

from flask import Flask, abort, request

USERS = {"ann": "Ann Example", "bob": "Bob Example"}

app = Flask(__name__)
app.json.sort_keys = False  # type: ignore[attr-defined]


@app.get("/users/<name>")
def user(name: str) -> dict[str, object]:
    if name not in USERS:
        abort(404)
    return {"name": USERS[name], "port": int(request.environ["SERVER_PORT"])}


@app.get("/health")
def health() -> dict[str, object]:
    return {"status": "healthy"}
