"""Adapters to the WSGI servers that run a gateway: gunicorn and granian."""

from __future__ import annotations
