"""The command line: run a gateway from its file, and find out what the file means."""

from wsgigate.cli.main import main

__all__ = ["main"]
