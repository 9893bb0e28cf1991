"""What can go wrong between the gateway and an instance, as exceptions that ``requests`` knows."""

from __future__ import annotations

import requests

__all__ = ["BrokenResponse", "NotConnected", "PoolFull", "SlowResponse", "TlsFailed"]


class NotConnected(requests.ConnectionError):
    """No connection came about, so nothing of the request was sent."""


class TlsFailed(NotConnected, requests.exceptions.SSLError):
    """The TLS handshake failed, so nothing of the request was sent."""


class PoolFull(requests.ConnectionError):
    """The instance has as many connections as it may, and none became free in time."""


class SlowResponse(requests.ReadTimeout):
    """The body comes, but more slowly than it may."""


class BrokenResponse(requests.ConnectionError):
    """What came is not a valid response, or not all of one."""
