"""After how many requests gunicorn replaces a worker: not every ten seconds of a large registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgigate.servers.gunicorn import settings

REGISTRY = '[registry]\ntoken = "at-least-16-characters"\n'


@pytest.mark.parametrize(("more", "served"), [("", 10_000), (REGISTRY, 1_000_000)])
def test_a_worker_lives_longer_with_heartbeats(more: str, served: int, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[store]\nurl = "lmdb:{tmp_path}/store"\n[admin]\n{more}')
    found = settings(str(file))
    assert (found["max_requests"], found["max_requests_jitter"]) == (served, served // 10)
