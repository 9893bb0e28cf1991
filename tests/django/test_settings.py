"""The setting WSGIGATE as a dict: a gateway's tables or file, around and inside Django."""

from __future__ import annotations

import gc

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, JsonResponse
from django.test import Client

from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.django import gateway
from wsgigate.http.wsgi import REQUEST_ID
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, reply
from wsgigate.testing.fakes import Server, new_environ


def hello(request):
    return HttpResponse("django")


def orders_at(backend: Backend) -> dict:
    return {
        "SERVICES": {"orders": {"instances": (backend.url,)}},
        "ROUTES": [{"path": "/api/orders", "service": "orders"}],
    }


@pytest.fixture
def backend():
    with Backend(reply(b"orders")) as backend:
        yield backend


def test_routes_are_forwarded_and_django_serves_all_other_requests(project, backend) -> None:
    project({"": hello, "api/other": hello}, WSGIGATE=orders_at(backend))
    client = Client()
    answers = [client.get(path) for path in ("/", "/api/other", "/api/orders", "/api/orders/7")]
    contents = [answer.getvalue() for answer in answers]
    assert contents == [b"django", b"django", b"orders", b"orders"]
    lines = [request.head.split(b"\r\n")[0] for request in backend.requests]
    assert lines == [b"GET /api/orders HTTP/1.1", b"GET /api/orders/7 HTTP/1.1"]
    assert all("X-Request-ID" in answer for answer in answers)


def test_the_gateway_around_django_forwards_without_it(project, backend) -> None:
    project({"": hello}, WSGIGATE=orders_at(backend), MIDDLEWARE=[])
    app = gateway(WSGIHandler())
    orders, other = new_environ(), new_environ()
    orders["PATH_INFO"], other["PATH_INFO"] = "/api/orders", "/"
    bodies = [b"".join(Server().serve(app, environ).chunks) for environ in (orders, other)]
    assert bodies == [b"orders", b"django"]


def test_with_both_a_request_passes_the_stack_once(project) -> None:
    project(
        {"": lambda request: JsonResponse({"id": request.META[REQUEST_ID]})},
        WSGIGATE=[("wsgigate.Limiter", {"quota": "2/m", "store": MemoryStore()}),
                  "wsgigate.RequestId"],
    )  # fmt: skip
    app = gateway(WSGIHandler())
    statuses = [Server().serve(app, new_environ()).status[:3] for _ in range(3)]
    assert statuses == ["200", "200", "429"]


def test_a_file_describes_the_gateway(project, backend, tmp_path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'store.url = "memory:"\n[services.orders]\ninstances = ["{backend.url}"]\n'
        '[[routes]]\npath = "/api/orders"\nservice = "orders"\n'
    )
    project({"": hello}, WSGIGATE={"FILE": "gateway.toml"}, BASE_DIR=tmp_path)
    client = Client()
    assert client.get("/api/orders").getvalue() == b"orders"
    assert client.get("/").content == b"django"


def test_a_percentage_of_a_path_is_forwarded(project, backend) -> None:
    given = orders_at(backend)
    given["ROUTES"][0]["percent"] = 0
    project({"api/orders": hello}, WSGIGATE=given)
    assert Client().get("/api/orders").content == b"django"


def test_middlewares_may_have_the_form_of_a_file(project) -> None:
    tables = [{"use": "limiter", "quota": "1/m"}]
    project({"": hello}, WSGIGATE={"MIDDLEWARE": tables})
    client = Client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]


WRONG = {
    "ROUTE": [],
    "MIDDLEWARE": ["nowhere.Limiter", ("wsgigate.Limiter", {"quota": "many"})],
    "SERVICES": {"orders": {"instance": ["http://127.0.0.1:1"]}},
    "ROUTES": [{"path": "/api", "service": "order"}],
}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (WRONG, "WSGIGATE['ROUTE']: is not a known key; did you mean \"ROUTES\"?"),
        (WRONG, 'WSGIGATE["MIDDLEWARE"][0]: No module named'),
        (WRONG, 'WSGIGATE["MIDDLEWARE"][1]: a quota is written'),
        (WRONG, 'WSGIGATE["SERVICES"].orders.instance: is not a known key'),
        (
            {"MIDDLEWARE": [{"use": "wsgigate.django.DjangoSession"}]},
            'write a class of your own as "wsgigate.django:DjangoSession"',
        ),
        (WRONG, 'WSGIGATE["ROUTES"][0].service: there is no service'),
        ({"middleware": []}, 'did you mean "MIDDLEWARE"?'),
        ({"MIDDLEWARE": "wsgigate.Logger"}, "expected a list of middlewares, got str"),
        ({"MIDDLEWARE": ["wsgigate.RequestId", {"use": "logger"}]}, "all middlewares as tables"),
        ({"FILE": 7}, 'WSGIGATE["FILE"]: expected the path of a file, got 7'),
        ({"FILE": "gone.toml"}, "gone.toml: cannot be read: No such file"),
        ({"FILE": "gone.toml", "ROUTES": []}, "FILE and ROUTES are mutually exclusive"),
        ({"GATEWAY": {"fallback": "a:b"}}, 'WSGIGATE["GATEWAY"].fallback'),
    ],
)  # fmt: skip
def test_all_errors_are_reported_at_once(project, setting, words) -> None:
    project({"": hello}, WSGIGATE=setting)
    with pytest.raises(ImproperlyConfigured) as raised:
        Client().get("/")
    assert words in str(raised.value)


def test_the_gateway_of_a_handler_that_is_gone_is_closed(project, backend) -> None:
    given = orders_at(backend)
    given["SERVICES"]["orders"]["health"] = {"path": "/health"}
    project({}, WSGIGATE=given)

    def threads() -> int:
        return sum(thread.name == "wsgigate-health" for thread in started("wsgigate-health"))

    def ask() -> None:
        assert Client().get("/api/orders").getvalue() == b"orders"

    ask()
    gc.collect()  # a handler of Django is a cycle
    most = threads()
    for _ in range(3):
        ask()
        gc.collect()
    until(lambda: threads() <= most)
