"""A forwarder called by a Flask view under ``flask run``, whose ``wsgi.input`` is the socket."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from wsgigate.testing.backend import Backend, reply

SOURCE = """
import io
from flask import Flask, request
from werkzeug.wrappers import Response
from wsgigate import Forwarder, Instance, Pool

app = Flask(__name__)
forward = Forwarder(Pool("orders", [Instance("{url}")]))

@app.post("/<how>")
def view(how):
    data = request.get_data() if how != "unread" else b""
    if how == "restored":
        request.environ["wsgi.input"] = io.BytesIO(data)
    return Response.from_app(forward, request.environ)
"""


def test_a_body_that_the_view_has_read_is_an_error_at_once(
    serve_command: Callable[..., Any], tmp_path: Path
) -> None:
    with Backend(reply(b"ok")) as backend:
        (tmp_path / "site_of_flask.py").write_text(SOURCE.format(url=backend.url))
        flask = [sys.executable, "-m", "flask", "--app", "site_of_flask", "run", "--port"]
        server = serve_command(lambda port: [*flask, str(port)], PYTHONPATH=str(tmp_path))

        def ask(how: str) -> requests.Response:
            return requests.post(f"{server.url}/{how}", data=b"body", timeout=20)

        refused = ask("read")
        assert refused.status_code == 500
        assert "has read the request body" in refused.json()["message"]
        assert [ask("unread").text, ask("restored").text] == ["ok", "ok"]
        assert [each.body for each in backend.requests] == [b"body", b"body"]
