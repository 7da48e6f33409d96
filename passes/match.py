"""What rules look for: who makes a value, and which constants are single numbers."""

from __future__ import annotations

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Op


def made_by(builder: Builder, value: str, kind: type[Op]) -> Node | None:
    """The node that makes the value, if it is of that kind."""
    node = builder.producer(value)
    return node if node is not None and isinstance(node.op, kind) else None


def inner(builder: Builder, value: str, kind: type[Op]) -> Node | None:
    """As `made_by`, if just one node reads the value, so that it can be absorbed."""
    node = made_by(builder, value, kind)
    return node if node is not None and builder.used_once(value) else None


def number(builder: Builder, value: str) -> float | None:
    """The only element of a constant, whatever its rank."""
    array = builder.constants.get(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))
