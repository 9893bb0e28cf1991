"""Compatibility APIs of the registry, for existing clients of Eureka and Consul."""

from __future__ import annotations
