"""How each middleware that a file can name is made of its options."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate import wsgi
from wsgigate.config.breakers import BreakerOptions, circuit_rules
from wsgigate.config.imports import import_function
from wsgigate.config.options import (
    AuthenticatorOptions,
    BodyLimitOptions,
    ConcurrencyOptions,
    CorsOptions,
    ExemptOptions,
    LimiterOptions,
    LoggerOptions,
    OnlyOptions,
    RequestIdOptions,
)
from wsgigate.config.shaping import FaultOptions, fault_rules
from wsgigate.config.shedders import ShedderOptions, shedding_rules
from wsgigate.config.tables import given
from wsgigate.denylist import DenyList
from wsgigate.limit_keys import key_of
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.cors import Cors
from wsgigate.middleware.faults import Faults
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.shedder import Shedder
from wsgigate.store import Store

__all__ = ["USES", "Surroundings", "Use", "key_named"]

App: TypeAlias = WSGIApplication


class Surroundings(NamedTuple):
    """What a middleware is given besides its options.

    :ivar store: What the gateway's workers share.
    :ivar name: What a limiter or breaker is called that has no name; unique in the gateway.
    :ivar folder: Where relative file names start.
    :ivar deny_list: The tokens that are denied, for those who ask.
    :ivar faults: Whether requests may be spoiled on purpose.
    """

    store: Store
    name: str
    folder: Path
    deny_list: DenyList
    faults: bool = False


Build: TypeAlias = Callable[[App, Any, Surroundings], App]


class Use(NamedTuple):
    """One middleware that comes with the package.

    :ivar options: The dataclass of its options.
    :ivar build: Makes it; raises ValueError when the options do not do.
    """

    options: type[Any]
    build: Build


def key_named(name: str) -> wsgi.Key:
    """Return the key function that a file calls *name*.

    :raises ValueError: There is none; it may be a function that can not be imported.
    """
    try:
        return key_of(name)
    except ValueError:
        found: wsgi.Key = import_function(name)
        return found


def _request_id(app: App, options: RequestIdOptions, around: Surroundings) -> App:
    return RequestId(app, **given(options))


def _logger(app: App, options: LoggerOptions, around: Surroundings) -> App:
    streams = {"stdout": None, "stderr": sys.stderr}
    return Logger(
        app, stream=streams[options.stream or "stdout"], **given(options, without=("stream",))
    )


def _limiter(app: App, options: LimiterOptions, around: Surroundings) -> App:
    arguments = given(options, without=("quota", "key", "only", "exempt"))
    arguments |= _whom(options)
    for key in ("cost", "plan"):
        if _IS_OBJECT.fullmatch(str(arguments.get(key, ""))):
            arguments[key] = _told(key, arguments[key])
    arguments.setdefault("name", around.name)
    return Limiter(app, options.quota, store=around.store, **arguments)


def _concurrency(app: App, options: ConcurrencyOptions, around: Surroundings) -> App:
    arguments = given(options, without=("limit", "key", "only", "exempt"))
    arguments |= _whom(options)
    arguments.setdefault("name", around.name)
    return ConcurrencyLimiter(app, options.limit, store=around.store, **arguments)


def _whom(options: LimiterOptions | ConcurrencyOptions) -> dict[str, Any]:
    """Return who is counted, and who is not, as the arguments of either limiter."""
    arguments: dict[str, Any] = {}
    if options.key is not None:
        names = (options.key,) if isinstance(options.key, str) else options.key
        try:
            arguments["key"] = [key_named(name) for name in names]
        except ValueError as error:
            raise ValueError(f"key: {error}") from None
    if options.only is not None:
        arguments["only"] = _selected("only", options.only)
    if options.exempt is not None:
        arguments["exempt"] = _selected("exempt", options.exempt)
    return arguments


def _selected(key: str, options: ExemptOptions | OnlyOptions) -> dict[str, Any]:
    selected = given(options)
    if "rule" in selected:
        selected["rule"] = _told(key, selected["rule"])
    return selected


_IS_OBJECT = re.compile(r"(?!claim:|header:)[\w.]+:[\w.]+")
_IS_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _told(key: str, name: str) -> Any:
    try:
        return import_function(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _authenticator(app: App, options: AuthenticatorOptions, around: Surroundings) -> App:
    arguments = given(options, without=("secret_file", "public_key_file", "deny_list", "exempt"))
    if options.exempt is not None:
        arguments["exempt"] = _selected("exempt", options.exempt)
    if options.deny_list:
        arguments["deny_list"] = around.deny_list
    elif "on_store_error" in arguments:
        raise ValueError("on_store_error: only together with deny_list = true")
    for kind in ("secret", "public_key"):
        files = getattr(options, f"{kind}_file") or ()
        if files and kind in arguments:
            raise ValueError(f"{kind} and {kind}_file say the same thing; give one of them")
        contents = [
            _content(around.folder / file, f"{kind}_file")
            for file in ((files,) if isinstance(files, str) else files)
        ]
        if contents:
            arguments[kind] = contents
    return Authenticator(app, **arguments)


def _content(file: Path, key: str) -> str:
    try:
        content = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{key}: {file} can not be read: {reason}") from error
    if not content:
        raise ValueError(f"{key}: {file} is empty")
    return content


def _body_limit(app: App, options: BodyLimitOptions, around: Surroundings) -> App:
    return BodyLimit(app, **given(options))


def _breaker(app: App, options: BreakerOptions, around: Surroundings) -> App:
    arguments = given(options, only=("name", "statuses", "enabled"))
    arguments.setdefault("name", around.name)
    return Breaker(app, circuit_rules(options), store=around.store, **arguments)


def _shedder(app: App, options: ShedderOptions, around: Surroundings) -> App:
    return Shedder(app, shedding_rules(options), **given(options, only=("enabled",)))


def _cors(app: App, options: CorsOptions, around: Surroundings) -> App:
    arguments = given(options)
    if "max_age" in arguments:
        arguments["max_age"] = int(arguments["max_age"])
    arguments["origins"] = [
        _told("origins", origin) if _IS_FUNCTION.fullmatch(origin) else origin
        for origin in options.origins
    ]
    return Cors(app, **arguments)


def _faults(app: App, options: FaultOptions, around: Surroundings) -> App:
    arguments = given(options, only=("when", "max_delayed"))
    enabled = options.enabled and around.faults
    made = Faults(app, fault_rules(options), enabled=enabled, **arguments)
    return made if enabled else app


USES: dict[str, Use] = {
    "authenticator": Use(AuthenticatorOptions, _authenticator),
    "body-limit": Use(BodyLimitOptions, _body_limit),
    "breaker": Use(BreakerOptions, _breaker),
    "concurrency-limiter": Use(ConcurrencyOptions, _concurrency),
    "cors": Use(CorsOptions, _cors),
    "faults": Use(FaultOptions, _faults),
    "limiter": Use(LimiterOptions, _limiter),
    "logger": Use(LoggerOptions, _logger),
    "request-id": Use(RequestIdOptions, _request_id),
    "shedder": Use(ShedderOptions, _shedder),
}
"""Every ``use`` there is, the factories of others aside."""
