"""Quantised operators of the domain com.microsoft, which quantised models of ONNX Runtime have.

Those that are no products compute with floats: their operands are dequantised, and the results
quantised again.
"""

from __future__ import annotations

from collections.abc import Callable

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.norm import softmax
from cnnc.frontends.onnx.ops.pool import average_pool, global_average_pool
from cnnc.frontends.onnx.ops.quantised import centred, dynamic, quantize
from cnnc.ir.op import Binary
from cnnc.ir.ops import (
    Add,
    Cast,
    Concat,
    Dequantize,
    LeakyRelu,
    MatMul,
    Mul,
    Reshape,
    Sigmoid,
    Transpose,
    Where,
)
from cnnc.ir.types import DType

Converter = Callable[[Call], None]


def _floats(call: Call, index: int) -> str:
    """An input as numbers; its scale and zero point are the inputs after it."""
    operands = [call.operand(i) for i in (index, index + 1, index + 2) if call.given(i)]
    return call.add(Dequantize(), *operands)


def of_two(op: Binary) -> Converter:
    """QLinearAdd and QLinearMul."""
    return lambda call: quantize(call, call.add(op, _floats(call, 0), _floats(call, 3)), 6)


def q_sigmoid(call: Call) -> None:
    """QLinearSigmoid."""
    quantize(call, call.add(Sigmoid(), _floats(call, 0)), 3)


def q_leaky_relu(call: Call) -> None:
    """QLinearLeakyRelu."""
    op = LeakyRelu(alpha=call.real("alpha", 0.01))
    quantize(call, call.add(op, _floats(call, 0)), 3)


def q_softmax(call: Call) -> None:
    """QLinearSoftmax; `opset` says what its axis means."""
    opset = call.whole("opset", call.opset)
    quantize(call, call.part(softmax, [_floats(call, 0)], opset), 3)


def q_global_average_pool(call: Call) -> None:
    """QLinearGlobalAveragePool."""
    _of_maps(call, global_average_pool)


def q_average_pool(call: Call) -> None:
    """QLinearAveragePool."""
    _of_maps(call, average_pool)


def _of_maps(call: Call, converter: Converter) -> None:
    """An operator of maps, whose channels may be last."""
    x, last = _floats(call, 0), call.flag("channels_last")
    spatial = tuple(range(1, call.type(x).rank - 1))
    if last:
        x = call.add(Transpose(perm=(0, len(spatial) + 1, *spatial)), x)
    y = call.part(converter, [x])
    if last:
        y = call.add(Transpose(perm=(0, *(axis + 1 for axis in spatial), 1)), y)
    quantize(call, y, 3)


def q_concat(call: Call) -> None:
    """QLinearConcat: the result's scale and zero point come first."""
    if len(call.inputs) < 5 or len(call.inputs) % 3 != 2:
        raise Unsupported(f"{len(call.inputs)} inputs, not two and three for each operand")
    parts = [_floats(call, index) for index in range(2, len(call.inputs), 3)]
    axis = call.axis(call.whole("axis"), parts[0])
    quantize(call, call.add(Concat(axis=axis), *parts), 0)


def q_where(call: Call) -> None:
    """QLinearWhere."""
    quantize(call, call.add(Where(), call.operand(0), _floats(call, 1), _floats(call, 4)), 7)


def q_gemm(call: Call) -> None:
    """QGemm: alpha * A' @ B' + C; the sums of C are of the products' scale. Without a result's
    scale, numbers."""
    op = MatMul(transpose_a=call.flag("transA"), transpose_b=call.flag("transB"))
    weight = centred(call, 3, 5, 1 if op.transpose_b else 0)
    y = call.add(op, centred(call, 0, 2), weight)
    if call.given(6):
        y = call.add(Add(), y, call.operand(6))
    alpha = call.real("alpha", 1.0)
    scale = call.add(Mul(), call.operand(1), call.operand(4))
    if alpha != 1:
        scale = call.add(Mul(), scale, call.scalar("alpha", alpha, scale))
    numbers = _scaled(call, y, scale)
    if call.given(7):
        return quantize(call, numbers, 7)
    return call.alias(numbers)


def _scaled(call: Call, sums: str, scale: str) -> str:
    """Whole numbers as floats, times a scale."""
    if call.type(scale).shape == (1,):
        scale = call.add(Reshape(shape=()), scale)
    return call.add(Mul(), call.add(Cast(to=DType.F32), sums), scale)


def matmul_integer_to_float(call: Call) -> None:
    """MatMulIntegerToFloat."""
    y = call.add(MatMul(), centred(call, 0, 4, 1), centred(call, 1, 5))
    scale = call.add(Mul(), call.operand(2), call.operand(3))
    _with_bias(call, _scaled(call, y, scale), 6)


def dynamic_quantize_matmul(call: Call) -> None:
    """DynamicQuantizeMatMul: the left operand is quantised as DynamicQuantizeLinear does."""
    a, scale = dynamic(call, call.operand(0))
    y = call.add(MatMul(), a, centred(call, 1, 3))
    _with_bias(call, _scaled(call, y, call.add(Mul(), scale, call.operand(2))), 4)


def _with_bias(call: Call, y: str, index: int) -> None:
    call.alias(call.add(Add(), y, call.operand(index)) if call.given(index) else y)
