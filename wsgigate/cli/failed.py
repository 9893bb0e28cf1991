"""How a command fails: a line on standard error, and its exit code."""

from __future__ import annotations

import sys

from wsgigate.config.errors import ConfigError

__all__ = ["failed"]


def failed(why: Exception | str, code: int = 2) -> int:
    """Tell *why*, and return *code*; what is wrong with a file already names the file."""
    print(why if isinstance(why, ConfigError) else f"wsgigate: {why}", file=sys.stderr)
    return code
