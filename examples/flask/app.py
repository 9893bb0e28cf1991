"""An existing Flask app with a rate limit: one import and one line."""

from __future__ import annotations

from flask import Flask

from wsgigate import Limiter

app = Flask(__name__)


@app.get("/")
def home() -> dict[str, str]:
    return {"message": "Hello!"}


@app.get("/hello/<name>")
def hello(name: str) -> dict[str, str]:
    return {"message": f"Hello, {name}!"}


app.wsgi_app = Limiter(app.wsgi_app, "100 per 15 minutes")  # app stays a Flask app
