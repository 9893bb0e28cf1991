"""The middlewares of this package as an entry of Django's ``MIDDLEWARE``.

Django's test client bypasses a middleware around ``application`` in ``wsgi.py``, as it does not use
``wsgi.py``. :class:`GateMiddleware` runs the same stack inside Django, where ``Client()``,
``LiveServerTestCase``, ``runserver`` and every WSGI server use it.

The request passes through the stack with the server's ``environ``, which is ``request.META`` in
Django; the innermost app of the stack is Django's next middleware. An unchanged response stays the
same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import LimitedStream, WSGIRequest, get_path_info, get_script_name
from django.http import HttpResponse, StreamingHttpResponse
from django.template import TemplateDoesNotExist, loader
from django.urls import get_resolver
from django.utils.module_loading import import_string

from wsgigate.http.problem import Problem, Refuse, prefers_html
from wsgigate.http.wsgi import ExcInfo, Headers, close_body

__all__ = ["GateMiddleware", "Refused", "render_refusals"]

REQUEST = "wsgigate.django.request"
"""``tuple``: Django's request, and its original ``wsgi.input``."""

RESPONSE = "wsgigate.django.response"
"""Django's response, while it passes through the stack."""

View: TypeAlias = Callable[[Any, Problem], Any]
"""``view(request, problem)`` returns the ``HttpResponse`` of a rejection."""


class GateMiddleware:
    """A Django middleware that runs the stack of the setting ``WSGIGATE``.

    The setting lists middlewares, outermost first, like the file of a gateway. Each entry is the
    dotted path of a class or a function that takes the app, such an object itself, or a pair of one
    and its options::

        MIDDLEWARE = ["wsgigate.django.GateMiddleware", ...]
        WSGIGATE = [
            "wsgigate.RequestId",
            ("wsgigate.Limiter", {"quota": "100 per 15 minutes"}),
        ]

    Each handler of Django, such as that of one ``Client()``, has its own stack. Do not wrap
    ``application`` in ``wsgi.py`` with the same middlewares: each request would pass both.

    It requires WSGI. Under ASGI each request raises ``ImproperlyConfigured``.

    :raises ImproperlyConfigured: The setting is missing, or an entry is invalid; the message names
        the entry.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._stack = _stack(_Inner(get_response))

    def __call__(self, request: Any) -> Any:
        environ = getattr(request, "environ", None)
        if environ is None:
            raise ImproperlyConfigured(
                "wsgigate.django.GateMiddleware is for WSGI; this request came by ASGI. "
                "Serve the project under a WSGI server, or remove the entry from MIDDLEWARE"
            )
        environ[REQUEST] = request, environ["wsgi.input"]
        started = _Started()
        body = self._stack(environ, started)
        try:
            response = _response(body, started, environ.pop(RESPONSE, None))
        except BaseException:
            close_body(body)
            raise
        finally:
            environ.pop(REQUEST, None)  # avoids a reference cycle
        return response


class _Inner:
    """The innermost app of the stack: calls Django's next middleware."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        # separates the counts of projects that share a store
        self.import_name = str(getattr(settings, "SETTINGS_MODULE", "") or settings.ROOT_URLCONF)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = _updated_request(environ)
        response = environ[RESPONSE] = self._get_response(request)
        _rendered(response)
        start_response(f"{response.status_code} {response.reason_phrase}", _headers(response))
        if response.streaming:
            body: Iterable[bytes] = iter(response)
            return body
        return [response.content]


class _Started:
    """The ``start_response`` of the stack; records its arguments."""

    status = ""
    headers: Headers = []  # noqa: RUF012 - replaced, never changed

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def __call__(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        self.status, self.headers = status, list(headers)
        return self.written.append


class _StartedBody:
    """A body of which the first chunks were already read; closes the original body."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._chunks = chain(first, rest)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        body, self._body = self._body, ()
        close_body(body)


def _response(body: Iterable[bytes], started: _Started, inner: Any) -> Any:
    """Return the response of the stack: *inner*, Django's response, if it is unchanged."""
    if isinstance(body, list | tuple) or (inner is not None and not inner.streaming):
        # the whole body is in memory
        data = b"".join(body)
        close_body(body)
        data = b"".join(started.written) + data
        code, reason = _status(started)
        if inner is not None and not inner.streaming and inner.content == data:
            response = inner
            response.status_code, response.reason_phrase = code, reason
        else:
            response = HttpResponse(data, status=code, reason=reason)
            _take_over(inner, response)
        _set_headers(response, started.headers, _headers(inner) if response is inner else None)
        return response
    chunks, first = iter(body), []
    while not started.status:  # an app may call start_response with the first chunk
        try:
            first.append(next(chunks))
        except StopIteration:
            break
    code, reason = _status(started)
    content = _StartedBody(started.written + first, chunks, body)
    if inner is not None and inner.streaming and inner.status_code == code:
        response, before = inner, _headers(inner)
        response.reason_phrase = reason
        response.streaming_content = content
    else:
        response, before = StreamingHttpResponse(content, status=code, reason=reason), None
        _take_over(inner, response)
    _set_headers(response, started.headers, before)
    return response


def _status(started: _Started) -> tuple[int, str]:
    code, _, reason = started.status.partition(" ")
    if not code.isdecimal():
        raise AssertionError("the stack returned a body without calling start_response")
    return int(code), reason


def _take_over(inner: Any, response: Any) -> None:
    """Let *response* close the resources of the replaced response *inner*."""
    if inner is not None:
        response._resource_closers.extend(inner._resource_closers)


def _headers(response: Any) -> Headers:
    return [
        *((str(name), str(value)) for name, value in response.items()),
        *(("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()),
    ]


def _set_headers(response: Any, headers: Headers, before: Headers | None) -> None:
    """Set the fields of *response*; *before* are its present ones, None for a new response."""
    if headers == before:
        return
    for name in list(response.headers):
        del response.headers[name]
    cookies = [value for name, value in headers if name.lower() == "set-cookie"]
    if before is None or cookies != [value for name, value in before if name == "Set-Cookie"]:
        response.cookies.clear()
        for cookie in cookies:
            response.cookies.load(cookie)
    for name, value in headers:
        if name.lower() == "set-cookie":
            continue
        # Django allows one field per name; a joined list is equivalent (RFC 9110 section 5.3)
        response.headers[name] = f"{response.headers[name]}, {value}" if name in response else value


def _rendered(response: Any) -> None:
    if not getattr(response, "is_rendered", True):
        response.render()


def _updated_request(environ: WSGIEnvironment) -> Any:
    """Return Django's request, updated from *environ*, which the middlewares may have changed."""
    request, body = environ[REQUEST]
    if request.environ is not environ:
        request.environ = request.META = environ
    if environ["wsgi.input"] is not body and not hasattr(request, "_body"):
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = 0
        request._stream = LimitedStream(environ["wsgi.input"], length)
    method = environ["REQUEST_METHOD"].upper()
    path_info, script_name = get_path_info(environ) or "/", get_script_name(environ)
    if (request.method, request.path_info) != (method, path_info):
        request.method, request.path_info = method, path_info
        request.path = f"{script_name.rstrip('/')}/{path_info.replace('/', '', 1)}"
    return request


def _stack(app: WSGIApplication) -> WSGIApplication:
    entries = getattr(settings, "WSGIGATE", None)
    if not isinstance(entries, list | tuple) or not entries:
        raise ImproperlyConfigured(
            "WSGIGATE is required: the list of middlewares, outermost first, such as "
            '[("wsgigate.Limiter", {"quota": "100 per 15 minutes"})]'
        )
    for place, entry in reversed(list(enumerate(entries))):
        app = _wrapped(app, entry, f"WSGIGATE[{place}]")
    return app


def _wrapped(app: WSGIApplication, entry: Any, where: str) -> WSGIApplication:
    options: Any = {}
    made = entry
    if isinstance(entry, list | tuple):
        if len(entry) != 2 or not isinstance(entry[1], dict):
            raise ImproperlyConfigured(
                f"{where} is a middleware, or a pair of one and its options, not {entry!r}"
            )
        made, options = entry
    if isinstance(made, str):
        try:
            made = import_string(made)
        except ImportError as error:
            raise ImproperlyConfigured(f"{where}: {error}") from error
    if not callable(made):
        raise ImproperlyConfigured(f"{where} is not a callable that takes the app: {made!r}")
    try:
        wrapped: Any = made(app, **options)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"{where}: {error}") from error
    if not callable(wrapped):
        raise ImproperlyConfigured(f"{where} returned {wrapped!r}, which is not a WSGI app")
    return wrapped  # type: ignore[no-any-return]


class Refused(Exception):
    """The *exception* argument of the URLconf's error handlers for a rejected request.

    :ivar problem: The problem document of the rejection.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem.document()["detail"]))
        self.problem = problem


def render_refusals(view: View | None = None) -> Refuse:
    """Return a *refuse* callback that renders the rejections of a middleware by the project.

    Without *view*, a ``handler400``, ``handler403``, ``handler404`` or ``handler500`` of the
    URLconf returns the response of its status; otherwise a client that prefers HTML receives the
    template ``STATUS.html``, such as ``429.html``, with the members of the document as ``problem``.
    Without either, the response is the problem document. The status is never a success, and fields
    such as ``Retry-After`` are added unless the response sets them.

    :param view: ``view(request, problem)`` that returns the ``HttpResponse`` of each rejection.
    :returns: The *refuse* argument of the middlewares.
    """

    def refuse(problem: Problem) -> WSGIApplication:
        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            request = environ[REQUEST][0] if REQUEST in environ else WSGIRequest(environ)
            response = _of_view(request, problem) if view is None else view(request, problem)
            if response is None:
                return problem(environ, start_response)
            _rendered(response)
            if response.status_code < 300:
                response.status_code = problem.status
            for name, value in problem.headers:
                if name not in response:
                    response[name] = value
            content = response.content
            response["Content-Length"] = str(len(content))
            start_response(f"{response.status_code} {response.reason_phrase}", _headers(response))
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

        return answer

    return refuse


def _of_view(request: Any, problem: Problem) -> Any:
    """Return the response of the project's error handler or template, None without one."""
    status = problem.status
    if status in (400, 403, 404, 500):
        handler = get_resolver().resolve_error_handler(status)
        if getattr(handler, "__module__", "") != "django.views.defaults":
            return handler(request) if status == 500 else handler(request, Refused(problem))
    accept = request.META.get("HTTP_ACCEPT", "")
    if "html" not in accept or not prefers_html(accept):
        return None
    try:
        content = loader.render_to_string(
            f"{status}.html", {"problem": problem.document()}, request
        )
    except TemplateDoesNotExist:
        return None
    return HttpResponse(content, status=status)
