"""The gateway's own endpoints, served alone."""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIApplication

from wsgigate.admin.access import AdminAccess
from wsgigate.admin.api import AdminApi, Group
from wsgigate.http.problem import Refuse, answer_with
from wsgigate.rules.routing import Route

__all__ = ["ADMIN", "VIEWER", "admin_routes", "bearer"]


ADMIN = "k" * 32
VIEWER = "v" * 32


def bearer(token: str = ADMIN) -> dict[str, str]:
    """Return the header fields with a token."""
    return {"Authorization": f"Bearer {token}"}


def admin_routes(
    *groups: Group,
    prefix: str = "",
    token: str | None = ADMIN,
    refuse: Refuse = answer_with,
    **options: Any,
) -> list[Route[WSGIApplication]]:
    """Return the routes of endpoints, which require *token*."""
    access = AdminAccess(token, **options)
    return AdminApi(groups, access=access, prefix=prefix, refuse=refuse).routes()
