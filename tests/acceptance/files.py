"""Parts of gateway files that several tests serve."""

from __future__ import annotations

__all__ = ["LOGGED_SERVICE", "SERVICE"]

LOGGED_SERVICE = """
[gateway.identity]
X-User-Id = "sub"
[store]
url = "memory:"
[[middleware]]
use = "logger"
format = "json"
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/svc"
service = "svc"
strip_prefix = true
"""
"""A service below ``/svc``, an identity field, and an access log; it begins in ``[gateway]``."""

SERVICE = """
[gateway]
name = "test"
threads = 4
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/"
service = "svc"
"""
"""A gateway for one service."""
