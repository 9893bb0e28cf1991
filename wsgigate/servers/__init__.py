"""What the servers and frameworks around a gateway need from it."""

from __future__ import annotations
