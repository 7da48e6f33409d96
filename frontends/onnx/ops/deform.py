"""Deformable convolution: every tap of the window reads at places of its own."""

from __future__ import annotations

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.linear import kernel_sizes
from cnnc.frontends.onnx.ops.maps import Window, read_window
from cnnc.ir.op import Array, product
from cnnc.ir.ops import Add, Conv2d, GridSample, Mul, Slice, Transpose
from cnnc.ir.types import Dim, known


def deform_conv(call: Call) -> None:
    """DeformConv of images: the taps are sampled, then multiplied by a convolution of 1 x 1.

    An offset group is an image of its own meanwhile.
    """
    spatial = kernel_sizes(call)
    x, weight = call.operand(0), call.operand(1)
    if len(spatial) != 2:
        raise Unsupported(f"an operand of rank {2 + len(spatial)}")
    n, channels, rows, columns = call.type(x).shape
    window = read_window(call, (rows, columns), spatial)
    groups, taps = call.whole("offset_group", 1), spatial[0] * spatial[1]
    if channels % groups if isinstance(channels, int) else True:
        raise Unsupported(f"{channels} channels for offset_group={groups}")
    images = product((n, groups))
    split = call.add(call.reshape(x, (images, channels // groups, rows, columns)), x)
    grid, (high, wide) = _grid(call, window, images)
    y = call.add(GridSample(), split, grid)
    if call.given(4):
        mask = call.operand(4)
        mask = call.add(call.reshape(mask, (images, 1, taps * high, wide)), mask)
        y = call.add(Mul(), y, mask)
    outputs, inputs = call.type(weight).dims[:2]
    y = call.add(call.reshape(y, (n, channels * taps, high, wide)), y)
    kernel = call.add(call.reshape(weight, (outputs, inputs * taps, 1, 1)), weight)
    bias = [call.operand(3)] if call.given(3) else []
    call.result(Conv2d(groups=call.whole("group", 1)), y, kernel, *bias)


def _grid(call: Call, window: Window, images: Dim) -> tuple[str, tuple[int, int]]:
    """(where the taps read, [images, taps * rows, columns, 2], rows and columns of the result)."""
    offset = call.operand(2)
    sizes, shape = call.shape(0)[2:], call.type(offset).shape
    high, wide = (known(d) for d in shape[2:]) if len(shape) == 4 else (None, None)
    rows, columns = map(known, sizes)
    if not (high and wide and rows and columns):
        raise Unsupported(f"offsets {call.type(offset)} for maps of {sizes[0]} x {sizes[1]}")
    taps = window.kernel[0] * window.kernel[1]
    split = call.add(call.reshape(offset, (images, taps, 2, high, wide)), offset)
    moved = call.add(Transpose(perm=(0, 1, 3, 4, 2)), split)
    # Offsets are down and across, places across and down.
    turned = call.add(Slice(axes=(4,), starts=(-1,), stops=(-(1 << 31),), steps=(-1,)), moved)
    numpy = call.type(offset).dtype.numpy
    scale = np.array([2 / columns, 2 / rows], numpy)
    base = (_places(window, high, wide) * 2 + 1) / (columns, rows) - 1
    grid = call.add(Mul(), turned, call.constant("scale", scale))
    grid = call.add(Add(), grid, call.constant("base", base.astype(numpy)))
    return call.add(call.reshape(grid, (images, taps * high, wide, 2)), grid), (high, wide)


def _places(window: Window, high: int, wide: int) -> Array:
    """Where the taps read without offsets: [taps, rows, columns, 2], columns first."""
    down, across = (
        np.arange(kernel)[:, None] * dilation + np.arange(size) * stride - before
        for kernel, dilation, size, stride, before in zip(
            window.kernel,
            window.dilation,
            (high, wide),
            window.stride,
            window.before,
            strict=True,
        )
    )
    pairs = np.broadcast_arrays(across[None, :, None, :], down[:, None, :, None])
    return np.stack(pairs, axis=-1).reshape(-1, high, wide, 2).astype(np.float64)
