"""The rejections of a middleware, rendered by the error handlers and templates of a project."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.template import TemplateDoesNotExist, loader
from django.urls import get_resolver

from wsgigate.django.middleware import REQUEST, headers_of, rendered
from wsgigate.http.problem import Problem, Refuse, prefers_html

__all__ = ["Refused", "render_refusals"]

View: TypeAlias = Callable[[Any, Problem], Any]
"""``view(request, problem)`` returns the ``HttpResponse`` of a rejection."""


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
            rendered(response)
            if response.status_code < 300:
                response.status_code = problem.status
            for name, value in problem.headers:
                if name not in response:
                    response[name] = value
            content = response.content
            response["Content-Length"] = str(len(content))
            start_response(f"{response.status_code} {response.reason_phrase}", headers_of(response))
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
