"""The pages name parts of Django that can be imported in a project only."""

from __future__ import annotations

from tests.support.django_project import configure

configure()
