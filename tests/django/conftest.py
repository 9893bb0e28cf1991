"""A Django project whose settings a test decides about."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.django_project import configure, database, with_views

configure()


@pytest.fixture
def project() -> Iterator[Callable[..., None]]:
    """Yield a function that sets up views by path and settings: ``project({"": view})``."""
    with with_views() as make:

        def made(views: dict[str, Callable[..., object]], **options: object) -> None:
            make(views, **{"MIDDLEWARE": ["wsgigate.django.GateMiddleware"], **options})

        yield made


@pytest.fixture
def db() -> Iterator[None]:
    """Give the test a database, which is empty again after it."""
    with database():
        yield
