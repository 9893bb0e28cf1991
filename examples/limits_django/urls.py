"""Views without any code for rate limits."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path


def home(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "Hello!"})


def login(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "Welcome!"})


def search(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"found": []})


urlpatterns = [path("", home), path("login", login), path("search", search)]
