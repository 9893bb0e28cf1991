"""APIs of other registries for their unmodified clients, and what these APIs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.bearer import Access, Caller
from wsgigate.http.json_app import Endpoint, JsonRequest
from wsgigate.http.problem import Refusal, Refuse
from wsgigate.registry import Registry
from wsgigate.registry.app import RegistryApp
from wsgigate.rules.registry import Invalid, Registered

__all__ = ["CompatApp"]


LARGEST = 64 * 1024
"""The largest body that is read, in bytes. Java clients send much that is not stored."""


class CompatApp(RegistryApp):
    """A WSGI app that offers the registry through the API of another registry.

    A JSON body may have any ``Content-Type``, as many clients send none or a wrong one. This does
    not enable cross-site requests from a browser: they are recognized by their origin, and a token
    is never read from a cookie.

    :param table: The endpoints.
    :param prefixes: The path prefixes; each endpoint exists below each of them.
    """

    content_type = "application/json"
    requires_json_type = False
    ignores_trailing_slash = True

    def __init__(
        self,
        registry: Registry,
        access: Access,
        table: Iterable[Endpoint],
        prefixes: Iterable[str],
        refuse: Refuse,
    ) -> None:
        super().__init__(registry, access, table, prefixes=prefixes, largest=LARGEST, refuse=refuse)

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        """Return the token where this API's clients send it; ``None`` without one."""
        raise NotImplementedError

    def absent(self) -> Refusal:
        return Refusal.of(404, "There is nothing of that name here.")

    def authorize(self, environ: WSGIEnvironment, *, reads: bool) -> WSGIEnvironment:
        """Return the environ with the client's token moved to ``Authorization: Bearer``."""
        token = self.token(environ)
        if token is not None:
            bearer = b"Bearer " + token
            environ = {**environ, "HTTP_AUTHORIZATION": bearer.decode("latin-1")}
        return super().authorize(environ, reads=reads)

    def writer(self, request: JsonRequest, service: str | None = None) -> Caller:
        """Return the caller of a request that changes something.

        :param service: The service that the caller must be allowed to change.
        :raises Refusal: The caller is not allowed to.
        """
        caller = self._access.writer(request.environ)
        if service is not None:
            self._access.check_caller(caller, service)
        return caller

    def register(self, entry: Registered, fields: Mapping[str, str]) -> None:
        """Register *entry*.

        :param fields: The names that this API has for the members that an error may name.
        :raises Invalid: The entry is invalid; the error names the member as this API does.
        """
        try:
            self._registry.register(entry)
        except Invalid as error:
            raise Invalid(fields.get(error.field, error.field), error.why) from error
