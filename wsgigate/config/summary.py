"""The line that a gateway logs when it starts: what runs, from which file, under which server."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.util import find_spec

import wsgigate
from wsgigate.config.masked import config_hash
from wsgigate.config.model import Config

__all__ = ["start_line"]


def start_line(config: Config, path: str, *, server: str, workers: int | None = None) -> str:
    """Return the line of a start.

    :param path: The file that *config* was read from; empty without one.
    :param server: The server and its version.
    :param workers: The number of its worker processes, where it is known.
    """
    instances = sum(len(service.instances) for service in config.services.values())
    uses = Counter(entry.use for entry in config.middlewares())
    module = find_spec("wsgigate.gateway")
    compiled = module is not None and not str(module.origin).endswith(".py")
    parts = [
        f"gateway {config.gateway.name} {config.gateway.version}",
        f"file {path} (hash {config_hash(config) or '-'})" if path else "no file",
        f"store {config.store.url.partition(':')[0]}",
        _counted(len(config.routes), "route"),
        f"{_counted(len(config.services), 'service')} with {_counted(instances, 'instance')}",
        f"middlewares {' '.join(uses) or 'none'}",
        server + ("" if workers is None else f" with {_counted(workers, 'worker')}"),
        f"Python {platform.python_version()}",
        "compiled" if compiled else "not compiled",
        f"metrics {'on' if config.records_metrics else 'off'}",
    ]
    return f"wsgigate {wsgigate.__version__} starts: {', '.join(parts)}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
