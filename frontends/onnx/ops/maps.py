"""Maps and windows over them: what convolutions, pools and padding share.

The graph has two-dimensional maps, [N, C, H, W]. One-dimensional ones [N, C, L] become
[N, C, 1, L], and their results are reshaped back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.ir import ops
from cnnc.ir.op import Op
from cnnc.ir.ops import Reshape
from cnnc.ir.types import Dim, Sym

Pair = tuple[int, int]
Border = tuple[int, int, int, int]

_MOST = 1 << 16  # elements that a window or a border may have along an axis


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes, with a number for each of them.

    `same` is `auto_pad`, where the padding follows from the output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    same: str = ""

    @property
    def span(self) -> tuple[int, ...]:
        """What the dilated window covers of each axis."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def pads(self) -> tuple[int, ...]:
        """ONNX's order: what is before each axis, then what is after."""
        return self.before + self.after

    @property
    def pad(self) -> Border:
        """The padding of maps: top, left, bottom, right."""
        (top, left), (bottom, right) = self.before, self.after
        return top, left, bottom, right

    def join(self, other: Window) -> Window:
        """The window over this one's axes and then the other's."""
        return Window(
            self.kernel + other.kernel,
            self.stride + other.stride,
            self.dilation + other.dilation,
            self.before + other.before,
            self.after + other.after,
            self.same,
        )

    def along(self, *axes: int) -> Window:
        """The window along some of its axes."""

        def pick(field: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(field[axis] for axis in axes)

        return Window(
            pick(self.kernel),
            pick(self.stride),
            pick(self.dilation),
            pick(self.before),
            pick(self.after),
            self.same,
        )


POINT = Window((1,), (1,), (1,), (0,), (0,))  # along an axis of maps that the node does not have


def on_maps(window: Window) -> Window:
    """The window with a row axis of its own before the one axis that it has."""
    return POINT.join(window) if len(window.kernel) == 1 else window


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


def pair(values: Sequence[int]) -> Pair:
    """The numbers of the two axes of maps."""
    rows, columns = values
    return rows, columns


def read_window(
    call: Call, sizes: Sequence[Dim], kernel: Sequence[int], transposed: bool = False
) -> Window:
    """The window's attributes; for a transposed convolution SAME is left to the caller.

    Args:
        call: the node.
        sizes: those of the operand's spatial axes.
        kernel: the window's, along each of them.
        transposed: whether it is a transposed convolution.
    """
    axes = len(sizes)
    if len(kernel) != axes:
        raise Unsupported(f"kernel_shape={list(kernel)} for an operand of rank {axes + 2}")
    if not kernel or max(kernel) > _MOST:
        raise Unsupported(f"a window of {list(kernel)}")
    none = (0,) * axes
    stride, dilation = _steps(call, "strides", axes), _steps(call, "dilations", axes)
    window = Window(tuple(kernel), stride, dilation, none, none)
    pads = call.wholes("pads", none * 2)
    mode = call.word("auto_pad", "NOTSET")
    if mode == "VALID":
        return window
    if mode == "NOTSET":
        _check_border(pads, axes)
        return replace(window, before=pads[:axes], after=pads[axes:])
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad={mode}")
    window = replace(window, same=mode)
    return window if transposed else _same(sizes, window)


def _steps(call: Call, name: str, axes: int) -> tuple[int, ...]:
    """An attribute with a number for each axis."""
    given = call.wholes(name, (1,) * axes)
    if len(given) != axes or min(given) < 1 or max(given) > _MOST:
        raise Unsupported(f"{name}={list(given)} for an operand of rank {axes + 2}")
    return given


def _check_border(pads: Sequence[int], axes: int) -> None:
    if len(pads) != 2 * axes or min(pads) < 0 or max(pads) > _MOST:
        raise Unsupported(
            f"pads={list(pads)} for an operand of rank {axes + 2}", "cropping is not supported"
        )


def around(before: Sequence[int], after: Sequence[int]) -> ops.Border:
    """The op that puts zeros around the spatial axes."""
    return ops.Border(before=(0, 0, *before), after=(0, 0, *after))


def border(pads: Sequence[int], rank: int) -> Border:
    """ONNX's (begins, ends) of the spatial axes as (top, left, bottom, right)."""
    _check_border(pads, rank - 2)
    if rank == 3:
        return 0, pads[0], 0, pads[1]
    return pads[0], pads[1], pads[2], pads[3]


def _same(sizes: Sequence[Dim], window: Window) -> Window:
    """The window with the padding that makes the output ceil(size / stride)."""
    totals = []
    for span, s, size in zip(window.span, window.stride, sizes, strict=True):
        if s == 1:
            totals.append(span - 1)
        elif isinstance(size, Sym):
            what = f"auto_pad={window.same} of the symbolic size {size}"
            raise Unsupported(what, fix_size([size.name]))
        else:
            totals.append(max((-(-size // s) - 1) * s + span - size, 0))
    if max(totals) > _MOST:
        raise Unsupported(f"auto_pad={window.same} of {max(totals)} elements")
    return share(window, totals)


def share(window: Window, totals: Sequence[int]) -> Window:
    """The window with that much padding in all: its odd element is at the end for SAME_UPPER."""
    small = tuple(t // 2 for t in totals)
    large = tuple(t - t // 2 for t in totals)
    if window.same == "SAME_UPPER":
        return replace(window, before=small, after=large)
    return replace(window, before=large, after=small)
