"""The client is tested through forwarders, as those of the proxy are."""

from tests.proxy.conftest import forward, own, sessions

__all__ = ["forward", "own", "sessions"]
