"""During maintenance only operators and exempt paths reach the app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate import Maintenance, MaintenanceSwitch
from wsgigate.http.wsgi import CLIENT, FAILURE, REASON
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

SECRET = "let-me-pass-please"


def app(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("HTTP_X_PASS", "good").encode()]


@pytest.fixture
def switch() -> MaintenanceSwitch:
    return MaintenanceSwitch(MemoryStore())


def test_requests_get_a_503_during_maintenance(switch: MaintenanceSwitch) -> None:
    client = Client(Maintenance(app, switch))
    assert client.get("/").text == "good"
    switch.on("gateway")
    answer = client.get("/")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "300"
    assert answer.content_type == "application/problem+json"
    assert answer.json["detail"] == "Out of service for maintenance."
    assert answer.json["error"] == "Maintenance"
    switch.off("gateway")
    assert client.get("/").text == "good"


def test_the_response_has_the_message_and_retry_after(switch: MaintenanceSwitch) -> None:
    switch.on("gateway", lasts=90, message="Back at noon.")
    answer = Client(Maintenance(app, switch)).get("/")
    assert answer.headers["Retry-After"] in ("89", "90")
    assert answer.json["message"] == "Back at noon."


@pytest.mark.parametrize(
    ("scope", "refused"),
    [("gateway", True), ("route:a", True), ("route:b", False), ("service:a", False)],
)
def test_only_the_scopes_of_the_app_reject_its_requests(
    switch: MaintenanceSwitch, scope: str, refused: bool
) -> None:
    switch.on(scope)
    answer = Client(Maintenance(app, switch, ["gateway", "route:a"])).get("/")
    assert (answer.status_code == 503) is refused


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({CLIENT: "10.1.2.3"}, "200"),
        ({CLIENT: "192.0.2.9"}, "503"),
        ({"REMOTE_ADDR": "10.1.2.3", CLIENT: "192.0.2.9"}, "503"),
        ({"HTTP_X_PASS": SECRET}, "200"),
        ({"HTTP_X_PASS": SECRET + "!"}, "503"),
        ({"HTTP_X_PASS": ""}, "503"),
        ({"HTTP_X_PASS": "\u00fc"}, "503"),
    ],
)
def test_allowed_addresses_and_the_secret_field_pass(
    switch: MaintenanceSwitch, more: dict[str, str], status: str
) -> None:
    switch.on("gateway")
    made = Maintenance(app, switch, allow=["10.0.0.0/8"], allow_header=("X-Pass", SECRET))
    assert Server().serve(made, {**new_environ(), **more}).status[:3] == status


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/static/a.css", 200), ("/health/x", 503), ("/", 503)]
)
def test_exempt_paths_are_served_during_maintenance(
    switch: MaintenanceSwitch, path: str, status: int
) -> None:
    switch.on("gateway")
    made = Maintenance(app, switch, exempt=["/health", "/static/*"])
    assert Client(made).get(path).status_code == status


def test_the_app_never_sees_the_secret_and_those_further_in_know_it(
    switch: MaintenanceSwitch,
) -> None:
    settings: Any = {"allow_header": ("X-Pass", SECRET)}
    inner = Maintenance(app, switch, ["service:a"], **settings)
    client = Client(Maintenance(inner, switch, **settings))
    assert client.get("/", headers={"X-Pass": SECRET}).text == "good"
    switch.on("service:a")
    assert client.get("/", headers={"X-Pass": SECRET}).text == "good"
    assert client.get("/").status_code == 503


def test_a_page_can_replace_the_problem_document(switch: MaintenanceSwitch) -> None:
    switch.on("gateway")
    client = Client(Maintenance(app, switch, page=(b"<h1>Closed</h1>", "text/html")))
    answer = client.get("/")
    assert (answer.status_code, answer.text) == (503, "<h1>Closed</h1>")
    assert answer.headers["Retry-After"] == "300"
    assert answer.headers["Cache-Control"] == "no-store"
    assert client.head("/").data == b""


def test_the_reason_and_failure_are_in_the_environ(switch: MaintenanceSwitch) -> None:
    switch.on("gateway")
    environ = new_environ()
    Server().serve(Maintenance(app, switch), environ)
    assert environ[REASON] == "in maintenance"
    assert environ[FAILURE] == "Maintenance"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scopes": ["orders"]}, "scope: gateway"),
        ({"exempt": ["/a*"]}, "exempt: paths: '/a\\*' is neither"),
        ({"allow": ["moon"]}, "allow: 'moon'"),
        ({"allow_header": ("X Y", SECRET)}, "allow_header: 'X Y' is not a valid header field name"),
        ({"allow_header": ("X-Pass", "short")}, "allow_header: the secret has 16 or more"),
        ({"retry_after": 0}, "retry_after: a number"),
        ({"page": (b"", "")}, "content_type: "),
    ],
)
def test_invalid_settings_raise(
    switch: MaintenanceSwitch, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Maintenance(app, switch, **settings)
