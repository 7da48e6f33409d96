"""Pooling over windows and whole maps, in any number of dimensions.

What is made of a window is made of its last two axes first and then of each axis before them, so
that three dimensions and more are passes over maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import POINT, Window, around, pair, read_window
from cnnc.ir.op import product
from cnnc.ir.ops import (
    Abs,
    AvgPool2d,
    Conv2d,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    How,
    MaxPool2d,
    MaxPoolPlaces,
    MaxUnpool,
    Mul,
    Pow,
    Reduction,
    Reshape,
    Sqrt,
)
from cnnc.ir.types import TensorType

Slide = Callable[[str, Window], str]  # (maps, window on them) -> what was made of the windows


def max_pool(call: Call) -> None:
    """MaxPool."""
    window, ceil_mode = _window(call)
    columns_first = call.flag("storage_order")

    def slide(x: str, window: Window) -> str:
        op = MaxPool2d(
            window=pair(window.kernel),
            stride=pair(window.stride),
            pad=window.pad,
            dilation=pair(window.dilation),
            ceil_mode=ceil_mode,
        )
        return call.add(op, x)

    call.alias(_slide(call, call.operand(0), window, slide))
    if len(call.outputs) > 1 and call.outputs[1]:
        places = MaxPoolPlaces(
            window=window.kernel,
            stride=window.stride,
            dilation=window.dilation,
            before=window.before,
            after=window.after,
            ceil_mode=ceil_mode,
            columns_first=columns_first,
        )
        call.result(places, call.operand(0), output=1)


def average_pool(call: Call) -> None:
    """AveragePool."""
    window, ceil_mode = _window(call)
    whole = call.flag("count_include_pad")

    def slide(x: str, window: Window) -> str:
        op = AvgPool2d(
            window=pair(window.kernel),
            stride=pair(window.stride),
            pad=window.pad,
            dilation=pair(window.dilation),
            ceil_mode=ceil_mode,
            count_include_pad=whole,
        )
        return call.add(op, x)

    call.alias(_slide(call, call.operand(0), window, slide))


def lp_pool(call: Call) -> None:
    """LpPool: convolutions with ones sum up the windows."""
    window, ceil_mode = _window(call)
    x, p = call.operand(0), _exponent(call)
    if ceil_mode:
        window = _rounded_up(window, TensorType(call.type(x).shape[2:]).dims)

    def slide(x: str, window: Window) -> str:
        channels = call.type(x).shape[1]
        if not isinstance(channels, int):
            raise Unsupported(f"{channels} channels", fix_size([channels.name]))
        ones = np.ones((channels, 1, *window.kernel), call.type(x).dtype.numpy)
        op = Conv2d(
            stride=pair(window.stride),
            pad=window.pad,
            dilation=pair(window.dilation),
            groups=channels,
        )
        return call.add(op, x, call.constant("ones", ones))

    return _root(call, _slide(call, _power(call, x, p), window, slide), p)


def _exponent(call: Call) -> float:
    """The attribute p, which was a fraction once."""
    p = call.real("p", 2.0) if call.opset < 2 else call.whole("p", 2)
    if p < 1:
        raise Unsupported(f"p={p:g}, which is less than 1")
    return p


def _power(call: Call, x: str, p: float) -> str:
    """|x| ** p"""
    if p == 2:
        return call.add(Mul(), x, x)
    x = call.add(Abs(), x)
    return x if p == 1 else call.add(Pow(), x, call.scalar("p", p, x))


def _root(call: Call, x: str, p: float) -> None:
    """Makes x ** (1 / p) the node's output."""
    if p == 1:
        return call.alias(x)
    if p == 2:
        return call.result(Sqrt(), x)
    return call.result(Pow(), x, call.scalar("root", 1 / p, x))


def _rounded_up(window: Window, sizes: Sequence[int]) -> Window:
    """The window with the padding at the ends that makes rounding down what rounding up was."""
    after = []
    axes = zip(sizes, window.before, window.after, window.span, window.stride, strict=True)
    for size, a, b, span, stride in axes:
        count = -(-(size + a + b - span) // stride) + 1
        count -= (count - 1) * stride >= size + a
        after.append(max((count - 1) * stride + span - a - size, 0))
    return replace(window, after=tuple(after))


def _window(call: Call) -> tuple[Window, bool]:
    """(the window, whether sizes are rounded up)."""
    sizes = call.type(call.operand(0)).shape[2:]
    window = read_window(call, sizes, call.wholes("kernel_shape"))
    # SAME says what the output size is.
    return window, call.flag("ceil_mode") and not window.same


def _slide(call: Call, x: str, window: Window, slide: Slide) -> str:
    """What `slide` makes of all windows of x."""
    n, *shape = call.type(x).shape
    axes = len(shape) - 1
    if axes == 2:
        return slide(x, window)
    if axes == 1:
        y = slide(call.add(Reshape(shape=(0, 0, 1, -1)), x), POINT.join(window))
        return call.add(Reshape(shape=(0, 0, -1)), y)
    for axis in range(axes - 2, -1, -1):
        outer, (rows, *rest) = shape[: axis + 1], shape[axis + 1 :]
        x = call.add(call.reshape(x, (n, product(outer), rows, product(rest))), x)
        last = axis == axes - 2
        part = window.along(axis, axis + 1) if last else window.along(axis).join(POINT)
        x = slide(x, part)
        rows, columns = call.type(x).shape[2:]
        shape = [*outer, rows, *((columns,) if last else rest)]
        x = call.add(call.reshape(x, (n, *shape)), x)
    return x


def max_unpool(call: Call) -> None:
    """MaxUnpool; the places are those of the tensor without `output_shape`."""
    x = call.operand(0)
    outer, sizes = call.type(x).dims[:2], call.type(x).dims[2:]
    window = read_window(call, sizes, call.wholes("kernel_shape"))
    plain = tuple(
        (size - 1) * stride - a - b + kernel
        for size, stride, a, b, kernel in zip(
            sizes, window.stride, window.before, window.after, window.kernel, strict=True
        )
    )
    op = MaxUnpool(shape=(*outer, *plain))
    wanted = call.integers(2)[2:] if call.given(2) else plain
    if wanted == plain:
        return call.result(op, x, call.operand(1))
    more = [w - p for w, p in zip(wanted, plain, strict=True)]
    y = call.add(op, x, call.operand(1))
    return call.result(around([0] * len(more), more), y)


def global_average_pool(call: Call) -> None:
    """GlobalAveragePool, of any rank."""
    _global(call, GlobalAvgPool(keep=True))


def global_max_pool(call: Call) -> None:
    """GlobalMaxPool, of any rank."""
    _global(call, GlobalMaxPool(keep=True))


def global_lp_pool(call: Call) -> None:
    """GlobalLpPool, of any rank."""
    x, p = call.operand(0), _exponent(call)
    axes = tuple(range(2, call.type(x).rank))
    how = {1.0: How.L1, 2.0: How.L2}.get(p)
    if how is not None:
        return call.result(Reduction(how=how, axes=axes, keep=True), x)
    total = call.add(Reduction(how=How.SUM, axes=axes, keep=True), _power(call, x, p))
    return _root(call, total, p)


def _global(call: Call, op: GlobalPool2d) -> None:
    x = call.operand(0)
    rank = call.type(x).rank
    if rank == 4:
        return call.result(op, x)
    if rank < 3:
        raise Unsupported(f"an operand of rank {rank}")
    y = call.add(op, call.add(Reshape(shape=(0, 0, -1, 1)), x))
    return call.result(Reshape(shape=(0, 0, *(1,) * (rank - 2))), y)
