"""Which app a middleware stands around: two apps of one process share nothing by accident."""

from __future__ import annotations

from hashlib import sha256

__all__ = ["identity"]

_INNER = ("app", "application", "__self__", "__wrapped__", "func")


def identity(app: object) -> str:
    """Return a name for the innermost app that *app* wraps: the same in every worker."""
    seen = {id(app)}
    while True:
        inner = next((found for name in _INNER if _is_app(found := getattr(app, name, None))), None)
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        app = inner
    named = app if hasattr(app, "__qualname__") else type(app)
    parts = (named.__module__, named.__qualname__, getattr(app, "import_name", ""))
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def _is_app(found: object) -> bool:
    return callable(found) and not isinstance(found, type)
