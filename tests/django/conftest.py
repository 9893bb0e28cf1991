"""A Django project whose settings a test decides about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import django
import pytest
from django.conf import settings
from django.test import override_settings
from django.urls import path


@pytest.fixture
def project() -> Iterator[Callable[..., None]]:
    """Yield a function that sets up views by path and settings: ``project({"": view})``."""
    if not settings.configured:
        settings.configure(SECRET_KEY="tests only " * 5, ALLOWED_HOSTS=["*"])
        django.setup()
    with ExitStack() as stack:

        def make(views: dict[str, Callable[..., object]], **options: object) -> None:
            urls = tuple(path(route, view) for route, view in views.items())
            options = {
                "ROOT_URLCONF": urls,
                "ALLOWED_HOSTS": ["*"],
                "MIDDLEWARE": ["wsgigate.django.GateMiddleware"],
                **options,
            }
            stack.enter_context(override_settings(**options))

        yield make
