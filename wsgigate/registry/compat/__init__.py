"""The registry in other registries' words: doors for clients that are there already."""

from __future__ import annotations
