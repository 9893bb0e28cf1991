"""The command deny: tokens that every worker of a gateway refuses from now on."""

from __future__ import annotations

import argparse
import sys
import time

from wsgigate.cli.failed import failed
from wsgigate.cli.shared_store import shared_store
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.denylist import DenyList
from wsgigate.store import StoreError
from wsgigate.units import parse_duration

__all__ = ["deny"]


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
