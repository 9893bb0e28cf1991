"""Namespaces: how apps that use one store without a configuration are distinguished.

A middleware used alone has no file that names its gateway. Yet two apps must never share counts by
accident, and all processes of one app must share them: its workers, those of another port, those
after a restart, those of another machine. So an app is identified by its code, not by its process:

1. The file in which the app is defined: that of a Flask app's ``import_name``, of Django's settings
   module, of the function or the class, else the file that makes the middleware. It is the same in
   every process of the app whatever its arguments, working directory, module name (``__main__`` or
   ``app``) and server are, and two projects whose module is called ``app`` have different files.
2. What distinguishes apps of one file: the global names of the app in its module; without one, the
   function that made it, such as ``create_shop``; and if several still look the same, the order in
   which they were made.

The rule must not depend on the order of requests, a process id, an address or the time: the workers
of one app would then count separately. It is applied at the first use, since a module's global
names are complete by then.

Where the rule is wrong, an explicit namespace replaces it: apps of the same path in several
containers that share one Redis need one, and so do apps that want to share.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import weakref
from collections.abc import Iterator
from hashlib import sha256
from types import FrameType, FunctionType, MethodType
from typing import Any, NamedTuple

__all__ = ["AppNamespace", "Maker", "check_namespace", "innermost", "maker", "relative"]

_INNER = ("app", "application", "__self__", "__wrapped__", "func")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = ("site-packages", "dist-packages")
_STANDARD = tuple(
    os.path.abspath(path) + os.sep
    for name in ("stdlib", "platstdlib")
    if (path := sysconfig.get_path(name))
)
_NAMESPACE = re.compile(r"[\x21-\x2e\x30-\x7e]{1,64}")
_FRAMES, _APPS = 64, 1024


class Maker(NamedTuple):
    """The code that made a middleware: the frames of its caller, the nearest first.

    :ivar file: The file of the nearest frame outside of libraries.
    :ivar frames: File and function of each frame that did not receive the app from its caller: the
        nearest of the app's own file is the function that made it.
    :ivar names: The global names of the nearest frame.
    """

    file: str
    frames: tuple[tuple[str, str], ...]
    names: dict[str, Any]


def check_namespace(namespace: object) -> str | None:
    """Return *namespace* unchanged if it is valid.

    :raises ValueError: It is not ``None`` or 1 to 64 visible ASCII characters without a slash.
    """
    if namespace is None:
        return None
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"namespace is 1 to 64 visible ASCII characters without a slash, not {namespace!r}"
        )
    return namespace


def maker(app: object) -> Maker:
    """Return the code outside of this package that is making a middleware.

    :param app: The innermost app that the middleware is for.
    """
    frames: list[tuple[str, str]] = []
    nearest: tuple[str, dict[str, Any]] | None = None
    fallback: tuple[str, dict[str, Any]] | None = None
    frame = sys._getframe(1)
    while len(frames) < _FRAMES:
        code = frame.f_code
        file = _absolute(code.co_filename)
        if not file.startswith(_PACKAGE) and not code.co_filename.startswith("<frozen"):
            if not _was_given(frame, app):
                frames.append((file, code.co_qualname))
            fallback = fallback or (file, frame.f_globals)
            if nearest is None and not _is_library(file):
                nearest = file, frame.f_globals
        if frame.f_back is None:
            break
        frame = frame.f_back
    file, names = nearest or fallback or (_absolute(sys.argv[0] or "python"), {})
    return Maker(file, tuple(frames), names)


def _was_given(frame: FrameType, app: object) -> bool:
    """Return whether *app* is an argument of the function that runs in *frame*."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    if app is None or not count:
        return False
    values = frame.f_locals
    return any(_leads_to(values.get(name), app) for name in code.co_varnames[:count])


def innermost(app: object) -> object:
    """Return the innermost app that *app* wraps, as far as its attributes show."""
    seen = {id(app)}
    while True:
        inner = next((found for name in _INNER if _is_app(found := getattr(app, name, None))), None)
        if inner is None or id(inner) in seen:
            return app
        seen.add(id(inner))
        app = inner


class AppNamespace:
    """The namespace of one app, or of what several apps of one file share.

    :param app: The innermost app; ``None`` for values that belong to no particular app.
    :param made_by: The code that made the user of the store.
    """

    def __init__(self, app: object, made_by: Maker) -> None:
        self._made_by = made_by
        self._app = app
        if app is not None:
            _remember(app, made_by)

    def folder(self) -> str:
        """Return the owner of the private folder for the app's file."""
        file = _file_and_part(self._app, self._made_by)[0]
        short = "-".join(file.split(os.sep)[-2:])
        return f"{short}\0{file}"

    def prefix(self) -> str:
        """Return the prefix of the app's keys: 16 hexadecimal digits and a slash."""
        if self._app is None:
            return ""
        identity = _identity(self._app, self._made_by)
        turn = 0
        if identity.named:  # a name is unique in its module; a file may be loaded as two modules
            others: Iterator[tuple[object, Maker]] = iter(())
        else:
            others = _remembered()
        for app, made_by in others:
            if app is self._app:
                break
            turn += _identity(app, made_by) == identity
        whole = "\0".join((identity.file, identity.part, identity.called, str(turn)))
        return sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:16] + "/"


# The apps of this process in the order in which they were wrapped, which is that of the code and so
# the same in every process. Apps that were garbage-collected are left out.
_apps: list[tuple[weakref.ref[Any], Maker]] = []


def _remember(app: object, made_by: Maker) -> None:
    if any(known is app for known, _ in _remembered()):
        return
    try:
        reference = weakref.ref(app)
    except TypeError:  # no weak references: apps that look the same share
        return
    _apps[:] = [pair for pair in _apps[-_APPS:] if pair[0]() is not None]
    _apps.append((reference, made_by))


def _remembered() -> Iterator[tuple[object, Maker]]:
    for reference, made_by in list(_apps):
        app = reference()
        if app is not None:
            yield app, made_by


class _AppIdentity(NamedTuple):
    """The identity of an app: its file, its part there, and its names or its maker."""

    file: str
    part: str
    called: str
    named: bool


def _identity(app: object, made_by: Maker) -> _AppIdentity:
    file, part, names = _file_and_part(app, made_by)
    called = sorted(name for name, value in list(names.items()) if _leads_to(value, app))
    if called:
        return _AppIdentity(file, part, " ".join(called), named=True)
    known = [function for where, function in made_by.frames if relative(where) == file]
    known = known or [function for where, function in made_by.frames if where == made_by.file]
    function = known[0] if known else ""
    return _AppIdentity(file, part, "" if function == "<module>" else f"{function}()", named=False)


def _file_and_part(app: object, made_by: Maker) -> tuple[str, str, dict[str, Any]]:
    """Return the file of *app*, the app's part of it, and the global names there."""
    if app is None:
        return relative(made_by.file), "", {}
    imported = getattr(app, "import_name", None)
    if not isinstance(imported, str):
        imported = None
        if type(app).__module__.partition(".")[0] == "django":
            imported = os.environ.get("DJANGO_SETTINGS_MODULE")
    if imported is not None:
        module = sys.modules.get(imported)
        file = getattr(module, "__file__", None)
        if module is not None and isinstance(file, str):
            return relative(_absolute(file)), type(app).__qualname__, vars(module)
        return relative(made_by.file), f"{type(app).__qualname__} {imported}", made_by.names
    if isinstance(app, MethodType):
        app = app.__func__
    if isinstance(app, FunctionType):
        file = _absolute(app.__code__.co_filename)
        return relative(file), app.__qualname__, app.__globals__
    kind = type(app)
    own = getattr(sys.modules.get(kind.__module__), "__file__", None)
    part = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(own, str) and not _is_library(_absolute(own)):
        return relative(_absolute(own)), kind.__qualname__, made_by.names
    return relative(made_by.file), part, made_by.names


def _leads_to(value: object, app: object) -> bool:
    """Return whether the global *value* is *app*, or wraps it."""
    if value is app:
        return True
    # A proxy such as flask.current_app is another app in each request.
    if isinstance(value, type) or type(value).__name__ == "LocalProxy" or not callable(value):
        return False
    try:
        return innermost(value) is app
    except Exception:  # a computed attribute may raise anything
        return False


def _is_app(found: object) -> bool:
    return callable(found) and not isinstance(found, type)


def _absolute(file: str) -> str:
    """Return *file* as an absolute path; links stay, as a deployment may move their targets."""
    try:
        return os.path.abspath(file)
    except OSError:  # the working directory is gone
        return file


def _is_library(file: str) -> bool:
    return any(f"{os.sep}{name}{os.sep}" in file for name in _LIBRARIES) or file.startswith(
        _STANDARD
    )


def relative(file: str) -> str:
    """Return *file*; for an installed one its path in the library, for any version of Python."""
    for name in _LIBRARIES:
        before, found, place = file.rpartition(f"{os.sep}{name}{os.sep}")
        if found and before:
            return f"{name}{os.sep}{place}"
    return file
