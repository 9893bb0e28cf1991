"""Two views: one for everybody, one for those with a token."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path

from wsgigate.http.wsgi import CLAIMS


def home(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "Hello!"})


def me(request: HttpRequest) -> JsonResponse:
    """Answer who the caller is; a WSGI environ key cannot be forged by a request field."""
    claims = request.META.get(CLAIMS)
    if claims is None:
        return JsonResponse({"message": "Access token required!"}, status=401)
    return JsonResponse({"id": claims["sub"], "name": claims.get("name", "")})


urlpatterns = [path("", home), path("me", me)]
