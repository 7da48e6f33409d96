"""Dataclasses to plain data, as JSON has it, and back: strictly, by the types of the fields.

    read(Kind, write(value), "value") == value

It is there because loading a compiled model must be quick, which an import of pydantic is not.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cnnc.ir.location import CnncError

T = TypeVar("T")


def write(value: Any) -> Any:
    """Plain data of a dataclass, or of what its fields may hold (see `read`)."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [write(item) for item in value]
    if isinstance(value, dict):
        return {name: write(item) for name, item in value.items()}
    if is_dataclass(value):
        return {field.name: write(getattr(value, field.name)) for field in fields(value)}
    return value


def read(kind: type[T], data: Any, where: str) -> T:
    """A value of the dataclass `kind` from plain data.

    Fields may be `Any`, `str`, `int`, `float`, `bool`, enums, dataclasses, `tuple[X, ...]`,
    `dict[str, X]` and unions of these. A number is never taken for another type, except an integer
    where a float is wanted.

    Args:
        kind: the dataclass.
        data: plain data, lists standing for tuples.
        where: what messages call the data.

    Raises:
        CnncError: the data does not fit; the message names the first field that does not.
    """
    value: T = _read(kind, data, where)
    return value


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (types.UnionType, Union):
        return _read_union(arguments, data, where)
    if origin is tuple and arguments[1:] == (...,) and isinstance(data, list):
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in data.items()}
    if is_dataclass(kind) and isinstance(data, dict):
        return _read_fields(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if any(data == member.value for member in kind):
            return kind(data)
    elif kind is float and type(data) in (int, float):
        return float(data)
    elif kind in (str, int, bool, types.NoneType) and type(data) is kind:
        return data
    raise CnncError(f"`{where}` should be {getattr(kind, '__name__', kind)}, is {_brief(data)}")


def _read_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return _read(kind, data, where)
        except CnncError:
            pass
    return _read(kinds[-1], data, where)


def _read_fields(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    hints = _hints(kind)
    for name in sorted(hints.keys() ^ data.keys()):
        lacks = "lacks the" if name in hints else "has an unknown"
        raise CnncError(f"`{where}` {lacks} field `{name}`")
    return kind(
        **{name: _read(type, data[name], f"{where}.{name}") for name, type in hints.items()}
    )


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _brief(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:37]}..."
