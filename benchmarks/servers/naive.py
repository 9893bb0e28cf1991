"""The simplest possible proxy: a ``requests`` session, and the whole body at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

TARGET = os.environ["BENCH_BACKEND_1"]

session = requests.Session()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    headers = {
        key[5:].replace("_", "-").title(): value
        for key, value in environ.items()
        if key.startswith("HTTP_") and key != "HTTP_HOST"
    }
    response = session.request(
        environ["REQUEST_METHOD"],
        TARGET + environ["PATH_INFO"],
        params=environ["QUERY_STRING"],
        headers=headers,
        data=environ["wsgi.input"].read(),
        allow_redirects=False,
        timeout=30,
    )
    fields = [(n, v) for n, v in response.headers.items() if n.lower() in ("content-type", "etag")]
    fields.append(("Content-Length", str(len(response.content))))
    start_response(f"{response.status_code} {response.reason}", fields)
    return [response.content]
