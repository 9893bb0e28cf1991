"""The commands deny and maintenance: they write to the store that all workers share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wsgigate.admin.operations import switch_audited
from wsgigate.cli.main import failed
from wsgigate.config.build import BuiltGateway, assemble
from wsgigate.config.build_routes import maintenance_scopes, policy_name
from wsgigate.config.errors import ConfigError, shown
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.tables import suggestion
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch
from wsgigate.store import Store, StoreError
from wsgigate.telemetry.audit import audited, command_line
from wsgigate.units import iso_time, parse_duration

__all__ = ["deny", "maintenance", "shared_gateway", "shared_store"]


@contextmanager
def shared_gateway(config: Config, path: str) -> Iterator[BuiltGateway]:
    """Yield the gateway that *config*, read from the file *path*, describes; it is not started.

    :raises ConfigError: The gateway cannot be built.
    :raises ValueError: The store is private to each worker.
    """
    if config.store.url == "memory:":
        raise ValueError(
            f"store.url of {path} is memory:, which is private to each worker; use lmdb: or redis:"
        )
    built = assemble(config, path=path)
    try:
        yield built
    finally:
        built.gateway.close()


@contextmanager
def shared_store(config: Config, path: str) -> Iterator[Store]:
    """Yield the store of :func:`shared_gateway`."""
    with shared_gateway(config, path) as built:
        yield built.gateway.store


def maintenance(arguments: argparse.Namespace) -> int:
    """Switch maintenance mode on or off in the store of the gateway, and print the status."""
    try:
        config = load(arguments.file)
        scope = _scope(arguments, config)
        lasts = None if arguments.lasts is None else parse_duration(arguments.lasts)
        with shared_store(config, arguments.file) as store:
            switch = MaintenanceSwitch(store, name=policy_name(config.gateway.name))
            if arguments.what in ("on", "off"):
                switch_audited(
                    switch,
                    scope,
                    on=arguments.what == "on",
                    lasts=lasts,
                    message=arguments.message or "",
                    by=command_line(),
                )
            _print(switch)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        return failed(f"unknown whether the switch took effect: {error}", 1)
    return 0


def _scope(arguments: argparse.Namespace, config: Config) -> str:
    if config.maintenance is None:
        raise ValueError(f"{arguments.file} has no [maintenance] table")
    if arguments.what != "on" and (arguments.lasts is not None or arguments.message):
        raise ValueError("--for and --message: allowed with on only")
    scope = GATEWAY
    if arguments.service is not None:
        scope = f"service:{arguments.service}"
    elif arguments.route is not None:
        scope = f"route:{arguments.route}"
    known = maintenance_scopes(config)
    if arguments.what == "on" and scope not in known:
        raise ValueError(f"{shown(scope)} is not a scope of this gateway{suggestion(scope, known)}")
    return scope


def _print(switch: MaintenanceSwitch) -> None:
    notices = switch.status()
    for scope, notice in notices.items():
        line = f"{scope}: out of service since {_time(notice.since)}"
        if notice.until is not None:
            line += f" until {_time(notice.until)}"
        print(f"{line}: {notice.message}" if notice.message else line)
    if not notices:
        print("all in service")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def deny(arguments: argparse.Namespace) -> int:
    """Deny the tokens that the arguments name, in the store of the gateway."""
    try:
        config = load(arguments.file)
        if (arguments.jti is not None or arguments.sub is not None) and arguments.last is None:
            raise ValueError(
                "--last is required with --jti and --sub: when the last of these expires, e.g. 1h"
            )
        last = None if arguments.last is None else time.time() + parse_duration(arguments.last)
        with shared_store(config, arguments.file) as store:
            _deny(DenyList(store), arguments, last)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        return failed(f"unknown whether the tokens are denied: {error}", 1)
    return 0


def _deny(deny_list: DenyList, arguments: argparse.Namespace, last: float | None) -> None:
    target = "token"
    if arguments.sub is not None:
        target = f"sub {arguments.sub}"
    elif arguments.jti is not None:
        target = f"jti {arguments.jti}"
    with audited("token.deny", target, by=command_line()) as change:
        if arguments.sub is not None and last is not None:
            until = deny_list.deny_subject(arguments.sub, time.time(), last)
        elif arguments.jti is not None and last is not None:
            until = deny_list.deny_jti(arguments.jti, last)
        else:
            until = deny_list.deny_token(sys.stdin.read(65536).strip(), last)
        change.after = {"until": iso_time(until)}
