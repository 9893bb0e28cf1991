"""What tests of middlewares share: a real Django application out of a few views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from django.urls import path

from tests.support.django_project import configure


@pytest.fixture
def django_app() -> Iterator[Callable[..., WSGIHandler]]:
    """Yield a function that makes a Django application of views by path: ``make({"": view})``.

    Settings are a process's own in Django, so they are only overridden for the test's time.
    """
    configure()
    with ExitStack() as stack:

        def make(views: dict[str, Callable[..., object]], **options: object) -> WSGIHandler:
            urls = tuple(path(route, view) for route, view in views.items())
            stack.enter_context(
                override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], MIDDLEWARE=[], **options)
            )
            return WSGIHandler()

        yield make
