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
    from wsgigate.django.decorators import UNSAFE as UNSAFE
    from wsgigate.django.decorators import RequiresMixin as RequiresMixin
    from wsgigate.django.decorators import limit as limit
    from wsgigate.django.decorators import requires as requires
    from wsgigate.django.identity import IdentityMiddleware as IdentityMiddleware
    from wsgigate.django.identity import IdentityRequest as IdentityRequest
    from wsgigate.django.identity import (
        PersistentIdentityMiddleware as PersistentIdentityMiddleware,
    )
    from wsgigate.django.middleware import GateMiddleware as GateMiddleware
    from wsgigate.django.middleware import gateway as gateway
    from wsgigate.django.refusals import Refused as Refused
    from wsgigate.django.refusals import render_refusals as render_refusals
    from wsgigate.django.session import DjangoSession as DjangoSession
    from wsgigate.django.test import force_identity as force_identity
else:
    __getattr__, __dir__ = lazy.attach(globals(), _SOURCE)
