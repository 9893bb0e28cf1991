"""Flask: what an application needs of the gateway inside its own views, settings and tests."""

from __future__ import annotations

try:
    import flask as _flask  # noqa: F401 - the check that comes before every other import
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ModuleNotFoundError(
        "wsgigate.flask requires Flask 3.0 or later: pip install 'wsgigate[flask]'", name="flask"
    ) from None

from wsgigate.flask.refusals import Refused, render_refusals

__all__ = ["Refused", "render_refusals"]
