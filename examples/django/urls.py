"""Two views: a public one, and one that requires a token."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path

from wsgigate.http.wsgi import CLAIMS


def home(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "Hello!"})


def me(request: HttpRequest) -> JsonResponse:
    """Return the caller's identity; header fields cannot forge a WSGI environ key."""
    claims = request.META.get(CLAIMS)
    if claims is None:
        return JsonResponse({"message": "Access token required!"}, status=401)
    return JsonResponse({"id": claims["sub"], "name": claims.get("name", "")})


urlpatterns = [path("", home), path("me", me)]
