"""Several equivalent registries: the next one is queried when one fails."""

from __future__ import annotations

import threading

import pytest

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Failover, Found, SourceError

A, B = (Instance(f"http://10.0.0.{number}:8000") for number in (1, 2))
NEVER = threading.Event()
DOWN = SourceError("the connection was refused")


class Told:
    """A source that says what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.says: Found | SourceError = DOWN
        self.asked = self.closed = 0

    def find(self, stopping: threading.Event) -> Found:
        self.asked += 1
        if isinstance(self.says, SourceError):
            raise self.says
        return self.says

    def close(self) -> None:
        self.closed += 1


def some(*instances: Instance, certain: bool = True) -> Found:
    return Found(instances, 0.0, certain)


@pytest.mark.parametrize(
    ("says", "found", "asked"),
    [
        ([some(A), some(A, B)], (A,), [1, 0]),  # one is enough; others may know other things
        ([DOWN, some(A)], (A,), [1, 1]),
        ([DOWN, DOWN, some(B)], (B,), [1, 1, 1]),
        ([some(), some(A)], (A,), [1, 1]),  # it was restarted without its memory
        ([some(certain=False), some(A), some(B)], (A,), [1, 1, 0]),
        ([some(A)], (A,), [1]),
    ],
)
def test_registries_are_queried_in_order_until_one_answers(
    says: list[Found | SourceError], found: tuple[Instance, ...], asked: list[int]
) -> None:
    sources = [Told(f"r{number}") for number in range(len(says))]
    for source, word in zip(sources, says, strict=True):
        source.says = word
    assert Failover(sources).find(NEVER).instances == found
    assert [source.asked for source in sources] == asked


@pytest.mark.parametrize(
    ("says", "certain"),
    [
        ([some(), some()], True),
        ([some(), some(certain=False)], False),
        ([some(certain=False), some()], False),
        ([some(), DOWN], False),  # the other one may know better
        ([DOWN, some()], False),
    ],
)
def test_an_empty_list_is_certain_when_all_registries_return_it(
    says: list[Found | SourceError], certain: bool
) -> None:
    sources = [Told(f"r{number}") for number in range(2)]
    for source, word in zip(sources, says, strict=True):
        source.says = word
    found = Failover(sources).find(NEVER)
    assert (found.instances, found.certain) == ((), certain)
    assert found.again_in > 0, "all of them are not asked without a pause"


def test_failover_stays_with_the_registry_that_answered() -> None:
    one, other = sources = [Told("one"), Told("other")]
    several = Failover(sources)
    other.says = some(A)
    several.find(NEVER)
    one.says = some(B)
    for _ in range(3):
        assert several.find(NEVER).instances == (A,)
    assert (one.asked, other.asked) == (1, 4)
    other.says = DOWN
    assert several.find(NEVER).instances == (B,)
    other.says = some(A)
    assert several.find(NEVER).instances == (B,)


def test_a_source_is_reset_before_it_is_queried_after_a_failover() -> None:
    one, other = sources = [Told("one"), Told("other")]
    several = Failover(sources)
    one.says = some(A)
    several.find(NEVER)
    before = other.closed
    one.says, other.says = DOWN, some(A)
    several.find(NEVER)
    assert other.closed > before, "else it would wait for a change of what it said long ago"


def test_when_all_fail_the_error_has_the_reason_of_each() -> None:
    sources = [Told("registry:http://a"), Told("registry:http://b")]
    sources[1].says = SourceError("there was no answer in time")
    with pytest.raises(SourceError) as raised:
        Failover(sources).find(NEVER)
    assert str(raised.value) == (
        "registry:http://a: the connection was refused; "
        "registry:http://b: there was no answer in time"
    )


def test_no_further_registry_is_queried_after_stop() -> None:
    stopping = threading.Event()
    sources = [Told("one"), Told("other")]
    stopping.set()
    with pytest.raises(SourceError):
        Failover(sources).find(stopping)
    assert sources[1].asked == 0


def test_an_empty_list_of_sources_is_rejected() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Failover([])
