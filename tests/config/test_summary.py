"""The line of a start says what runs, from which file, and under which server."""

from __future__ import annotations

import re
from pathlib import Path

from wsgigate import __version__
from wsgigate.config.load import load
from wsgigate.config.summary import start_line

FILE = """
store.url = "redis://user:s3cret@redis.internal/0"
[gateway]
name = "edge"
[admin]
token = "s3cret-s3cret-s3cret-s3cret-s3cret"
[services.orders]
instances = ["http://10.0.0.1:80", "http://10.0.0.2:80"]
[[middleware]]
use = "logger"
[[routes]]
path = "/orders"
service = "orders"
"""


def test_a_start(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    line = start_line(load(str(path)), str(path), server="gunicorn 27.0.0", workers=4)
    expected = (
        rf"wsgigate {re.escape(__version__)} starts: gateway edge 0\.0\.0, file {path} "
        r"\(hash [0-9a-f]+\), store redis, 1 route, 1 service with 2 instances, "
        r"middlewares logger, gunicorn 27\.0\.0 with 4 workers, Python 3\.\S+, "
        r"(not )?compiled, metrics on"
    )
    assert re.fullmatch(expected, line)
    assert "s3cret" not in line
