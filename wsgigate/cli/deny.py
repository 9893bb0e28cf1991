"""The command deny: tokens that every worker of a gateway refuses from now on."""

from __future__ import annotations

import argparse
import sys
import time

from wsgigate.config.build import assemble
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
        if config.store.url == "memory:":
            raise ValueError(
                f"the store of {arguments.file} is each worker's own: no command sees it"
            )
        if (arguments.jti is not None or arguments.sub is not None) and arguments.last is None:
            raise ValueError("--last: is missing: for how long the last of these tokens is good")
        last = None if arguments.last is None else time.time() + parse_duration(arguments.last)
        gateway = assemble(config, path=arguments.file).gateway
        try:
            _deny(DenyList(gateway.store), arguments, last)
        finally:
            gateway.close()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"wsgigate: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"wsgigate: it may be denied or not: {error}", file=sys.stderr)
        return 1
    return 0


def _deny(deny_list: DenyList, arguments: argparse.Namespace, last: float | None) -> None:
    if arguments.sub is not None and last is not None:
        deny_list.deny_subject(arguments.sub, time.time(), last)
    elif arguments.jti is not None and last is not None:
        deny_list.deny_jti(arguments.jti, last)
    else:
        deny_list.deny_token(sys.stdin.read(65536).strip(), last)
