"""Quantised operators. Products are made of whole numbers, less their zero points, as i32."""

from __future__ import annotations

from collections.abc import Sequence

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.linear import kernel_sizes
from cnnc.frontends.onnx.ops.maps import around, read_window
from cnnc.frontends.onnx.tensors import element_name, element_type
from cnnc.ir.ops import (
    Cast,
    Centre,
    ConvNd,
    Dequantize,
    DynamicScale,
    DynamicZero,
    MatMul,
    Mul,
    Quantize,
    Reshape,
)
from cnnc.ir.types import DType


def _axis(call: Call) -> int:
    rank, axis = call.type(call.operand(0)).rank, call.whole("axis", 1)
    return axis + rank if axis < 0 else axis


def quantize_linear(call: Call) -> None:
    """QuantizeLinear; the result's type is that of the zero point, else `output_dtype`."""
    call.ignore("saturate")  # it is for 8-bit floats, which are refused
    if call.whole("precision", 0):
        raise Unsupported("a precision of its own")
    operands = [call.operand(0), call.operand(1)]
    to, number = DType.U8, call.whole("output_dtype", 0)
    if number:
        found = element_type(number)
        if found is None:
            raise Unsupported(f"to {element_name(number)}")
        to = DType(found.name)
    if call.given(2):
        operands.append(call.operand(2))
        to = call.type(operands[2]).dtype
    op = Quantize(axis=_axis(call), block=call.whole("block_size", 0), to=to)
    call.result(op, *operands)


def dequantize_linear(call: Call) -> None:
    """DequantizeLinear."""
    if call.whole("output_dtype", 0):
        raise Unsupported("a type other than that of the scale")
    operands = [call.operand(i) for i in range(3) if call.given(i)]
    call.result(Dequantize(axis=_axis(call), block=call.whole("block_size", 0)), *operands)


def dynamic_quantize_linear(call: Call) -> None:
    """DynamicQuantizeLinear."""
    for output, value in enumerate(_dynamic(call, call.operand(0))):
        if output < len(call.outputs) and call.outputs[output]:
            call.alias(value, output)


def _dynamic(call: Call, x: str) -> tuple[str, str, str]:
    """(x as bytes, their scale, their zero point), chosen by its extremes."""
    scale = call.add(DynamicScale(), x)
    zero = call.add(DynamicZero(), x, scale)
    return call.add(Quantize(), x, scale, zero), scale, zero


def dynamic(call: Call, x: str) -> tuple[str, str]:
    """(x as whole numbers less their zero point, their scale), chosen by its extremes."""
    quantised, scale, zero = _dynamic(call, x)
    return call.add(Centre(), quantised, zero), scale


def centred(call: Call, index: int, zero: int, trailing: int = 0) -> str:
    """An input less its zero point; a list of those lies before `trailing` other axes."""
    x = call.operand(index)
    if not call.given(zero):
        return call.add(Centre(), x)
    point = call.operand(zero)
    type = call.type(point)
    if type.rank == 1 and type.shape != (1,) and trailing:
        point = call.add(Reshape(shape=(-1, *(1,) * trailing)), point)
    return call.add(Centre(), x, point)


def matmul_integer(call: Call) -> None:
    """MatMulInteger."""
    call.result(MatMul(), centred(call, 0, 2, 1), centred(call, 1, 3))


def qlinear_matmul(call: Call) -> None:
    """QLinearMatMul."""
    y = call.add(MatMul(), centred(call, 0, 2, 1), centred(call, 3, 5))
    if all(call.type(call.operand(i)).shape in ((), (1,)) for i in (1, 4)):
        return _requantize(call, y, (1, 4), 6)
    rows = call.operand(1)  # a scale for each row, for each column, or both
    if call.type(rows).rank == 1:
        rows = call.add(Reshape(shape=(-1, 1)), rows)
    scale = call.add(Mul(), rows, call.operand(4))
    wide = call.add(Cast(to=call.type(scale).dtype), y)
    return quantize(call, call.add(Mul(), wide, scale), 6)


def conv_integer(call: Call) -> None:
    """ConvInteger, in any number of dimensions."""
    call.alias(_conv(call, centred(call, 0, 2), 1, 3))


def qlinear_conv(call: Call) -> None:
    """QLinearConv, in any number of dimensions."""
    bias = [call.operand(8)] if call.given(8) else []
    _requantize(call, _conv(call, centred(call, 0, 2), 3, 5, bias), (1, 4), 6)


def _conv(call: Call, x: str, weight: int, zero: int, bias: Sequence[str] = ()) -> str:
    """The convolution of an operand less its zero point; `weight` and `zero` are inputs."""
    sizes = call.type(x).shape[2:]
    spatial = kernel_sizes(call, weight)
    window, groups = read_window(call, sizes, spatial), call.whole("group", 1)
    kernel = centred(call, weight, zero, len(sizes) + 1)
    if any(window.pads):
        x = call.add(around(window.before, window.after), x)
    op = ConvNd(stride=window.stride, dilation=window.dilation, groups=groups)
    return call.add(op, x, kernel, *bias)


def _requantize(call: Call, y: str, scales: tuple[int, int], result: int) -> None:
    """Sums of products as numbers under the result's scale, which is input `result`."""
    a, b = (call.operand(i) for i in scales)
    scale = call.add(Mul(), a, b)
    quantize(call, call.add(Dequantize(), y, scale), result)


def quantize(call: Call, y: str, result: int) -> None:
    """Numbers under the result's scale, one for each row at most."""
    operands = [call.operand(i) for i in (result, result + 1) if call.given(i)]
    to = call.type(operands[1]).dtype if len(operands) > 1 else DType.U8
    call.result(Quantize(axis=call.type(y).rank - 2, to=to), y, *operands)
