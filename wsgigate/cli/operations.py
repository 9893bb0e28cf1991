"""The command deny: tokens that every worker of a gateway refuses from now on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wsgigate.cli.main import failed
from wsgigate.config.build import assemble
from wsgigate.config.build_routes import policy_name, scopes_of
from wsgigate.config.errors import ConfigError, shown
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.tables import suggestion
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch
from wsgigate.store import Store, StoreError
from wsgigate.units import parse_duration

__all__ = ["deny", "maintenance", "shared_store"]


# The store of a gateway, for the commands that write to what its workers share.


@contextmanager
def shared_store(config: Config, path: str) -> Iterator[Store]:
    """Yield the store of the gateway that *config*, of the file *path*, describes.

    :raises ConfigError: The gateway can not be built.
    :raises ValueError: Its workers share nothing.
    """
    if config.store.url == "memory:":
        raise ValueError(f"the store of {path} is each worker's own: no command sees it")
    gateway = assemble(config, path=path).gateway
    try:
        yield gateway.store
    finally:
        gateway.close()


# The command maintenance: what is out of service on purpose, and the switch.


def maintenance(arguments: argparse.Namespace) -> int:
    """Switch what the arguments name in the store of the gateway's file, or tell how it stands."""
    try:
        config = load(arguments.file)
        scope = _scope(arguments, config)
        lasts = None if arguments.lasts is None else parse_duration(arguments.lasts)
        with shared_store(config, arguments.file) as store:
            switch = MaintenanceSwitch(store, name=policy_name(config.gateway.name))
            if arguments.what == "on":
                switch.on(scope, lasts=lasts, message=arguments.message)
            elif arguments.what == "off":
                switch.off(scope)
            _print(switch)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        return failed(f"it may be out of service or not: {error}", 1)
    return 0


def _scope(arguments: argparse.Namespace, config: Config) -> str:
    if config.maintenance is None:
        raise ValueError(f"{arguments.file} has no [maintenance], so nothing can be switched")
    if arguments.what != "on" and (arguments.lasts is not None or arguments.message):
        raise ValueError("--for and --message: only to switch it on")
    scope = GATEWAY
    if arguments.service is not None:
        scope = f"service:{arguments.service}"
    elif arguments.route is not None:
        scope = f"route:{arguments.route}"
    known = scopes_of(config)
    if arguments.what == "on" and scope not in known:
        raise ValueError(f"{shown(scope)} is no scope of this gateway{suggestion(scope, known)}")
    return scope


def _print(switch: MaintenanceSwitch) -> None:
    notices = switch.status()
    for scope, notice in notices.items():
        told = f"{scope}: out of service since {_time(notice.since)}"
        if notice.until is not None:
            told += f" until {_time(notice.until)}"
        print(f"{told}: {notice.message}" if notice.message else told)
    if not notices:
        print("all in service")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def deny(arguments: argparse.Namespace) -> int:
    """Deny what the arguments name in the store of the gateway's file."""
    try:
        config = load(arguments.file)
        if (arguments.jti is not None or arguments.sub is not None) and arguments.last is None:
            raise ValueError("--last: is missing: for how long the last of these tokens is good")
        last = None if arguments.last is None else time.time() + parse_duration(arguments.last)
        with shared_store(config, arguments.file) as store:
            _deny(DenyList(store), arguments, last)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        return failed(f"it may be denied or not: {error}", 1)
    return 0


def _deny(deny_list: DenyList, arguments: argparse.Namespace, last: float | None) -> None:
    if arguments.sub is not None and last is not None:
        deny_list.deny_subject(arguments.sub, time.time(), last)
    elif arguments.jti is not None and last is not None:
        deny_list.deny_jti(arguments.jti, last)
    else:
        deny_list.deny_token(sys.stdin.read(65536).strip(), last)
