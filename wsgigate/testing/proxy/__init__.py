"""A safety suite for WSGI proxies: cases of what a proxy must not do.

Each case has one proxy in front of one backend on a real socket: it defines the client's request,
the backend's response, and what must then be true at both ends. A proxy is any WSGI app that
``make(url)`` returns::

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_my_proxy_is_safe(case: Case) -> None:
        case.check(make)

A case passes if it does not raise. The environ is that of the strictest servers, so that every
failure is the proxy's.
"""

from __future__ import annotations

from wsgigate.testing.proxy import requests, responses
from wsgigate.testing.proxy.case import Answer, Case, Make, ProxyUnderTest

__all__ = ["CASES", "Answer", "Case", "Make", "ProxyUnderTest", "check_proxy"]


CASES: tuple[Case, ...] = (
    *requests.CASES,
    *responses.CASES,
)
"""All cases, ordered by rule."""


def check_proxy(make: Make) -> None:
    """Run all cases against a proxy.

    :param make: Returns a proxy, a WSGI app, in front of the backend at a URL; called once or more
        for each case. Some cases pass options: ``strip_prefix``, the prefix to remove from the
        path, and ``identity``, field names and the claims for their values, as the forwarder has
        them. A case is skipped if *make* has no such option or raises NotImplementedError.
    :raises AssertionError: Some cases fail; the message names them and the failures.
    """
    failed = []
    for case in CASES:
        try:
            case.check(make)
        except NotImplementedError:
            continue
        except AssertionError as error:
            failed.append(f"{case.id}: {case.says} {error}")
    if failed:
        raise AssertionError("\n".join([f"{len(failed)} cases fail:", *failed]))
