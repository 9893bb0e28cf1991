"""A baseline for the registry: an app with a registry's responses that keeps no state."""

from __future__ import annotations

import json
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

_INSTANCE = {
    "serviceName": "service-001",
    "instanceId": "instance-00001",
    "host": "127.0.0.1",
    "port": 10001,
    "url": "http://127.0.0.1:10001",
    "metadata": {"version": "1.0.0", "healthCheckPath": "/health", "zone": "z1"},
    "registeredAt": "2025-01-31T12:00:00.000Z",
    "lastHeartbeat": "2025-01-31T12:00:00.000Z",
    "healthy": True,
    "healthCheckPath": "/health",
    "status": "UP",
    "weight": 1,
    "tags": [],
}
DISCOVERED = json.dumps({"success": True, "instances": [_INSTANCE] * 20, "count": 20}).encode()
DONE = b'{"success": true, "message": "Heartbeat updated successfully!"}'


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = DISCOVERED if environ["REQUEST_METHOD"] == "GET" else DONE
    status = "201 Created" if environ["PATH_INFO"] == "/register" else "200 OK"
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, fields)
    return [body]
