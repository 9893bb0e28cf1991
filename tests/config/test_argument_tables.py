"""Tables whose keys are derived from the signature of a class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from wsgigate.config.errors import Errors
from wsgigate.config.tables import REQUIRED, ArgumentTable, Table, TableKey, argument, argument_keys
from wsgigate.config.types import Text
from wsgigate.rules.arguments import (
    Bytes,
    Count,
    Fraction,
    OneOf,
    Pattern,
    Range,
    Seconds,
    Trait,
    types_of,
)


@dataclass(frozen=True)
class Rules:
    """Rules of a test.

    :param window: How long the window is, in seconds.
    :param failures: Failures that open it; ``None`` disables the rule.
    """

    window: Seconds = 10.0
    failures: Annotated[int | None, Trait.ZERO_IS_NONE] = 5


class Example:
    """A class with an argument of each kind.

    The second paragraph is not part of the description.

    :param app: The application.
    :param mode: How it works: ``"on"`` or ``"off"``, as for a :class:`~wsgigate.Limiter`.
    :param size: The size of *mode*,
        in bytes. None is for code only.
    """

    def __init__(
        self,
        app: Callable[[], None],
        rules: Rules | None = None,
        *,
        mode: Literal["on", "off"],
        size: Bytes = 1024,
        count: Count = 1,
        share: Fraction | None = None,
        name: Annotated[str, Pattern("[a-z]+", "a word")] = "a",
        words: Annotated[Collection[Annotated[str, OneOf(("x", "y"))]], Range(1)] = ("x",),
        either: str | Sequence[str] = (),
        flagged: bool | str = False,
        delay: Seconds | Annotated[str, Pattern("p[0-9]+", "a percentile")] = "p95",
        whole: Annotated[int, Trait.SECONDS, Range(0)] = 60,
        fields: Mapping[str, str] | None = None,
        any_value: str | int | float | bool = "",
        clock: Callable[[], float] = float,
    ) -> None:
        self.arguments = locals()


def expected(make: Callable[..., Any]) -> dict[str, str]:
    return {name: key.kind.expected for name, key in argument_keys(make).items()}


def test_each_type_of_an_argument_is_a_kind_of_value() -> None:
    assert expected(Example) == {
        "window": 'a duration such as "30s"',
        "failures": "a whole number, at least 0",
        "mode": '"on" or "off"',
        "size": 'a size such as "64KiB"',
        "count": "a whole number, at least 1",
        "share": "a number from 0 to 1",
        "name": "a word",
        "words": "a list with at least one item",
        "either": "a list, or text",
        "flagged": "true or false, or text",
        "delay": 'a percentile, or a duration such as "30s"',
        "whole": 'a duration such as "30s"',
        "fields": "a table",
        "any_value": "text, a number, true or false",
    }


def test_functions_are_no_keys_of_a_file() -> None:
    assert {"app", "clock"}.isdisjoint(argument_keys(Example))


def test_the_default_is_that_of_the_signature() -> None:
    keys = argument_keys(Example)
    assert keys["mode"].default is REQUIRED
    assert keys["words"].default == ("x",)
    assert keys["window"].default == 10.0


def test_the_description_is_the_param_line_without_markup_and_units() -> None:
    keys = argument_keys(Example)
    assert keys["mode"].doc == 'How it works: "on" or "off", as for a Limiter.'
    assert keys["size"].doc == "The size of mode."
    assert keys["window"].doc == "How long the window is."
    assert keys["failures"].doc == "Failures that open it; 0 disables the rule."
    assert ArgumentTable(Example).doc == "A class with an argument of each kind."


def test_a_type_that_a_file_cannot_choose_between_is_an_error() -> None:
    def make(value: int | Literal["a"]) -> None: ...

    with pytest.raises(TypeError, match=r"'a whole number', '\"a\"'"):
        argument_keys(make)


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[Bytes, Range(1)],
        Annotated[Seconds, Range(1)],
        Annotated[list[str], Range(1, 9)],
        Annotated[Collection[str] | None, Range(2)],
        Annotated[str, Range(1)],
    ],
)
def test_a_range_that_a_file_cannot_check_is_an_error(hint: Any) -> None:
    def make(value: Any) -> None: ...

    make.__annotations__["value"] = hint
    with pytest.raises(TypeError, match=r"^value of .*: let the constructor check it"):
        argument_keys(make)


class Lost:
    def __init__(
        self,
        *,
        size: Unimported = 1,  # type: ignore[name-defined]  # noqa: F821
        clock: Callable[[], float] = float,
    ) -> None: ...


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("sice", "speed cannot be a key: Lost has no argument sice"),
        ("size", "speed cannot be a key: Lost takes size as typing.Any, which a name that"),
        ("clock", "speed cannot be a key: Lost takes clock as "),
    ],
)
def test_a_key_of_an_argument_that_a_file_cannot_give_is_an_error(
    parameter: str, message: str
) -> None:
    @dataclass
    class Speeds:
        speed: int | None = argument(Lost, parameter, default=None)

    with pytest.raises(TypeError, match=message):
        Table(Speeds).read({}, "", Errors())


def read(table: ArgumentTable, **values: object) -> tuple[Any, list[str]]:
    errors = Errors()
    found = table.read(values, "key", errors)
    return found, [f"{path}: {text}" for path, text in errors]


def test_only_the_given_keys_are_arguments() -> None:
    table = ArgumentTable(Example)
    found, errors = read(table, mode="on", whole="1m", failures=0)
    assert errors == []
    arguments = table.arguments(found)
    assert arguments == {"mode": "on", "whole": 60, "rules": Rules(failures=None)}
    assert type(arguments["whole"]) is int
    Example(lambda: None, **arguments)


def test_a_wrong_and_a_missing_key_are_errors() -> None:
    _, errors = read(ArgumentTable(Example), count=0, clocks=1)
    assert errors == [
        "key.count: expected a whole number, at least 1, got the number 0",
        "key.clocks: is not a known key" + errors[1].partition("is not a known key")[2],
        'key.mode: is required: how it works: "on" or "off", as for a Limiter',
    ]


def test_a_table_can_leave_out_add_and_describe_keys() -> None:
    table = ArgumentTable(
        Example,
        without=("rules", "mode"),
        keys={
            "more": TableKey(Text(), "More.", None),
            "count": "A count.",
            "limit": (Rules, "window"),
        },
    )
    assert not {"window", "failures", "mode"} & set(table.keys)
    assert table.keys["count"].doc == "A count."
    assert table.keys["limit"].doc == "How long the window is."
    assert list(table.keys)[-2:] == ["more", "limit"]


def test_the_error_of_a_conversion_begins_with_its_key() -> None:
    table = ArgumentTable(Example, keys={"name": TableKey(Text(), "A name.", convert=int)})
    with pytest.raises(ValueError, match=r"^name: invalid literal"):
        table.arguments({"name": "x"})


def test_a_type_that_exists_for_type_checkers_only_is_any() -> None:
    def make(value: OnlyForCheckers) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert types_of(make)["value"] is Any
