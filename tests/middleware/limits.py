"""Requests to a limited app."""

from __future__ import annotations

import json
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from wsgigate.http.wsgi import close_body


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def ask(app, **environ):
    """Return the status, the fields, and the document of an answer."""
    place = {"SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": ""}
    environ = {"REMOTE_ADDR": "192.0.2.1", **place, **environ}
    setup_testing_defaults(environ)
    begun = []

    def start_response(status, headers, exc_info=None):
        begun[:] = [int(status[:3]), dict(headers)]
        return lambda data: None

    answer = validator(app)(environ, start_response)
    body = b"".join(answer)
    close_body(answer)
    status, fields = begun
    return status, fields, json.loads(body) if status != 200 else {}


def statuses(app, count, **environ):
    return [ask(app, **environ)[0] for _ in range(count)]


def begun(app, held, times, **environ):
    """Return the statuses of requests whose responses are held open."""
    found = []
    for _ in range(times):
        request = {"REMOTE_ADDR": "192.0.2.1", "PATH_INFO": "/", **environ}
        setup_testing_defaults(request)
        held.append(app(request, lambda status, *_: found.append(int(status[:3]))))
    return found
