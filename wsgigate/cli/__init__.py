"""The command line: run a gateway from its file, check the file, and operate the gateway."""

from wsgigate.cli.main import main

__all__ = ["main"]
