"""The dashboard: a page of static files, which reads the admin API from the browser.

The files are the same for every gateway and hold no data, so they need no token: the page asks for
one, and the admin API decides what it may show. The page must not become a way around that:

- Its policy (``Content-Security-Policy``) lets it load and ask its own origin only, run no inline
  script, and be shown in no frame of another page, so that no click can be stolen.
- Trusted types forbid the page to make markup of text: a hostile name of a service stays text.
- All URLs in it are relative, so that it works below any prefix and any mount.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from wsgigate.http.json_app import Endpoint, JsonRequest, JsonResponse
from wsgigate.http.problem import Problem

__all__ = ["POLICY", "TABLE"]

FOLDER = Path(__file__).parent / "static"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

FIELDS = (
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
)


class _File(NamedTuple):
    content: bytes
    tag: str
    content_type: str


@cache
def _files() -> dict[str, _File]:
    """Return the files by name; read once in a process, at the first request for one of them."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        content_type = TYPES.get(path.suffix)
        if content_type is not None:
            content = path.read_bytes()
            tag = f'"{sha256(content).hexdigest()[:32]}"'
            found[path.name] = _File(content, tag, content_type)
    return found


def page(request: JsonRequest) -> object:
    """Return the page."""
    return static(request, "index.html")


def static(request: JsonRequest, name: str) -> object:
    """Return a file of the page, or 304 if the client has it.

    A browser asks each time whether its copy is current, so that a page never runs with the
    scripts of another release.
    """
    file = _files().get(name)
    if file is None:
        return Problem(404, "The dashboard has no such file.")
    fields = (*FIELDS, ("ETag", file.tag))
    if request.has_tag(file.tag):
        return JsonResponse(status=304, headers=fields, cache="no-cache")
    return JsonResponse(
        file.content, headers=fields, cache="no-cache", content_type=file.content_type
    )


def moved(request: JsonRequest) -> object:
    """Return the redirect to the page, whose relative URLs need the slash at its end."""
    name = request.environ.get("PATH_INFO", "").rpartition("/")[2]
    return JsonResponse(b"", 308, (("Location", f"{name}/"),), cache="no-cache")


TABLE = (
    Endpoint("GET /", page, "Dashboard", listed=False),
    Endpoint("GET /static/{name}", static, "Files of the dashboard", listed=False),
)
