"""What a row of the table of ops is: parameters, and how to make the op and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnc.frontends.dsl.checks import Integer, Settings
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight that a layer asks for. `role` is the operand's name; `inputs` feed each output."""

    role: str
    shape: tuple[int, ...]
    inputs: int = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """An op and its weights, which follow the tensor operands."""

    op: Op
    weights: tuple[Weight, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """An op of the language: its parameters, how it is made, how many tensors it takes."""

    settings: type[Settings]
    make: Callable[[Any, TensorType], Layer]
    weighted: bool = False
    variadic: bool = False


def plain(op: Op) -> Row:
    """The row of an op without parameters."""
    return Row(Settings, lambda settings, x: Layer(op))


class Axis(Settings):
    """The dimension to work along; 1 is that of the channels."""

    axis: Integer = 1


def axis_of(axis: int, x: TensorType) -> int:
    """The axis counted from the first. Raises `ShapeError` if it is not one of x's."""
    if not -x.rank <= axis < x.rank:
        raise ShapeError(f"axis {axis} is not one of the {x.rank} of {x}")
    return axis % x.rank
