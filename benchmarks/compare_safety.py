"""Hold WSGI proxies against the cases of ``wsgigate.testing.proxy``, side by side.

The table in the documentation is what this prints::

    pip install wsgigate WSGIProxy2 django-revproxy
    python benchmarks/compare_safety.py > docs/safety_table.rst

A proxy that is not installed is left out, with a note on stderr.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import groupby
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.discovery import Instance
from wsgigate.http.problem import Problem
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.testing.proxy import CASES, Case, Make

RULES = {
    1: "Users share connections and nothing else",
    2: "A request goes out as it was made, framed in one way",
    3: "Interim responses are not final",
    4: "What is matched is what is forwarded",
    5: "A response arrives as it is and as it comes",
    6: "Nothing is sent that the client did not send",
    7: "What speaks of one connection stays there",
    8: "Clients cannot set the fields in which a proxy describes the client",
    9: "What may have been processed is not sent again",
    10: "What was cut short never looks complete",
}


def wsgigate() -> Make:
    """The forwarder."""

    def make(url: str, **options: Any) -> WSGIApplication:
        return Forwarder(Pool("svc", [Instance(url)]), **options)

    return make


def werkzeug() -> Make:
    """Werkzeug's ``ProxyMiddleware``, as its documentation sets it up."""
    from werkzeug.middleware.http_proxy import ProxyMiddleware

    def make(url: str, *, strip_prefix: str = "") -> WSGIApplication:
        target = {"target": url, "remove_prefix": bool(strip_prefix)}
        proxy = ProxyMiddleware(Problem(404), {strip_prefix or "all": target}, timeout=3)
        if not strip_prefix:  # it has no pattern for every path
            proxy.targets = {"/": proxy.targets.pop("/all/")}
        return proxy

    return make


def wsgiproxy() -> Make:
    """WSGIProxy2's ``HostProxy`` over ``requests``, the client its documentation recommends."""
    from wsgiproxy import HostProxy

    def make(url: str) -> WSGIApplication:
        app: WSGIApplication = HostProxy(url, client="requests", timeout=3)
        return app

    return make


def revproxy() -> Make:
    """django-revproxy's ``ProxyView``, which forwards the client's address if configured to."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import Http404
    from django.urls import re_path

    settings.configure(
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        LOGGING_CONFIG=None,
        MIDDLEWARE=[],
        ROOT_URLCONF=__name__,
        SECRET_KEY="x" * 50,
        REVPROXY={"QUOTE_SPACES_AS_PLUS": False},
    )
    django.setup()
    import revproxy.views
    import urllib3
    from revproxy.views import ProxyView

    revproxy.views.HTTP_POOLS = urllib3.PoolManager(timeout=3)
    current: list[Any] = []

    def view(request: Any, **arguments: Any) -> Any:
        if not current:
            raise Http404
        return current[0](request, **arguments)

    globals()["urlpatterns"] = [
        re_path(r"^(?P<path>.*)$", view),
    ]
    app = get_wsgi_application()

    def make(url: str) -> WSGIApplication:
        proxy = ProxyView.as_view(upstream=url, add_x_forwarded=True)

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            current[:] = [proxy]
            answer: Iterable[bytes] = app(environ, start_response)
            return answer

        return serve

    return make


PROXIES: list[tuple[str, str, Callable[[], Make]]] = [
    ("wsgigate", "wsgigate", wsgigate),
    ("werkzeug ProxyMiddleware", "werkzeug", werkzeug),
    ("WSGIProxy2", "WSGIProxy2", wsgiproxy),
    ("django-revproxy", "django-revproxy", revproxy),
]


def outcome(case: Case, make: Make) -> tuple[str, str]:
    """Return a word for the table, and what happened when it is "no"."""
    try:
        case.check(make)
    except NotImplementedError:
        return "--", ""
    except AssertionError as error:
        return "**no**", str(error)
    return "yes", ""


def main() -> None:
    warnings.simplefilter("ignore")
    columns: list[tuple[str, dict[str, str]]] = []
    for name, package, load in PROXIES:
        try:
            make = load()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found = {}
        for case in CASES:
            found[case.id], why = outcome(case, make)
            if why:
                print(f"{name}: {case.id}: {why}", file=sys.stderr)
        columns.append((f"{name} {version(package)}", found))
    sys.stdout.write("\n".join(table(columns)) + "\n")


def table(columns: list[tuple[str, dict[str, str]]]) -> list[str]:
    """Return the lines of a list-table in reStructuredText."""
    lines = [
        ".. Made by benchmarks/compare_safety.py; do not edit.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        f"   :widths: 40{' 15' * len(columns)}",
        "",
    ]
    _row(lines, ["What is right", *(title for title, _ in columns)])
    for rule, cases in groupby(CASES_BY_RULE, key=lambda case: case.rule):
        _row(lines, [f"*{rule}. {RULES[rule]}*", *[""] * len(columns)])
        for case in cases:
            _row(lines, [case.says, *(found[case.id] for _, found in columns)])
    totals = [
        f"{list(found.values()).count('yes')} of {len(CASES) - list(found.values()).count('--')}"
        for _, found in columns
    ]
    _row(lines, ["**Cases that pass, of those that apply**", *totals])
    return lines


CASES_BY_RULE = sorted(CASES, key=lambda case: case.rule)


def _row(lines: list[str], cells: list[str]) -> None:
    for number, cell in enumerate(cells):
        mark = "   * -" if number == 0 else "     -"
        lines.append(f"{mark} {cell}".rstrip())


if __name__ == "__main__":
    main()
