"""Nodes of which every input is known: converted into a graph of their own, which is evaluated.

So the meaning of an operator stands in its converter alone: with a converter for `Floor`,
`floor([1.5])` is computed at import by the NumPy meaning of the op that the converter wires.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cnnc.frontends.onnx.call import Unsupported
from cnnc.ir.graph import Builder, Node
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array

_MAX_FLOPS = 1 << 32
_WRONG = (ArithmeticError, AssertionError, IndexError, MemoryError, TypeError, ValueError)


def evaluate(builder: Builder, values: Iterable[str], limit: int) -> list[Array]:
    """The arrays of some values of a graph without inputs.

    Args:
        builder: the graph; its sizes are numbers.
        values: which values.
        limit: bytes that all results together may have.

    Raises:
        Unsupported: a result would be too large, take too long, or cannot be computed.
    """
    arrays: dict[str, Array] = dict(builder.constants)
    for node in builder.nodes:
        limit -= _cost(builder, node)
        if limit < 0:
            raise Unsupported("the constants that the model computes are absurdly large")
        for name, array in zip(node.results, _results(node, arrays), strict=True):
            type = builder.types[name]
            if (array.shape, array.dtype) != (type.shape, type.dtype.numpy):
                raise Unsupported(f"{node.op.name} of {array.dtype} constants")
            arrays[name] = array
    return [arrays[value] for value in values]


def _cost(builder: Builder, node: Node) -> int:
    """The bytes of a node's results. Raises `Unsupported` if computing them takes long."""
    results = [builder.types[name] for name in node.results]
    flops = node.op.flops([builder.types[name] for name in node.operands], results)
    if flops > _MAX_FLOPS:
        raise Unsupported(f"computes a constant by {flops:.1e} operations")
    return sum(type.elements * type.dtype.bytes for type in results)


def _results(node: Node, arrays: dict[str, Array]) -> tuple[Array, ...]:
    try:
        value = node.op.evaluate(*(arrays[name] for name in node.operands))
    except ShapeError as error:
        first = error.diagnostics[0]
        raise Unsupported(first.message, first.help) from None
    except _WRONG as error:
        raise Unsupported(f"cannot be computed: {str(error)[:200]}") from None
    return tuple(map(np.asarray, value if isinstance(value, tuple) else (value,)))
