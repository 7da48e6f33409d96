"""Uses of ops on maps, for random networks."""

from __future__ import annotations

from dataclasses import replace

from draws import Draw, Use, Uses, border, epilogue, pair, sizes
from hypothesis import strategies as st

from cnnc.ir.ops import (
    AvgPool2d,
    Col2Im,
    Conv2d,
    ConvNd,
    ConvTranspose2d,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    MaxPool2d,
    Pad,
    Resampling,
    Upsample,
)
from cnnc.ir.types import Shape, TensorType


def _conv2d(draw: Draw, x: TensorType) -> Use:
    channels, rows, columns = sizes(x)
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    out = groups * draw(st.integers(1, 3 if groups < 3 else 1))
    pad, dilation, stride = border(draw, (2, 2)), pair(draw, 1, 2), pair(draw, 1, 2)
    fits = [
        [k for k in (1, 2, 3) if d * (k - 1) + 1 <= size + before + after]
        for d, size, before, after in zip(dilation, (rows, columns), pad[:2], pad[2:], strict=True)
    ]
    kernel = tuple(draw(st.sampled_from(sizes)) for sizes in fits)
    op = Conv2d(stride=stride, pad=pad, dilation=dilation, groups=groups)
    own: tuple[Shape, ...] = ((out, channels // groups, *kernel),)
    own += ((out,),) if draw(st.booleans()) else ()
    return epilogue(draw, op, own, x)


def _conv_transpose2d(draw: Draw, x: TensorType) -> Use:
    channels, rows, columns = sizes(x)
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    per_group = draw(st.integers(1, 3 if groups < 3 else 1))
    dilation, stride, kernel = pair(draw, 1, 2), pair(draw, 1, 3), pair(draw, 1, 3)
    more, pad = [], []
    for d, s, k, size in zip(dilation, stride, kernel, (rows, columns), strict=True):
        more.append(draw(st.integers(0, max(s, d) - 1)))
        whole = (size - 1) * s + d * (k - 1) + 1 + more[-1]
        before = draw(st.integers(0, min(2, whole - 1)))
        pad.append((before, draw(st.integers(0, min(2, whole - 1 - before)))))
    op = ConvTranspose2d(
        stride=stride,
        pad=(pad[0][0], pad[1][0], pad[0][1], pad[1][1]),
        dilation=dilation,
        groups=groups,
        output_padding=(more[0], more[1]),
    )
    own: tuple[Shape, ...] = ((channels, per_group, *kernel),)
    own += ((groups * per_group,),) if draw(st.booleans()) else ()
    return epilogue(draw, op, own, x)


def _pool(kind: type[MaxPool2d] | type[AvgPool2d], draw: Draw, x: TensorType) -> Use:
    _, rows, columns = sizes(x)
    window = draw(st.integers(1, min(3, rows))), draw(st.integers(1, min(3, columns)))
    stride, ceil = pair(draw, 1, 3), draw(st.booleans())
    # A dilated window may lie in the padding with all it reads; its mean has no value.
    spread = 2 * window[0] - 1 <= rows and 2 * window[1] - 1 <= columns and draw(st.booleans())
    pad = (0, 0, 0, 0) if spread else border(draw, (window[0] - 1, window[1] - 1))
    dilation = (2, 2) if spread else (1, 1)
    op = kind(window=window, stride=stride, pad=pad, dilation=dilation, ceil_mode=ceil)
    if isinstance(op, AvgPool2d):
        op = replace(op, count_include_pad=draw(st.booleans()))
    return op, ()


def _global_pool(kind: type[GlobalPool2d], draw: Draw, x: TensorType) -> Use:
    return epilogue(draw, kind(keep=draw(st.booleans())), (), x)


def _pad(draw: Draw, x: TensorType) -> Use:
    return Pad(pad=border(draw, (2, 2)), value=draw(st.sampled_from([0.0, -1.5]))), ()


def _upsample(draw: Draw, x: TensorType) -> Use:
    return Upsample(scale=pair(draw, 1, 2), mode=draw(st.sampled_from(Resampling))), ()


def _conv_nd(draw: Draw, x: TensorType) -> Use:
    channels, *inner = sizes(x)
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    out = groups * draw(st.integers(1, 2))
    stride, dilation = (tuple(draw(st.integers(1, 2)) for _ in inner) for _ in range(2))
    kernel = tuple(
        draw(st.integers(1, min(3, (size - 1) // d + 1)))
        for size, d in zip(inner, dilation, strict=True)
    )
    own: tuple[Shape, ...] = ((out, channels // groups, *kernel),)
    own += ((out,),) if draw(st.booleans()) else ()
    return epilogue(draw, ConvNd(stride=stride, dilation=dilation, groups=groups), own, x)


def _col2im(draw: Draw, x: TensorType) -> Use:
    rows, windows = sizes(x)
    first = draw(st.sampled_from([b for b in (1, 2, 3) if rows % b == 0]))
    second = draw(st.sampled_from([b for b in (1, 2) if rows // first % b == 0]))
    pad = draw(st.integers(0, (windows + first - 2) // 2))
    op = Col2Im(
        image=(windows + first - 1 - 2 * pad, second),
        block=(first, second),
        stride=(1, 1),
        dilation=(1, 1),
        pad=(pad, 0, pad, 0),
    )
    return op, ()


MAPS: Uses = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "max_pool2d": lambda draw, x: _pool(MaxPool2d, draw, x),
    "avg_pool2d": lambda draw, x: _pool(AvgPool2d, draw, x),
    "global_avg_pool": lambda draw, x: _global_pool(GlobalAvgPool, draw, x),
    "global_max_pool": lambda draw, x: _global_pool(GlobalMaxPool, draw, x),
    "pad": _pad,
    "upsample": _upsample,
}
ROWS: Uses = {"conv": _conv_nd, "col2im": _col2im}
