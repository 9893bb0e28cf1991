"""Objects that the file names as ``package.module:name``: other people's middlewares and apps."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from wsgiref.types import WSGIApplication

__all__ = ["import_app", "import_function", "import_object", "made_by"]


def import_object(name: str) -> Any:
    """Return the object that *name*, ``package.module:attribute``, stands for.

    :raises ValueError: The module can not be imported, or has no such attribute; says why.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # whatever a module does when it is imported is its own
        raise ValueError(f"{module_name} can not be imported: {_told(error)}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"{module_name} has no {attribute}") from None
    return found


def import_app(name: str) -> WSGIApplication:
    """Return the WSGI application that *name* stands for.

    :raises ValueError: There is none.
    """
    app: WSGIApplication = import_object(name)
    if not callable(app):
        raise ValueError(f"{name} is not a WSGI application: it can not be called")
    return app


def import_function(name: str) -> Any:
    """Return the function that *name* stands for.

    :raises ValueError: There is none.
    """
    found = import_object(name)
    if not callable(found):
        raise ValueError(f"{name} is not a function: it can not be called")
    return found


def made_by(name: str, app: WSGIApplication, options: dict[str, Any]) -> WSGIApplication:
    """Return what the factory *name* makes of *app* and *options*.

    :raises ValueError: The factory can not be had, fails, or makes nothing that can be called.
    """
    factory = import_app(name)
    try:
        made: WSGIApplication = factory(app, **options)  # type: ignore[call-arg, assignment, arg-type]
    except Exception as error:  # other people's code, any reason
        raise ValueError(f"{name} failed: {_told(error)}") from error
    if not callable(made):
        raise ValueError(f"{name} made no WSGI application, but {type(made).__name__}")
    return made


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
