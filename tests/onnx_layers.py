"""Layers of random ONNX networks: convolutions, pools, normalisations, products, resizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx_networks import Dims, Drawer, Move

_AUTO = ("SAME_UPPER", "SAME_LOWER", "VALID")


def _window(d: Drawer, sides: tuple[int, ...], dilates: bool, widest: int = 2) -> dict[str, Any]:
    """Kernel, strides, dilations and padding up to `widest` that fit maps of these sides."""
    strides = [d.integer(1, 3) for _ in sides]
    dilations = [d.one_of([1, 1, 2]) if dilates else 1 for _ in sides]
    kernel = [
        d.integer(1, max(1, min(4, (side - 1) // e + 1)))
        for side, e in zip(sides, dilations, strict=True)
    ]
    found: dict[str, Any] = {"kernel_shape": kernel}
    if d.yes():
        found["strides"] = strides
    if dilates and (d.yes() or max(dilations) > 1):
        found["dilations"] = dilations
    how = d.one_of(["none", "pads", "pads", "auto"]) if widest else "none"
    if how == "pads":
        # No window may lie in the padding as a whole.
        found["pads"] = [d.integer(0, min(k - 1, widest)) for k in (*kernel, *kernel)]
    overlap = all(s <= k for s, k in zip(strides, kernel, strict=True))
    if how == "auto" and max(dilations) == 1 and overlap:
        found["auto_pad"] = d.one_of(_AUTO)
    return found


def _maps(d: Drawer) -> str | None:
    """A value of maps of two axes, or now and then of one."""
    return d.value(d.one_of([4, 4, 4, 3]))


def conv(d: Drawer) -> None:
    x = _maps(d)
    if x is None:
        return
    _, channels, *sides = d.shapes[x]
    how = _window(d, tuple(sides), True)
    kernel = how["kernel_shape"]
    groups = d.divisor(channels)
    out = groups * d.one_of([1, 2, 3] if groups > 1 else [1, 2, 3, 8, 16, 21, 32])
    per_group = channels // groups
    weight = d.weight(out, per_group, *kernel, depth=per_group * int(np.prod(kernel)))
    if d.yes():
        del how["kernel_shape"]
    if groups > 1 or d.yes():
        how["group"] = groups
    d.add("Conv", [x, weight, *([d.floats(out)] if d.yes() else [])], **how)


def conv_transpose(d: Drawer) -> None:
    x = _maps(d)
    if x is None:
        return
    _, channels, *sides = d.shapes[x]
    how = _window(d, (3,) * len(sides), True, 0)
    kernel, strides = how["kernel_shape"], how.get("strides", [1] * len(sides))
    dilations = how.get("dilations", [1] * len(sides))
    groups, more = d.divisor(channels), [0] * len(sides)
    if d.yes():
        more = [d.integer(0, s - 1) for s in strides]
        how["output_padding"] = more
    whole = [
        (side - 1) * s + e * (k - 1) + 1
        for side, s, e, k in zip(sides, strides, dilations, kernel, strict=True)
    ]
    if d.yes():
        cut = [d.integer(0, min(2, size - 1)) for size in whole]
        how["pads"] = [
            *cut,
            *(d.integer(0, min(2, size - 1 - c)) for size, c in zip(whole, cut, strict=True)),
        ]
    per_group = d.integer(1, 3)
    weight = d.weight(channels, per_group, *kernel, depth=channels)
    d.add(
        "ConvTranspose",
        [x, weight, *([d.floats(per_group * groups)] if d.yes() else [])],
        group=groups,
        **how,
    )


def pool(d: Drawer) -> None:
    x = _maps(d)
    if x is None:
        return
    kind = d.one_of(["MaxPool", "AveragePool", "LpPool"])
    if kind == "LpPool" and d.opset < 11:
        kind = "MaxPool"
    since = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[kind]
    how = _window(d, d.shapes[x][2:], d.opset >= since)
    if kind == "AveragePool" and d.yes():
        how["count_include_pad"] = 1
    if d.opset >= (18 if kind == "LpPool" else 10) and "auto_pad" not in how and d.yes():
        how["ceil_mode"] = 1
    d.add(kind, [x], _rounded_up(d.shapes[x], how) if "ceil_mode" in how else None, **how)


def _rounded_up(shape: Dims, how: dict[str, Any]) -> Dims:
    """The shape of what is pooled; inference forgot in some opsets that no window starts behind."""
    sides, ones = shape[2:], [1] * len(shape[2:])
    pads = how.get("pads", [0] * 2 * len(sides))
    found = []
    for side, k, s, e, a, b in zip(
        sides,
        how["kernel_shape"],
        how.get("strides", ones),
        how.get("dilations", ones),
        pads[: len(sides)],
        pads[len(sides) :],
        strict=True,
    ):
        count = -(-(side + a + b - e * (k - 1) - 1) // s) + 1
        found.append(count - ((count - 1) * s >= side + a))
    return (*shape[:2], *found)


def global_pool(d: Drawer) -> None:
    x = _maps(d)
    if x is not None:
        d.add(d.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x])


def batch_norm(d: Drawer) -> None:
    x = d.value()
    if x is None or len(d.shapes[x]) < 2:
        return
    c = d.shapes[x][1]
    own = [d.positive(c), d.floats(c), d.floats(c), d.positive(c)]
    d.add("BatchNormalization", [x, *own], epsilon=d.one_of([0.01, 1e-5]))


def norm(d: Drawer) -> None:
    """Instance, group or layer normalisation, or RMS."""
    x = _maps(d)
    if x is None:
        return
    shape = d.shapes[x]
    kinds = ["instance"] + ["layer"] * (d.opset >= 17) + ["group"] * (d.opset >= 18)
    kinds += ["rms"] * (d.opset >= 23)
    kind, c = d.one_of(kinds), shape[1]
    if kind == "instance":
        d.add("InstanceNormalization", [x, d.positive(c), d.floats(c)], epsilon=0.1)
    elif kind == "group":
        groups = d.divisor(c)
        own = c if d.opset >= 21 else groups
        inputs = [x, d.positive(own), d.floats(own)]
        d.add("GroupNormalization", inputs, shape, num_groups=groups, epsilon=0.1)
    else:
        axis = d.integer(1, len(shape) - 1)
        inputs = [x, d.positive(*shape[axis:])]
        inputs += [d.floats(*shape[axis:])] if kind == "layer" and d.yes() else []
        axis -= len(shape) * d.yes()
        name = "LayerNormalization" if kind == "layer" else "RMSNormalization"
        d.add(name, inputs, shape, axis=axis, epsilon=0.1)


def lrn(d: Drawer) -> None:
    x = d.value(4)
    if x is not None:
        d.add("LRN", [x], size=d.one_of([1, 3, 5]), alpha=0.3, beta=0.75, bias=1.0)


def gemm(d: Drawer) -> None:
    x = d.value()
    if x is None:
        return
    if len(d.shapes[x]) != 2:
        x = d.add("Flatten", [x], axis=1)
    depth, out, turned = d.shapes[x][1], d.integer(1, 6), d.yes()
    weight = d.weight(*((out, depth) if turned else (depth, out)), depth=depth)
    how: dict[str, Any] = {"transB": 1} if turned else {}
    if d.yes():
        how |= {"alpha": 0.5, "beta": 2.0}
    bias = d.one_of([(out,), (1, out), (1,), None if d.opset >= 11 else (out,)])
    d.add("Gemm", [x, weight, *([] if bias is None else [d.floats(*bias)])], **how)


def matmul(d: Drawer) -> None:
    x = d.value()
    if x is None:
        return
    *before, depth = d.shapes[x]
    shared = d.one_of([(), tuple(before[1:-1])]) if len(before) > 1 else ()
    d.add("MatMul", [x, d.weight(*shared, depth, d.integer(1, 5), depth=depth)])


def attention(d: Drawer) -> None:
    """A value times itself turned, softmax, times itself."""
    x = _maps(d)
    if x is None:
        return
    rank = len(d.shapes[x])
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = d.add("MatMul", [x, d.add("Transpose", [x], perm=order)])
    d.add("MatMul", [d.add("Softmax", [scores], axis=rank - 1), x])


def resize(d: Drawer) -> None:
    x = d.value(4)
    if x is None:
        return
    scales = [d.one_of([1.0, 2.0, 1.5, 0.5, 3.0]) for _ in range(2)]
    sides = d.shapes[x][2:]
    scales = [s if int(side * s) else 1.0 for s, side in zip(scales, sides, strict=True)]
    if d.opset < 11:
        scales = [max(1.0, s) for s in scales]
        mode = d.one_of(["nearest", "linear"])
        if d.opset < 9:
            d.add("Upsample", [x], mode=mode, scales=[1.0, 1.0, *scales])
        elif mode == "nearest" or max(scales) == min(scales):
            factors = d.constant(np.array([1, 1, *scales], np.float32), "s")
            d.add("Resize" if d.opset == 10 else "Upsample", [x, factors], mode=mode)
        return
    how: dict[str, Any] = {"mode": d.one_of(["nearest", "linear", "cubic"])}
    places = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
    how["coordinate_transformation_mode"] = d.one_of(places)
    if how["mode"] == "nearest":
        roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        how["nearest_mode"] = d.one_of(roundings)
    roi = "" if d.opset >= 13 else d.constant(np.zeros(0, np.float32), "r")
    if d.yes():
        d.add("Resize", [x, roi, d.constant(np.array([1, 1, *scales], np.float32), "s")], **how)
    elif d.opset >= 13:
        size = [int(side * s) for side, s in zip(sides, scales, strict=True)]
        whole = (*d.shapes[x][:2], *size)
        if not d.named:
            d.add("Resize", [x, "", "", d.ints(*whole)], **how)
            return
        batch = d.hidden("Slice", [d.hidden("Shape", [x]), d.ints(0), d.ints(2)])
        target = d.hidden("Concat", [batch, d.ints(*size)], axis=0)
        d.add("Resize", [x, "", "", target], whole, **how)


LAYERS: tuple[Move, ...] = (
    conv,
    conv,
    conv,
    conv_transpose,
    pool,
    pool,
    global_pool,
    batch_norm,
    norm,
    lrn,
    gemm,
    matmul,
    attention,
    resize,
)
