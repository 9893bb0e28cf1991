"""The table of what goes to which tier shows what the rule does."""

from __future__ import annotations

import pytest

from tests.docs.pages import table
from wsgigate.rules.balance import InstanceState, available


@pytest.mark.parametrize("row", table("tiers"), ids=" ".join)
def test_requests_are_shared_as_the_table_says(row: list[str]) -> None:
    first, second, *shares = (int(cell.removesuffix(" %")) for cell in row)
    standings = [InstanceState(at < first) for at in range(100)]
    standings += [InstanceState(at < second, tier=1) for at in range(100)]
    found = {level.tier: round(100 * level.share) for level in available(standings)}
    assert [found.get(0, 0), found.get(1, 0)] == shares
