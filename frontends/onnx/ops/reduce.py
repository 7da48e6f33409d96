"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

from cnnc.frontends.onnx.call import Call
from cnnc.ir.ops import GlobalAvgPool, GlobalMaxPool, GlobalPool2d, How, Reduction

Converter = Callable[[Call], None]

_MAPS: dict[How, type[GlobalPool2d]] = {How.MEAN: GlobalAvgPool, How.MAX: GlobalMaxPool}
# Of one element they make that element.
_IDLE = (How.SUM, How.MEAN, How.MAX, How.MIN, How.PROD)


def reduction(how: How, since: int = 18) -> Converter:
    """The converter of a reduction whose axes are an input since that opset."""

    def convert(call: Call) -> None:
        x = call.operand(0)
        type = call.type(x)
        axes = call.either("axes", 1, since)
        keep = call.flag("keepdims", True)
        nothing = call.flag("noop_with_empty_axes")
        if not axes and nothing and how in _IDLE:
            return call.alias(x)
        if not axes:
            axes = () if nothing else tuple(range(type.rank))
        op = Reduction(how=how, axes=axes, keep=keep)
        op.infer(type)
        places = tuple(sorted(axis % type.rank for axis in axes))
        if how in _MAPS and type.rank == 4 and places == (2, 3) and 0 not in type.shape:
            return call.result(_MAPS[how](keep=keep), x)
        return call.result(op, x)

    return convert
