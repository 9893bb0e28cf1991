"""The command maintenance: what is out of service on purpose, and the switch."""

from __future__ import annotations

import argparse
import time

from wsgigate.cli.failed import failed
from wsgigate.cli.shared_store import shared_store
from wsgigate.config.ends import scopes_of
from wsgigate.config.errors import ConfigError, shown
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.stack import policy_name
from wsgigate.config.tables import suggestion
from wsgigate.maintenance import MaintenanceSwitch
from wsgigate.rules.maintenance import GATEWAY
from wsgigate.store import StoreError
from wsgigate.units import parse_duration

__all__ = ["maintenance"]


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
