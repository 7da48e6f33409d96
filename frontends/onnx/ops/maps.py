"""Maps and windows over them: what convolutions, pools and padding share.

The graph has two-dimensional maps, [N, C, H, W]. One-dimensional ones [N, C, L] become
[N, C, 1, L], and their results are reshaped back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.ir.op import Op
from cnnc.ir.ops import Reshape
from cnnc.ir.types import Sym

Pair = tuple[int, int]
Border = tuple[int, int, int, int]

_MOST = 1 << 16  # elements that a window or a border may have along an axis


@dataclass(frozen=True)
class Window:
    """A window over maps. `same` is `auto_pad`, where the padding follows from the output."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    pad: Border  # top, left, bottom, right
    same: str


def maps(call: Call, index: int) -> tuple[str, int]:
    """(an input as maps, the rank that it had)."""
    x = call.operand(index)
    rank = call.type(x).rank
    if rank == 4:
        return x, rank
    if rank != 3:
        raise Unsupported(f"an operand of rank {rank}, not [N,C,H,W] or [N,C,L]")
    return call.add(Reshape(shape=(0, 0, 1, -1)), x), rank


def finish_maps(call: Call, rank: int, op: Op, *operands: str) -> None:
    """Wires an op on maps as the node's result, of the rank that its operand had."""
    if rank == 4:
        return call.result(op, *operands)
    y = call.add(op, *operands)
    return call.result(Reshape(shape=(0, 0, -1)), y)


def pair(call: Call, name: str, rank: int, default: int = 1) -> Pair:
    """An attribute with a number for each axis of the maps."""
    given = call.wholes(name, (default,) * (rank - 2))
    if len(given) != rank - 2 or min(given) < 1 or max(given) > _MOST:
        raise Unsupported(f"{name}={list(given)} for an operand of rank {rank}")
    rows, columns = (default,) * (4 - rank) + given
    return rows, columns


def read_window(call: Call, x: str, kernel: Sequence[int], transposed: bool = False) -> Window:
    """The window's attributes; for a transposed convolution SAME is left to the caller.

    Args:
        call: the node.
        x: its operand, as maps.
        kernel: the window's sizes, as many as the node's operand has spatial axes.
        transposed: whether it is a transposed convolution.
    """
    rank = len(kernel) + 2
    if max(kernel) > _MOST:
        raise Unsupported(f"a window of {list(kernel)}")
    sizes = (1,) * (4 - rank) + tuple(kernel)
    stride, dilation = pair(call, "strides", rank), pair(call, "dilations", rank)
    window = Window((sizes[0], sizes[1]), stride, dilation, (0, 0, 0, 0), "")
    pads = call.wholes("pads", (0,) * (2 * rank - 4))
    mode = call.word("auto_pad", "NOTSET")
    if mode == "VALID":
        return window
    if mode == "NOTSET":
        return Window(window.kernel, stride, dilation, border(pads, rank), "")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad={mode}")
    if transposed:
        return Window(window.kernel, stride, dilation, (0, 0, 0, 0), mode)
    return Window(window.kernel, stride, dilation, _same(call, x, window, mode), mode)


def border(pads: Sequence[int], rank: int) -> Border:
    """ONNX's (begins, ends) of the spatial axes as (top, left, bottom, right)."""
    if len(pads) != 2 * rank - 4 or min(pads) < 0 or max(pads) > _MOST:
        raise Unsupported(
            f"pads={list(pads)} for an operand of rank {rank}", "cropping is not supported"
        )
    if rank == 3:
        return 0, pads[0], 0, pads[1]
    return pads[0], pads[1], pads[2], pads[3]


def _same(call: Call, x: str, window: Window, mode: str) -> Border:
    """The padding that makes the output ceil(size / stride)."""
    totals = []
    for axis, (k, s, d) in enumerate(
        zip(window.kernel, window.stride, window.dilation, strict=True)
    ):
        span, size = d * (k - 1) + 1, call.type(x).shape[2 + axis]
        if s == 1:
            totals.append(span - 1)
        elif isinstance(size, Sym):
            raise Unsupported(f"auto_pad={mode} of the symbolic size {size}", fix_size([size.name]))
        else:
            totals.append(max((-(-size // s) - 1) * s + span - size, 0))
    if max(totals) > _MOST:
        raise Unsupported(f"auto_pad={mode} of {max(totals)} elements")
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    first, last = (small, large) if mode == "SAME_UPPER" else (large, small)
    return first[0], first[1], last[0], last[1]
