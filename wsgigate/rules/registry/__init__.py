"""The registry, decided: what an entry may be, when its lease is over, and who is let go then."""

from wsgigate.rules.registry.document import parse
from wsgigate.rules.registry.entry import (
    Invalid,
    Registered,
    Status,
    check_host,
    check_id,
    check_service,
)
from wsgigate.rules.registry.lease import (
    LONG_ABSENCE,
    Evictions,
    LeaseRules,
    evictions,
    evictions_among,
    is_preserving,
    round_time,
    short_absence,
    silent_since,
    was_away,
)

__all__ = [
    "LONG_ABSENCE",
    "Evictions",
    "Invalid",
    "LeaseRules",
    "Registered",
    "Status",
    "check_host",
    "check_id",
    "check_service",
    "evictions",
    "evictions_among",
    "is_preserving",
    "parse",
    "round_time",
    "short_absence",
    "silent_since",
    "was_away",
]
