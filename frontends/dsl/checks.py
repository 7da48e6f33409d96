"""What the parameters of the language's ops may be: checks that tell what is wrong, and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator

from cnnc.frontends.dsl.values import is_number, show
from cnnc.ir import ops


class Settings(BaseModel):
    """The parameters of an op, in the order in which they are given by position."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def _whole(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or value < least:
            hint = "; `//` divides whole numbers" if isinstance(value, float) else ""
            raise ValueError(f"must be a whole number >= {least}, got {show(value)}{hint}")
        return value

    return check


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"must be a whole number, got {show(value)}")
    return value


def _number(value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"must be a number, got {show(value)}")
    return float(value)


def _rate(value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"must be a number in 0..1, got {show(value)}")
    return float(value)


def _positive(value: Any) -> float:
    if not is_number(value) or not 0 < value <= 1000:
        raise ValueError(f"must be a number > 0 and <= 1000, got {show(value)}")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be `yes` or `no`, got {show(value)}")
    return value


def _pair(least: int) -> Callable[[Any], tuple[int, int]]:
    def check(value: Any) -> tuple[int, int]:
        items = value if isinstance(value, tuple) else (value, value)
        if len(items) != 2 or not all(type(item) is int and item >= least for item in items):
            raise ValueError(
                f"must be a whole number >= {least} or [rows, columns] of them, got {show(value)}"
            )
        return items

    return check


def _sides(value: Any) -> tuple[int, int, int, int]:
    items = value if isinstance(value, tuple) else (value,) * 4
    if len(items) != 4 or not all(type(item) is int and item >= 0 for item in items):
        raise ValueError(
            f"must be a whole number >= 0 or [top, left, bottom, right], got {show(value)}"
        )
    return items


def _padding(value: Any) -> tuple[int, int, int, int] | str:
    if isinstance(value, str) and value in ("same", "valid"):
        return value
    try:
        return _sides(value)
    except ValueError:
        raise ValueError(
            "must be a whole number >= 0, `same`, `valid` or [top, left, bottom, right], "
            f"got {show(value)}"
        ) from None


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(i) is int and i >= -1 for i in value):
        raise ValueError(f"must be a list of whole numbers >= -1, got {show(value)}")
    return value


def _resampling(value: Any) -> ops.Resampling:
    for mode in ops.Resampling:
        if value == mode.value:
            return mode
    words = " or ".join(f"`{mode.value}`" for mode in ops.Resampling)
    raise ValueError(f"must be {words}, got {show(value)}")


def _list(least: int | None) -> Callable[[Any], tuple[int, ...]]:
    def check(value: Any) -> tuple[int, ...]:
        items = value if isinstance(value, tuple) else (value,)
        if not all(type(i) is int and (least is None or i >= least) for i in items):
            limit = "" if least is None else f" >= {least}"
            raise ValueError(f"must be a list of whole numbers{limit}, got {show(value)}")
        return items

    return check


def _filling(value: Any) -> ops.Filling:
    for mode in ops.Filling:
        if value == mode.value:
            return mode
    words = ", ".join(f"`{mode.value}`" for mode in ops.Filling)
    raise ValueError(f"must be one of {words}, got {show(value)}")


Size = Annotated[int, PlainValidator(_whole(1))]
Count = Annotated[int, PlainValidator(_whole(0))]
Integer = Annotated[int, PlainValidator(_integer)]
Number = Annotated[float, PlainValidator(_number)]
Positive = Annotated[float, PlainValidator(_positive)]
Rate = Annotated[float, PlainValidator(_rate)]
Flag = Annotated[bool, PlainValidator(_flag)]
Pair = Annotated[tuple[int, int], PlainValidator(_pair(1))]
Rest = Annotated[tuple[int, int], PlainValidator(_pair(0))]
Sides = Annotated[tuple[int, int, int, int], PlainValidator(_sides)]
Padding = Annotated[tuple[int, int, int, int] | str, PlainValidator(_padding)]
Shape = Annotated[tuple[int, ...], PlainValidator(_shape)]
Counts = Annotated[tuple[int, ...], PlainValidator(_list(0))]
Integers = Annotated[tuple[int, ...], PlainValidator(_list(None))]
Border = Annotated[ops.Filling, PlainValidator(_filling)]
Mode = Annotated[ops.Resampling, PlainValidator(_resampling)]
