"""Portable graph -> ONNX model, with standard operators only.

Every op has one converter in `EXPORTERS`, which gives the ONNX nodes for it. The `onnx` package
comes with the extra `cnnc[onnx]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cnnc.frontends.onnx.exports import EXPORTERS, Writer
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.ir.op import Fusable, Op
from cnnc.ir.ops import (
    AvgPool2d,
    Border,
    Conv2d,
    Coordinates,
    Dequantize,
    Filling,
    Gelu,
    GridSample,
    Pointwise,
    PooledConv2d,
    PreparedConv2d,
    Quantize,
    Resize,
)
from cnnc.ir.types import TensorType

OPSET = 18
NEWER_OPSET = 19  # for what `_is_newer` names
NEWEST_OPSET = 20  # for Gelu and samples
SCALED_OPSET = 21  # for 16 bits and blocks
IR_VERSION = 10


def export_onnx(graph: Graph) -> Any:
    """The graph as an `onnx.ModelProto`; a symbolic batch stays symbolic.

    Raises:
        CnncError: the `onnx` package is missing, or an op has no ONNX form; all are listed.
    """
    try:
        from onnx import checker, helper, numpy_helper
    except ImportError:
        raise CnncError(
            Diagnostic("exporting needs the `onnx` package", help='pip install "cnnc[onnx]"')
        ) from None
    unknown = [n for n in graph.nodes if any(type(op) not in EXPORTERS for op in n.op.parts)]
    if unknown:
        raise CnncError(
            [Diagnostic(f"{n.op.name} `{n.title}` has no ONNX form", n.location) for n in unknown]
        )
    writer = Writer(graph)
    for node in graph.nodes:
        for op, operands, result in _steps(writer, node.op, node.operands, node.name):
            EXPORTERS[type(op)](writer, op, operands, result)
    weights = [numpy_helper.from_array(a, name) for name, a in graph.constants.items()]
    outputs = []
    for public, value in graph.outputs:
        if public != value:
            writer.add("Identity", [value], public)
        outputs.append(_value_info(public, graph.types[value]))
    body = helper.make_graph(
        writer.nodes,
        graph.name,
        [_value_info(name, graph.types[name]) for name in graph.inputs],
        outputs,
        [*weights, *writer.constants],
    )
    ops = [op for node in graph.nodes for op in node.op.parts]
    opset = [helper.make_opsetid("", max(map(_since, ops), default=OPSET))]
    model = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION)
    model.producer_name = "cnnc"
    checker.check_model(model)
    return model


def _since(op: Op) -> int:
    """The opset that the op's form needs."""
    if isinstance(op, Quantize | Dequantize):
        return SCALED_OPSET
    if isinstance(op, Gelu | GridSample):
        return NEWEST_OPSET
    return NEWER_OPSET if _is_newer(op) else OPSET


def _is_newer(op: Op) -> bool:
    """Whether the op needs what average pooling, Resize and padding have since opset 19."""
    if isinstance(op, Resize):
        return op.coordinates is Coordinates.HALF_PIXEL_SYMMETRIC
    if isinstance(op, Border):
        return op.mode is Filling.WRAP
    return isinstance(op, AvgPool2d) and op.dilation != (1, 1)


def _steps(
    writer: Writer, op: Op, operands: Sequence[str], y: str
) -> Iterator[tuple[Op, Sequence[str], str]]:
    """The parts of an op with the result y, one after the other: (op, operands, result)."""
    if isinstance(op, PooledConv2d):
        whole = writer.fresh(f"{y}.whole")
        yield from _steps(writer, op.conv, operands, whole)
        yield op.pool, [whole], y
        return
    if isinstance(op, PreparedConv2d):
        own, extras = op.split(operands)
        (x, *parameters), taken = op.arrange(own)
        before, after = Pointwise(epilogue=op.prologue), Conv2d(epilogue=op.epilogue)
        prepared = writer.fresh(f"{y}.prepared")
        yield from _steps(writer, before, (x, *taken), prepared)
        yield from _steps(writer, after, (prepared, *parameters, *extras), y)
        return
    if not isinstance(op, Fusable) or not op.epilogue:
        yield op, operands, y
        return
    own, extras = op.split(operands)
    running = writer.fresh(f"{y}.0")
    yield op, own, running
    rest = iter(extras)
    for i, step in enumerate(op.epilogue, 1):
        result = y if i == len(op.epilogue) else writer.fresh(f"{y}.{i}")
        yield step.op, step.arrange(running, rest), result
        running = result


def _value_info(name: str, type: TensorType) -> Any:
    from onnx import helper

    element = helper.np_dtype_to_tensor_dtype(type.dtype.numpy)
    shape = [dim if isinstance(dim, int) else str(dim) for dim in type.shape]
    return helper.make_tensor_value_info(name, element, shape)
