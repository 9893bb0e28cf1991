"""The pages for those who come from other libraries leave none of their options out."""

from __future__ import annotations

import pytest

from tests.docs.pages import PAGES

_FLASK_LIMITER = """
key_func app default_limits application_limits headers_enabled header_name_mapping strategy
storage_uri storage_options swallow_errors fail_on_first_breach on_breach meta_limits on_meta_breach
in_memory_fallback in_memory_fallback_enabled retry_after key_prefix request_identifier enabled
stack_trace_limit limit_value per_method methods error_message exempt_when override_defaults
deduct_when cost scope shared_limit exempt request_filter current_limit fixed-window moving-window
sliding-window-counter ..._per_method ..._exempt_when ..._deduct_when ..._cost
"""

_DJANGO_RATELIMIT = """
group key rate method block ALL UNSAFE ip get:x post:x field:x header:x-x user user_or_ip
method_decorator is_ratelimited get_usage get_usage_extended Ratelimited handler403
RatelimitMiddleware RATELIMIT_ENABLE RATELIMIT_USE_CACHE RATELIMIT_CACHE_PREFIX
RATELIMIT_HASH_ALGORITHM RATELIMIT_FAIL_OPEN RATELIMIT_IP_META_KEY RATELIMIT_IPV4_MASK
RATELIMIT_IPV6_MASK RATELIMIT_VIEW RATELIMIT_EXCEPTION_CLASS
"""


def rows(page: str) -> str:
    """Return the left column of all tables of *page*."""
    lines = PAGES[page].splitlines()
    return "\n".join(line for line in lines if line.startswith("   * - "))


@pytest.mark.parametrize("option", _FLASK_LIMITER.split())
def test_every_option_of_flask_limiter_has_its_row(option: str) -> None:
    page = "from_flask_limiter.rst"
    assert option in rows(page) or f"``{option}``" in PAGES[page]


@pytest.mark.parametrize("option", _DJANGO_RATELIMIT.split())
def test_every_option_of_django_ratelimit_has_its_row(option: str) -> None:
    assert option in rows("from_django_ratelimit.rst")
