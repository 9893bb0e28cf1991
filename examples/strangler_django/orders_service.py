"""The new service: a second Django project in one file, without users and without sessions.

It trusts the fields ``X-User-Id`` and ``X-User-Name``, which the gateway removes from clients and
sets for users who are logged in: only the gateway may be able to reach it.
"""

from __future__ import annotations

import json

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path, re_path

settings.configure(
    SECRET_KEY="another one than that of the site",
    ALLOWED_HOSTS=["127.0.0.1"],  # the gateway sends the instance's own Host
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)

ORDERS: dict[str, list[str]] = {}
"""The products that each user has ordered, by the user's id; a real service has a database."""


def orders(request: HttpRequest) -> JsonResponse:
    """Return the orders of the user, or make one."""
    mine = ORDERS.setdefault(request.headers["X-User-Id"], [])
    if request.method == "POST":
        mine.append(json.loads(request.body)["product"])
    return JsonResponse(
        {
            "answered_by": "the new service",
            "user": request.headers["X-User-Name"],
            "orders": mine,
            "cookies": sorted(request.COOKIES),
        },
        status=201 if request.method == "POST" else 200,
    )


def logout(request: HttpRequest) -> HttpResponse:
    """Clear a session as a project of its own would: here it must not end that of the site."""
    response = HttpResponse("logged out")
    response.delete_cookie("sessionid")
    response.delete_cookie("csrftoken")
    return response


# Both spellings: the site redirects from the first to the second, the gateway forwards both.
urlpatterns = [re_path(r"^api/orders/?$", orders), path("api/orders/logout", logout)]

application = get_wsgi_application()
