"""The middlewares in Django's MIDDLEWARE, under its test client and under a server."""

from __future__ import annotations

import io
import json
import pickle

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.http import (
    FileResponse,
    Http404,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from wsgigate import Authenticator, BodyLimit, ConcurrencyLimiter, Limiter, Logger, Problem
from wsgigate.auth.jwt import mint
from wsgigate.django import GateMiddleware, render_refusals
from wsgigate.http.wsgi import CLAIMS
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def hello(request):
    return JsonResponse({"hello": "django"})


def limited(quota="2/m", **options):
    return (
        "wsgigate.Limiter",
        {"quota": quota, "store": MemoryStore(clock=FakeClock()), **options},
    )


def test_requests_of_the_test_client_pass_the_stack(project):
    project({"": hello}, WSGIGATE=[limited()])
    client = Client()
    answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].json() == {"hello": "django"}
    assert answers[0]["RateLimit"].startswith('"default";r=1')
    assert answers[2].json()["title"] == "Too Many Requests"
    assert answers[2]["Retry-After"] == "30"
    assert answers[2].reason_phrase == "Too Many Requests"


def test_requests_of_a_server_pass_the_stack(project):
    project({"": hello}, WSGIGATE=[limited("1/m")])
    app = WSGIHandler()
    first, second = (Server().serve(app, new_environ()) for _ in range(2))
    assert (first.status[:3], second.status[:3]) == ("200", "429")


def test_the_innermost_is_last_and_options_are_the_middlewares_own(project):
    seen = []

    def noting(app, *, name):
        def note(environ, start_response):
            seen.append(name)
            return app(environ, start_response)

        return note

    project({"": hello}, WSGIGATE=[(noting, {"name": "outer"}), lambda app: noting(app, name="in")])
    Client().get("/")
    assert seen == ["outer", "in"]


def test_a_view_finds_the_claims_in_META(project):
    project(
        {"": lambda request: HttpResponse(request.META[CLAIMS]["sub"])},
        WSGIGATE=[(Authenticator, {"algorithms": ["HS256"], "secret": SECRET})],
    )
    client = Client()
    assert client.get("/").status_code == 401
    token = mint(SECRET, "HS256", "ada")
    assert client.get("/", headers={"Authorization": f"Bearer {token}"}).content == b"ada"


def test_a_view_reads_the_body_that_was_sent(project):
    bodies = {"": lambda request: HttpResponse(request.body), "form": form}
    project(bodies, WSGIGATE=[(BodyLimit, {"limit": 10}), limited("99/m")])
    client = Client()
    assert client.post("/", b"as sent", "text/plain").content == b"as sent"
    assert client.post("/form", b"a=1", "application/x-www-form-urlencoded").content == b"1"
    assert client.post("/", b"more than ten", "text/plain").status_code == 413


def form(request):
    return HttpResponse(request.POST["a"])


def test_a_body_that_is_counted_as_it_is_read_is_refused(project):
    project({"": lambda request: HttpResponse(request.body)}, WSGIGATE=[(BodyLimit, {"limit": 4})])
    environ = {
        **new_environ("POST"),
        "wsgi.input": io.BytesIO(b"12345678"),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
        "CONTENT_LENGTH": "8",
    }
    server = Server().serve(WSGIHandler(), environ)
    assert server.status[:3] == "413"


def test_the_response_stays_the_object_that_django_made(project):
    def view(request):
        response = HttpResponseRedirect("/elsewhere")
        response.set_cookie("a", "1", httponly=True, samesite="Lax")
        response.set_cookie("b", "2")
        response["Vary"] = "Cookie"
        return response

    project({"": view}, WSGIGATE=[limited(), "wsgigate.RequestId"])
    answer = Client().get("/")
    assert isinstance(answer, HttpResponseRedirect)
    assert answer.url == "/elsewhere"
    assert {name: cookie.value for name, cookie in answer.cookies.items()} == {"a": "1", "b": "2"}
    assert answer.cookies["a"]["httponly"]
    assert answer["X-Request-ID"]
    assert "RateLimit" in answer
    assert "Set-Cookie" not in answer.headers


def test_fields_that_come_several_times_become_one_and_cookies_are_kept(project):
    def adding(app):
        def add(environ, start_response):
            def start(status, headers, exc_info=None):
                more = [("Vary", "Accept"), ("Set-Cookie", "of=middleware; Path=/")]
                return start_response(status, [*headers, *more])

            return app(environ, start)

        return add

    def view(request):
        response = HttpResponse("x", headers={"Vary": "Cookie"})
        response.set_cookie("of", "view")
        return response

    project({"": view}, WSGIGATE=[adding])
    answer = Client().get("/")
    assert answer["Vary"] == "Cookie, Accept"
    assert answer.cookies["of"].value == "middleware"


COOKIES = [
    "a=1; sessionid=evil; Path=/",
    "b=2; Path=/; Secure; Partitioned",
    "c=3; Path=/; Priority=High",
    'd={"x": 1}; Path=/',
    "e=5; Path=/; Expires=Thu Jan 1 2099 00:00:00 GMT",
    "\xe2\x80\x80f[]=\xfc; path=/",
    "=g; Path=/",
    "h=8; Path=/one; HttpOnly",
    "h=9; Path=/two",
]


def test_the_cookies_of_a_service_are_sent_as_it_has_written_them(project):
    """Django's parser drops all of these, or reads several cookies in one."""

    def service(app):
        def respond(environ, start_response):
            start_response("200 OK", [("Set-Cookie", cookie) for cookie in COOKIES])
            return [b"service"]

        return respond

    project({"": hello}, WSGIGATE=[service])
    client = Client()
    answer = client.get("/")
    assert sent_cookies(answer.cookies) == COOKIES
    assert sent_cookies(pickle.loads(pickle.dumps(answer.cookies))) == COOKIES  # by a cache
    assert answer.cookies["h"]["path"] == "/one"
    assert answer.cookies["h"]["httponly"] is True
    assert "sessionid" not in client.cookies
    sent = Server().serve(WSGIHandler(), new_environ())
    assert [value.strip() for name, value in sent.headers if name == "Set-Cookie"] == COOKIES


def sent_cookies(cookies):
    return [cookie.OutputString() for cookie in cookies.values()]


def test_a_cookie_of_django_beside_one_of_a_middleware_can_still_be_changed(project):
    def adding(app):
        def add(environ, start_response):
            def start(status, headers, exc_info=None):
                return start_response(status, [*headers, ("Set-Cookie", "node=1; Path=/")])

            return app(environ, start)

        return add

    def view(request):
        response = HttpResponse("x")
        response.set_cookie("a", "1")
        return response

    project({"": view}, WSGIGATE=[adding])
    answer = Client().get("/")
    answer.cookies["a"]["samesite"] = "Strict"
    assert sent_cookies(answer.cookies) == ["a=1; Path=/; SameSite=Strict", "node=1; Path=/"]


def test_a_stream_is_not_gathered_and_ends_at_its_end(project):
    ended, closed = [], []

    class Lines:
        def __iter__(self):
            return iter([b"1", b"2"])

        def close(self):
            closed.append(True)

    class Ends(Logger):
        def __call__(self, environ, start_response):
            return Ending(self.app(environ, start_response))

    class Ending:
        def __init__(self, body):
            self._body = body

        def __iter__(self):
            return iter(self._body)

        def close(self):
            ended.append(True)

    project({"": lambda request: StreamingHttpResponse(Lines())}, WSGIGATE=[Ends])
    answer = Client().get("/")
    assert (answer.streaming, ended, closed) == (True, [], [])
    assert b"".join(answer) == b"12"
    assert (ended, closed) == ([True], [True])


def test_a_file_passes_as_it_is_and_is_closed(project):
    file = io.BytesIO(b"content")
    project(
        {"": lambda request: FileResponse(file, filename="a.txt")}, WSGIGATE=[limited(), Logger]
    )
    environ = {**new_environ(), "wsgi.file_wrapper": lambda file, size: iter([b"not", b"this"])}
    server = Server().serve(WSGIHandler(), environ)
    assert server.chunks == [b"content"]
    assert ("Content-Length", "7") in server.headers
    assert file.closed


def test_each_response_releases_its_slot(project):
    store = MemoryStore()
    project({"": hello}, WSGIGATE=[(ConcurrencyLimiter, {"limit": 1, "store": store})])
    client = Client()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert list(store.items("")) == []


def test_an_exception_of_a_view_is_handled_by_django(project):
    def missing(request):
        raise Http404

    def broken(request):
        raise LookupError("of the view")

    project({"404": missing, "500": broken}, WSGIGATE=[limited("9/m")])
    assert Client().get("/404").status_code == 404
    with pytest.raises(LookupError, match="of the view"):
        Client().get("/500")
    answer = Client(raise_request_exception=False).get("/500")
    assert (answer.status_code, "RateLimit" in answer) == (500, True)


def test_a_middleware_may_respond_itself_and_call_start_response_late(project):
    def late(app):
        def answer(environ, start_response):
            def body():
                start_response("203 Late", [("X-Late", "yes")])
                yield b"late"

            return body()

        return answer

    project({"": hello}, WSGIGATE=[late])
    answer = Client().get("/")
    assert (answer.status_code, answer["X-Late"], answer.getvalue()) == (203, "yes", b"late")


def test_a_middleware_may_change_the_path(project):
    def moved(app):
        def move(environ, start_response):
            environ["PATH_INFO"] = "/new"
            return app(dict(environ), start_response)

        return move

    project({"new": lambda request: HttpResponse(request.path)}, WSGIGATE=[moved])
    assert Client().get("/old").content == b"/new"


def test_each_handler_counts_anew_without_a_store_of_its_own(project):
    project({"": hello}, WSGIGATE=[("wsgigate.Limiter", {"quota": "1/m", "store": "memory:"})])
    for _ in range(2):
        client = Client()
        assert [client.get("/").status_code for _ in range(2)] == [200, 429]


def test_asgi_raises_an_error_that_explains_it(project):
    project({"": hello}, WSGIGATE=[limited()])
    import asyncio

    with pytest.raises(ImproperlyConfigured, match="is for WSGI; this request came by ASGI"):
        asyncio.run(AsyncClient().get("/"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (None, "WSGIGATE: is required: a list of middlewares"),
        ([], "WSGIGATE: is empty"),
        ({}, "WSGIGATE: is empty"),
        ("wsgigate.Limiter", "WSGIGATE: expected a list of middlewares .*, got str"),
        (["wsgigate.Nothing"], r"WSGIGATE\[0\]: .*Nothing"),
        (["nowhere.Limiter"], r"WSGIGATE\[0\]: No module"),
        ([Logger, 1], r"WSGIGATE\[1\]: expected a callable"),
        ([(Limiter, "5/m")], r"WSGIGATE\[0\]: expected a middleware, or a pair"),
        ([(Limiter, {"quota": "many"})], r"WSGIGATE\[0\]: a quota is written"),
        ([(Limiter, {"qouta": "5/m"})], r"WSGIGATE\[0\]: .*qouta"),
        ([lambda app: None], r"WSGIGATE\[0\]: returned None"),
    ],
)
def test_a_wrong_setting_is_named(project, setting, words):
    project({"": hello}, WSGIGATE=setting)
    with pytest.raises(ImproperlyConfigured, match=words):
        GateMiddleware(lambda request: HttpResponse())


def refusing(**options):
    return [limited("1/m", refuse=render_refusals(**options))]


def test_refusals_are_rendered_by_a_view(project):
    def view(request, problem):
        return HttpResponse(f"<h1>{problem.detail}</h1> {request.path}")

    project({"": hello}, WSGIGATE=refusing(view=view))
    client = Client()
    client.get("/")
    answer = client.get("/")
    assert (answer.status_code, answer["Retry-After"]) == (429, "60")
    assert answer.content.startswith(b"<h1>Too many requests!")


def test_refusals_are_rendered_by_a_template_for_browsers_only(project, tmp_path):
    (tmp_path / "429.html").write_text("<h1>{{ problem.detail }}</h1>")
    templates = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [str(tmp_path)]}
    ]
    project({"": hello}, WSGIGATE=refusing(), TEMPLATES=templates)
    client = Client()
    client.get("/")
    page, document = client.get("/", headers={"Accept": HTML}), client.get("/")
    assert page.content.startswith(b"<h1>Too many requests!")
    assert (page.status_code, page["Content-Type"]) == (429, "text/html; charset=utf-8")
    assert document["Content-Type"] == "application/problem+json"
    project({"": hello}, WSGIGATE=refusing(), TEMPLATES=[])
    client = Client()
    client.get("/")
    assert b"<title>429 Too Many Requests" in client.get("/", headers={"Accept": HTML}).content


def test_the_handlers_of_the_urlconf_render_their_status(project):
    class Urls:
        urlpatterns = (path("", hello),)

        @staticmethod
        def handler403(request, exception):
            return JsonResponse({"own": str(exception)}, status=403)

    project({}, ROOT_URLCONF=Urls)
    answer = render_refusals()(Problem(403, "Not for you."))
    server = Server().serve(answer, new_environ())
    assert (server.status, json.loads(b"".join(server.chunks))) == (
        "403 Forbidden",
        {"own": "Not for you."},
    )


def test_a_request_of_a_factory_passes_too(project):
    project({}, WSGIGATE=[limited("1/m")])
    gate = GateMiddleware(lambda request: HttpResponse("fine"))
    answers = [gate(RequestFactory().get("/")).status_code for _ in range(2)]
    assert answers == [200, 429]
