"""The Django project of the tests: a process has only one, so they share it.

Its database is SQLite in memory, made once in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import django
from django.conf import settings
from django.test import override_settings
from django.urls import path

__all__ = ["configure", "database", "with_views"]

APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "wsgigate.django",
]


def configure() -> None:
    """Set Django up in this process."""
    if not settings.configured:
        settings.configure(
            SECRET_KEY="tests only " * 5,
            ALLOWED_HOSTS=["*"],
            INSTALLED_APPS=APPS,
            ROOT_URLCONF=(),
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
            USE_TZ=True,
        )
        django.setup()


@cache
def _made_database() -> None:
    from django.db import connection

    connection.creation.create_test_db(verbosity=0, autoclobber=True)


@contextmanager
def database() -> Iterator[None]:
    """Give the block an empty database with the tables of Django's apps."""
    from django.db import transaction

    configure()
    _made_database()
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@contextmanager
def with_views() -> Iterator[Callable[..., None]]:
    """Yield a function that sets up views by path and settings: ``project({"": view})``."""
    configure()
    with ExitStack() as stack:

        def make(views: dict[str, Callable[..., object]], **options: object) -> None:
            urls = tuple(path(route, view) for route, view in views.items())
            stack.enter_context(
                override_settings(**{"ROOT_URLCONF": urls, "ALLOWED_HOSTS": ["*"], **options})
            )

        yield make
