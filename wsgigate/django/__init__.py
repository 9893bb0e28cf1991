"""wsgigate inside a Django project; an entry of ``INSTALLED_APPS``.

The names below are imported at their first use (:mod:`wsgigate.lazy`): Django imports this package
before its settings and models are ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgigate import lazy

try:
    import django as _django  # noqa: F401 - a clear error, before any name is used
except ModuleNotFoundError as error:
    if error.name != "django":
        raise
    raise ModuleNotFoundError(
        "wsgigate.django requires Django 5.2 or later: pip install 'wsgigate[django]'",
        name="django",
    ) from None

_SOURCE = lazy.source(globals())

if TYPE_CHECKING or _SOURCE is None:
    from wsgigate.django.middleware import GateMiddleware as GateMiddleware
    from wsgigate.django.middleware import Refused as Refused
    from wsgigate.django.middleware import render_refusals as render_refusals
else:
    __getattr__, __dir__ = lazy.attach(globals(), _SOURCE)
