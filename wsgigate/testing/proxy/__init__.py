"""What a WSGI proxy must not do, as cases that any of them can be held against.

Each case is one proxy in front of one backend on a real socket: what the client sends, what the
backend answers, and what must then be true at both ends. A proxy is anything that ``make(url)``
returns a WSGI app of::

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_my_proxy_is_safe(case: Case) -> None:
        case.check(make)

where a case passes by not raising. What the client sends arrives as the strictest of servers hand
it on, so that what goes wrong is the proxy's.
"""

from __future__ import annotations

from wsgigate.testing.proxy import requests, responses
from wsgigate.testing.proxy.case import Answer, Case, Exchange, Make

__all__ = ["Answer", "CASES", "Case", "Exchange", "Make", "check_proxy"]


CASES: tuple[Case, ...] = (
    *requests.CASES,
    *responses.CASES,
)
"""All cases, by the rule they are about."""


def check_proxy(make: Make) -> None:
    """Check a proxy by all the cases.

    :param make: Returns a proxy, a WSGI app, in front of the backend at a URL; called once or more
        for each case. Some cases give it options: ``strip_prefix``, what to take off the front of
        the path, and ``identity``, names of fields and of the claims they tell, as the forwarder
        has them. These are left out where it takes no such option or raises NotImplementedError.
    :raises AssertionError: Some cases fail; says which, and what happened.
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
