"""The app of ``INSTALLED_APPS``: its system checks and management commands."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

__all__ = ["WsgigateConfig"]


class WsgigateConfig(AppConfig):  # type: ignore[misc]
    """``"wsgigate.django"`` in ``INSTALLED_APPS``."""

    name = "wsgigate.django"
    label = "wsgigate"  # "django", the default, would look like a part of Django
    verbose_name = "wsgigate"

    def ready(self) -> None:
        """Register the system checks."""
        from wsgigate.django import checks

        register(checks.check_setting, checks.TAG)
        register(checks.check_middleware, checks.TAG)
        register(checks.check_backends, checks.TAG)
        register(checks.check_proxy, checks.TAG, Tags.security)
        register(checks.check_deployment, checks.TAG, Tags.security, deploy=True)
