"""What the metrics have of a store's operations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.interpreter import run_alone
from tests.support.metrics import Measured
from wsgigate.store import StoreError
from wsgigate.store.meter import measured as recorded

SECONDS, FAILURES = "wsgigate_store_duration_seconds", "wsgigate_store_failures"


class Store:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    @recorded("sweep")
    def each(self) -> int:
        return self._result()

    @recorded("scan", one_in=4)
    def some(self) -> int:
        return self._result()

    def _result(self) -> int:
        if self.error is not None:
            raise self.error
        return 7


LMDB = """
import sys
from wsgigate.store.lmdb import LmdbStore
from wsgigate.telemetry.metrics import PROCESS

PROCESS.record()
store = LmdbStore(sys.argv[1])
for _ in range(32):
    store.update("k", lambda old, now: (b"x", 60.0, None))
    store.get("k")
store.close()
found = PROCESS.totals()["wsgigate_store_duration_seconds"].series
counts = {operation: sum(cells[1:]) for (operation,), cells in found.items()}
assert (counts["update"], counts["get"]) == (2, 2), found
"""
"""In an interpreter of its own: other stores of this process are measured as well."""


def test_each_call_is_timed_or_one_in_so_many(measured: Measured) -> None:
    store = Store()
    assert [store.each() for _ in range(8)] == [store.some() for _ in range(8)] == [7] * 8
    assert measured.series(SECONDS) == {("sweep",): 8.0, ("scan",): 2.0}
    assert not measured.series(FAILURES)


@pytest.mark.parametrize(("error", "failures"), [(StoreError("down"), 3.0), (ValueError(), 0.0)])
def test_each_failure_of_the_store_is_counted(
    error: Exception, failures: float, measured: Measured
) -> None:
    store = Store(error)
    for _ in range(3):
        with pytest.raises(type(error)):
            store.some()
    assert measured.value(FAILURES, operation="scan") == failures


def test_a_store_of_lmdb_is_measured(tmp_path: Path) -> None:
    run_alone(LMDB, str(tmp_path))
