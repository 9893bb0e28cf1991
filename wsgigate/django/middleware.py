"""The setting ``WSGIGATE`` as an entry of Django's ``MIDDLEWARE``, and around its application.

Django's test client bypasses a middleware around ``application`` in ``wsgi.py``, as it does not use
``wsgi.py``. :class:`GateMiddleware` runs the same stack inside Django, where ``Client()``,
``LiveServerTestCase``, ``runserver`` and every WSGI server use it. :func:`gateway` runs it around
Django, where a forwarded request costs nothing of Django, and a WebSocket can pass. With both, a
request passes the stack once.

The request passes through the stack with the server's ``environ``, which is ``request.META`` in
Django; the innermost app of the stack is Django's next middleware. An unchanged response stays the
same object.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from http.cookies import Morsel
from itertools import chain
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import LimitedStream, get_path_info, get_script_name
from django.http import HttpResponse, StreamingHttpResponse

from wsgigate.django.settings import project, stack
from wsgigate.gateway import Gateway
from wsgigate.http.wsgi import ExcInfo, Headers, close_body
from wsgigate.runtime import fork

__all__ = [
    "REQUEST",
    "GateMiddleware",
    "environ_of",
    "gateway",
    "headers_of",
    "rendered",
    "set_fields",
]

REQUEST = "wsgigate.django.request"
"""``tuple``: Django's request, and its original ``wsgi.input``."""

_GET_RESPONSE = "wsgigate.django.get_response"
"""Django's next middleware."""

_PASSED = "wsgigate.django.passed"
"""Set when a request has passed the stack around Django."""

RESPONSE = "wsgigate.django.response"
"""Django's response, while it passes through the stack."""


class GateMiddleware:
    """A Django middleware that runs the stack of the setting ``WSGIGATE``.

    The setting is a list of middlewares, outermost first, or a dict with that list and the services
    and routes of a gateway. Each entry is the dotted path of a class or a function that takes the
    app, such an object itself, or a pair of one and its options::

        MIDDLEWARE = ["wsgigate.django.GateMiddleware", ...]
        WSGIGATE = {
            "MIDDLEWARE": [
                "wsgigate.RequestId",
                ("wsgigate.Limiter", {"quota": "100 per 15 minutes"}),
            ],
            "SERVICES": {"orders": {"instances": ["http://127.0.0.1:3001"]}},
            "ROUTES": [{"path": "/api/orders", "service": "orders"}],
        }

    Each handler of Django, such as that of one ``Client()``, has its own stack. A request that has
    passed the stack of :func:`gateway` in ``wsgi.py`` does not pass it again.

    It requires WSGI. Under ASGI each request raises ``ImproperlyConfigured``.

    :raises ImproperlyConfigured: The setting is missing or invalid; the message has all errors.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        _close_unused()
        self._stack, built = stack(_Inner())
        if built is not None:
            _built.append((weakref.ref(self), built))

    def __call__(self, request: Any) -> Any:
        environ = environ_of(request, "wsgigate.django.GateMiddleware")
        if _PASSED in environ:
            return self._get_response(request)
        environ[REQUEST] = request, environ["wsgi.input"]
        environ[_GET_RESPONSE] = self._get_response
        started = _Started()
        try:
            body = self._stack(environ, started)
            try:
                return _response(body, started, environ.pop(RESPONSE, None))
            except BaseException:
                close_body(body)
                raise
        finally:
            environ.pop(REQUEST, None)  # avoids a reference cycle
            environ.pop(_GET_RESPONSE, None)


def environ_of(request: Any, name: str) -> WSGIEnvironment:
    """Return the WSGI environment of Django's *request*.

    :param name: What requires it, for the error.
    :raises ImproperlyConfigured: The request came by ASGI.
    """
    environ: WSGIEnvironment | None = getattr(request, "environ", None)
    if environ is None:
        raise ImproperlyConfigured(
            f"{name} is for WSGI; this request came by ASGI. "
            "Serve the project under a WSGI server, or remove the entry from MIDDLEWARE"
        )
    if "HTTP_HOST" not in environ and fork.tested():
        # Django's test client sends no Host, which HTTP/1.1 requires
        environ["HTTP_HOST"] = _test_host(environ)
    return environ


def _test_host(environ: WSGIEnvironment) -> str:
    name, port = environ["SERVER_NAME"], environ["SERVER_PORT"]
    usual = "443" if environ["wsgi.url_scheme"] == "https" else "80"
    return name if port == usual else f"{name}:{port}"


def gateway(application: WSGIApplication) -> WSGIApplication:
    """Return Django's application in the stack of the setting ``WSGIGATE``, for ``wsgi.py``::

        application = wsgigate.django.gateway(get_wsgi_application())

    Requests that a route of the setting matches go to its service, all others to Django.

    :param application: What ``get_wsgi_application()`` returns.
    :raises ImproperlyConfigured: The setting is missing or invalid; the message has all errors.
    """
    return stack(_Outer(application)).app


_built: list[tuple[weakref.ref[GateMiddleware], Gateway]] = []
"""The gateways inside of Django in this process, each with the middleware that uses it."""


def _close_unused() -> None:
    """Close the gateways of handlers that are gone: each ``Client()`` of a test has its own."""
    for pair in list(_built):
        middleware, built = pair
        if middleware() is None:
            _built.remove(pair)
            built.close()


class _Outer:
    """The innermost app of the stack around Django: marks the requests that have passed it."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[_PASSED] = True
        return self.application(environ, start_response)


class _Inner:
    """The innermost app of the stack: calls Django's next middleware.

    It finds that in ``environ``: a reference would keep the handler alive for as long as a thread
    of the gateway runs.
    """

    def __init__(self) -> None:
        self.import_name = project()  # separates the counts of projects that share a store

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = _updated_request(environ)
        response = environ[RESPONSE] = environ[_GET_RESPONSE](request)
        rendered(response)
        start_response(f"{response.status_code} {response.reason_phrase}", headers_of(response))
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
        set_fields(response, started.headers, headers_of(inner) if response is inner else None)
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
        response, before = inner, headers_of(inner)
        response.reason_phrase = reason
        response.streaming_content = content
    else:
        response, before = StreamingHttpResponse(content, status=code, reason=reason), None
        _take_over(inner, response)
    set_fields(response, started.headers, before)
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


def headers_of(response: Any) -> Headers:
    """Return the fields of Django's *response*, with its cookies."""
    return [
        *((str(name), str(value)) for name, value in response.items()),
        *(("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()),
    ]


def set_fields(response: Any, headers: Headers, before: Headers | None = None) -> None:
    """Set the fields of Django's *response*.

    :param before: Its present fields; None for a new response.
    """
    if headers == before:
        return
    for name in list(response.headers):
        del response.headers[name]
    cookies = [value for name, value in headers if name.lower() == "set-cookie"]
    if before is None or cookies != [value for name, value in before if name == "Set-Cookie"]:
        _set_cookies(response.cookies, cookies)
    for name, value in headers:
        if name.lower() == "set-cookie":
            continue
        # Django allows one field per name; a joined list is equivalent (RFC 9110 section 5.3)
        response.headers[name] = f"{response.headers[name]}, {value}" if name in response else value


class _SentCookie(Morsel[str]):
    """A cookie that Django sends as a service or a middleware has written it.

    ``SimpleCookie.load()`` reads ``a=1; b=2`` as two cookies, though for a browser it is one: a
    service could set a cookie that its name hides from a guard. And it drops a cookie with an
    attribute or a character that it does not know.
    """

    key = value = coded_value = ""  # properties of the base class, which do not allow every name

    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field
        pair, *attributes = field.split(";")
        name, _, value = pair.partition("=")
        self.key, self.value = name.strip(), value.strip()
        self.coded_value = self.value
        for each in attributes:  # for Django's test client
            name, _, value = each.partition("=")
            if self.isReservedKey(name.strip()):
                dict.__setitem__(self, name.strip().lower(), value.strip() or True)

    def OutputString(self, attrs: object = None) -> str:
        """Return the field's value."""
        return self._field

    def __reduce__(self) -> Any:  # a cache of Django pickles responses
        return type(self), (self._field,)


def _set_cookies(cookies: Any, fields: list[str]) -> None:
    """Set Django's *cookies* to *fields*; those that are in it already stay as they are."""
    before = {cookie.OutputString(): cookie for cookie in cookies.values()}
    cookies.clear()
    for field in fields:
        cookie = before.get(field) or _SentCookie(field)
        scope = cookie["domain"], cookie["path"]
        other = cookies.get(cookie.key)
        if other is None or (other["domain"], other["path"]) == scope:
            cookies[cookie.key] = cookie
        else:  # of the same name for another path
            cookies[";".join((cookie.key, *scope))] = cookie


def rendered(response: Any) -> None:
    """Render *response* if it is one of a template that is not rendered yet."""
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
