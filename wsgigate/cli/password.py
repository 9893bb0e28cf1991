"""The command password: it makes a line for a file of users."""

from __future__ import annotations

import argparse
import getpass
import sys

from wsgigate.auth.passwords import check_user, hash_password
from wsgigate.cli.main import failed

__all__ = ["password"]


def password(arguments: argparse.Namespace) -> int:
    """Print the line of a user for a file of users."""
    try:
        check_user(arguments.user)
        if sys.stdin.isatty():
            given = getpass.getpass("Password: ")
            if getpass.getpass("Again: ") != given:
                raise ValueError("the two passwords differ")
        else:
            given = sys.stdin.readline(65536).rstrip("\r\n")
        print(f"{arguments.user}:{hash_password(given)}")
    except EOFError:
        return failed("no password was given")
    except ValueError as error:
        return failed(error)
    return 0
