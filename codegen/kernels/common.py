"""What kernels share: addressing by layout, the epilogue, packing of weights, borders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from cnnc.codegen.scalar import WORK, emit_scalar
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Constant, Index, ProgramBuilder, TileRef, Value, fma, shuffle
from cnnc.ir.op import Array, Elementwise, Fusable, Step
from cnnc.ir.ops import Conv2d, PreparedConv2d
from cnnc.ir.types import Layout, TensorType

Place = Index | int

LONG = 8.0  # multiply-adds of an epilogue that is worth passing through abreast
ABREAST, CHAIN = 4, 4  # how many values at most, and the registers that each takes


def view_of(p: ProgramBuilder, name: str, type: TensorType) -> View:
    """Declares the program's next buffer, which holds a tensor of this type."""
    return View(p.buffer(name, type.dtype), type)


@dataclass(frozen=True, slots=True)
class View:
    """A buffer seen through its type: logical places -> offsets in elements."""

    buffer: str
    type: TensorType

    @property
    def block(self) -> int:
        """Channels that lie side by side; 1 if the layout is not blocked."""
        return self.type.layout.block

    def at(self, *place: Place, lane: int = 0) -> Index:
        """The offset of a place: one index for each dimension, the halo's being negative.

        In a blocked layout the second index counts channel blocks.
        """
        return self._offset(place, lane, fixed=())

    def broadcast_at(self, *place: Place) -> Index:
        """The offset of what broadcasting reads at a place of a result of the same or higher rank:
        leading indices, and those of dimensions of size 1, are ignored.
        """
        place = place[len(place) - self.type.rank :]
        return self._offset(place, 0, tuple(d == 1 for d in self.type.dims))

    def _offset(self, place: Sequence[Place], lane: int, fixed: Sequence[bool]) -> Index:
        dims = self.type.physical
        halo = self.type.layout.halo
        offset: Place = lane
        pitch = self.block
        for axis in range(self.type.rank - 1, -1, -1):
            if not (fixed and fixed[axis]):
                offset = offset + place[axis] * pitch
            if self.type.rank == 4 and axis >= 2:
                offset = offset + halo[axis - 2] * pitch
            pitch *= dims[axis]
        return Index.of(offset)

    def pitch(self, axis: int) -> int:
        """The distance between neighbours along a dimension, in elements."""
        dims = self.type.physical
        return prod(dims[axis + 1 :])


def views(p: ProgramBuilder, site: Site, *names: str) -> tuple[list[View], list[View], View]:
    """Declares the program's buffers: (the op's own operands, the epilogue's extras, the result).

    `names` are those of the own operands. Constant extras are packed (`pack_extra`) and viewed so.
    """
    own, extra = split(site)
    inputs = [view_of(p, n, t) for n, t in zip(names, own, strict=False)]
    extras = [view_of(p, "extra", t) for t in extra]
    block = site.result.layout.block
    constant = site.constant[len(own) :]
    if block > 1:
        extras = [
            constant_view(v, block) if c else v for v, c in zip(extras, constant, strict=True)
        ]
    return inputs, extras, view_of(p, "y", site.result)


def conv_views(p: ProgramBuilder, site: Site) -> tuple[View, View, View | None, list[View], View]:
    """The same of a convolution: (x, weight, bias if there is one, the extras, the result)."""
    (x, weight, *bias), extras, y = views(p, site, "x", "weight", "bias")
    return x, weight, bias[0] if bias else None, extras, y


def split(site: Site) -> tuple[tuple[TensorType, ...], tuple[TensorType, ...]]:
    """(the op's own operand types, those of the epilogue's extra operands)."""
    border = len(site.operands) - extras_of(site)
    return site.operands[:border], site.operands[border:]


def extra_blocks(site: Site, block: int) -> tuple[int, ...]:
    """The layout block for each extra operand beside a result with this block."""
    _, extras = split(site)
    constant = site.constant[len(site.operands) - len(extras) :]
    return tuple(1 if c else extra_block(t, block) for t, c in zip(extras, constant, strict=True))


def extras_fit(site: Site, block: int) -> bool:
    """Whether the epilogue can be computed in place of the anchor's result: it does not enlarge
    it, and a blocked kernel can read the extra operands, which are constants or of rank 4.
    """
    own, extras = split(site)
    if isinstance(site.op, Fusable) and site.op.infer_anchor(*own).shape != site.result.shape:
        return False
    constant = site.constant[len(own) :]
    return block == 1 or all(c or t.rank == 4 for t, c in zip(extras, constant, strict=True))


def extras_of(site: Site) -> int:
    """How many of the site's operands belong to the epilogue."""
    return sum(step.extras for step in steps_of(site))


def steps_of(site: Site) -> tuple[Step, ...]:
    """The epilogue's steps; a lone elementwise op is its own only step."""
    if isinstance(site.op, Fusable):
        return site.op.epilogue
    return (Step(site.op),) if isinstance(site.op, Elementwise) else ()


def store_result(
    p: ProgramBuilder,
    site: Site,
    value: Value,
    extras: Sequence[View],
    y: View,
    *place: Place,
    count: int = 0,
    spacing: int = 1,
) -> None:
    """Stores the value at `place` of the result `y`, after the epilogue.

    The value is a vector along the result's innermost axis (the channels of a block, or every
    `spacing`-th place of the last dimension); its first `count` lanes (0: all) are elements of the
    result.
    """

    def load(view: View) -> Value:
        stride = spacing if varies_inside(view, site.result) else 0
        return p.load(view.buffer, view.broadcast_at(*place), value.lanes, stride, count)

    result = run_steps(p, steps_of(site), value, map(load, extras))
    p.store(y.buffer, y.at(*place), result, spacing, count)


def run_steps(
    p: ProgramBuilder, steps: Iterable[Step], value: Value, extras: Iterator[Value]
) -> Value:
    """A chain of elementwise steps applied to a value; `extras` are what they take besides."""
    for step in steps:
        value = emit_scalar(step.op, p, *step.arrange(value, extras))
    return value


def abreast(site: Site, values: int) -> int:
    """How many of that many values in registers should pass through the epilogue abreast.

    One after the other, their long chains of instructions fill what the processor looks ahead to.
    Short ones are better off if results are stored as they come.
    """
    if epilogue_work(site) < LONG:
        return 1
    return max(min((site.target.registers - values) // CHAIN, ABREAST), 1)


def epilogue_work(site: Site) -> float:
    """Multiply-adds that take as long as the epilogue on one vector."""
    return steps_work(steps_of(site))


def steps_work(steps: Iterable[Step]) -> float:
    """Multiply-adds that take as long as elementwise steps on one vector."""
    return sum(WORK.get(type(step.op), 1.0) for step in steps)


def epilogue_cycles(site: Site, block: int) -> float:
    """Predicted cycles of the epilogue on the whole result, in a layout with this block."""
    dims, target = site.result.dims, site.target
    if block > 1:
        vectors = dims[0] * -(-dims[1] // block) * prod(dims[2:])
    else:
        vectors = prod(dims[:-1]) * -(-dims[-1] // target.lanes)
    return vectors * epilogue_work(site) / target.fma_per_cycle


def multiply_add(
    p: ProgramBuilder,
    acc: TileRef,
    weight: str,
    packed: Index,
    source: str,
    origin: Index,
    pitches: tuple[int, int],
) -> None:
    """acc[b, r, q] += weight[packed + b * lanes ...] * source[origin + r * down + q * across].

    The micro-kernel of every convolution: a few weight vectors are held, each source element is
    broadcast to all of them. `pitches` is (down, across), in elements.
    """
    blocks, rows, columns = acc.shape
    vectors = [
        p.bind("w", p.load(weight, packed + b * acc.lanes, acc.lanes)) for b in range(blocks)
    ]
    with p.unroll("r", rows) as r, p.unroll("q", columns) as q:
        offset = origin + r * pitches[0] + q * pitches[1]
        pixel = p.bind("p", p.load(source, offset, acc.lanes, stride=0))
        for b, vector in enumerate(vectors):
            p.set(acc[b, r, q], fma(vector, pixel, acc[b, r, q]))


def store_scaled(
    p: ProgramBuilder,
    site: Site,
    acc: TileRef,
    scale: Value,
    views: tuple[View | None, Sequence[View], View],
    place: tuple[Index, Index, Index, Index],
) -> None:
    """Stores the sums acc[0, row, column], scaled, with bias and epilogue, from `place` on.

    `views` are the bias's, those of the epilogue's operands and the result's.
    """
    (bias_view, extras, y), (image, block, row, column), lanes = views, place, acc.lanes
    bias = load_bias(p, bias_view, block, lanes)
    turns = abreast(site, acc.shape[1] * acc.shape[2])
    with p.unroll("r", acc.shape[1]) as r, p.unroll("q", acc.shape[2], turns) as q:
        at = image, block, row + r, column + q
        value = acc[0, r, q] * scale if bias is None else fma(acc[0, r, q], scale, bias)
        store_result(p, site, p.bind("y", value), extras, y, *at)


def sum_lanes(p: ProgramBuilder, vectors: Sequence[Value]) -> Value:
    """The sums over the lanes of some vectors, at most as many as there are lanes: the first lanes
    of one vector.

    Halves of two vectors are added at a time, so that sums of both lie beside each other.
    """
    lanes = width = vectors[0].lanes  # `width` lanes hold one vector's parts
    left: list[tuple[Value, list[int]]] = [(v, [i] * lanes) for i, v in enumerate(vectors)]
    while width > 1:
        half = width // 2
        blocks = [at for block in range(0, lanes, width) for at in (block, lanes + block)]
        low = [at + j for at in blocks for j in range(half)]
        merged: list[tuple[Value, list[int]]] = []
        for i in range(0, len(left), 2):
            (a, owners), (b, others) = left[i], left[min(i + 1, len(left) - 1)]
            both = [*owners, *others]
            total = shuffle(a, b, low) + shuffle(a, b, [at + half for at in low])
            merged.append((p.bind("total", total), [both[at] for at in low]))
        left, width = merged, half
    (whole, owners), *more = left
    assert not more, "there are more vectors than lanes"
    order = [owners.index(i) for i in range(len(vectors))]
    return p.bind("sums", shuffle(whole, whole, order + [0] * (lanes - len(order))))


def load_bias(p: ProgramBuilder, bias: View | None, block: Index, lanes: int) -> Value | None:
    """The packed bias of a block of channels, if there is one."""
    if bias is None:
        return None
    return p.bind("bias", p.load(bias.buffer, block * lanes, lanes))


def set_bias(p: ProgramBuilder, acc: TileRef, bias: View, block: Index) -> None:
    """Starts a tile of [channel block, ...] with the bias; `block` is its first block."""
    blocks, rows, columns = acc.shape
    with p.unroll("b", blocks) as b:
        value = p.bind("bias", p.load(bias.buffer, (block + b) * acc.lanes, acc.lanes))
        with p.unroll("r", rows) as r, p.unroll("q", columns) as q:
            p.set(acc[b, r, q], value)


def varies_inside(view: View, result: TensorType) -> bool:
    """Whether the view has neighbours along the result's innermost axis (else it is broadcast)."""
    if result.layout.block > 1:
        return view.block > 1
    return bool(view.type.rank) and view.type.dims[-1] != 1


def extra_block(type: TensorType, block: int) -> int:
    """The block that an extra operand needs beside a result with this block."""
    channels = type.dims[-3] if type.rank >= 3 else 1
    return block if channels != 1 else 1


def residuals(site: Site) -> tuple[int, ...]:
    """The extra operands as large as the result. A kernel that reads each of their elements just
    before it writes the result's can work in their memory.
    """
    own, extras = split(site)
    shape = site.result.shape
    return tuple(len(own) + i for i, t in enumerate(extras) if t.shape == shape)


def window_halo(site: Site) -> Halo:
    """The border of a convolution's input that its windows reach."""
    op = site.op
    if isinstance(op, PreparedConv2d):
        return NO_HALO
    assert isinstance(op, Conv2d)
    top, left = op.pad[:2]
    (h, w), (oh, ow) = site.operands[0].dims[2:], site.result.dims[2:]
    rows, columns = op.extent(site.operands[1])
    bottom = (oh - 1) * op.stride[0] + rows - top - h
    right = (ow - 1) * op.stride[1] + columns - left - w
    return top, left, max(bottom, 0), max(right, 0)


def blocked(array: Array, block: int) -> Array:
    """[N, C, H, W] as [N, ceil(C / block), H, W, block], the lanes past C zero."""
    n, c, h, w = array.shape
    if block == 1:
        return array
    count = -(-c // block)
    padded = np.zeros((n, count * block, h, w), array.dtype)
    padded[:, :c] = array
    return padded.reshape(n, count, block, h, w).transpose(0, 1, 3, 4, 2)


def pack_bias(array: Array, lanes: int) -> Array:
    """[channel block][lane], the lanes past the last channel zero."""
    return np.pad(array, (0, -array.size % lanes))


def pack_panels(panels: Array, source: int) -> Array:
    """Weights [panel, block, lane, channel, kh, kw] in the order in which tiles read them.

    That is [panel][channel block][kh][kw][channel][block][lane], the input's blocks having `source`
    channels and the last one what is left.
    """
    count, b, lanes, channels, kh, kw = panels.shape
    packed = np.empty((count, channels * kh * kw, b, lanes), panels.dtype)
    for first, blocks, width in channel_counts(channels, source):
        start = first * source
        end = start + blocks * width
        part = packed[:, start * kh * kw : end * kh * kw]
        part = part.reshape(count, blocks, kh, kw, width, b, lanes)
        taken = panels[:, :, :, start:end].reshape(count, b, lanes, blocks, width, kh, kw)
        part[...] = taken.transpose(0, 3, 5, 6, 4, 1, 2)
    return packed.reshape(count, -1)


def pack_extra(array: Array, block: int) -> Array:
    """A constant extra operand as `constant_view` reads it beside a result with this block."""
    lifted = array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim < 4 else array
    return blocked(lifted, block if lifted.shape[1] != 1 else 1)


def lift(type: TensorType) -> TensorType:
    """The type with leading dimensions of 1 up to rank 4, as broadcasting reads it."""
    return replace(type, shape=(1,) * (4 - type.rank) + type.shape) if type.rank < 4 else type


def constant_view(view: View, block: int) -> View:
    """How a packed constant extra operand is read beside a result with this block."""
    type = lift(view.type)
    channels = type.dims[1]
    return View(view.buffer, replace(type, layout=Layout(block if channels != 1 else 1)))


def zero_halo(p: ProgramBuilder, y: View) -> None:
    """Writes the zeros around each map; nothing if the layout has no border."""
    top, left, bottom, right = y.type.layout.halo
    if not any(y.type.layout.halo):
        return
    n, c, h, w = y.type.dims
    maps, rows, columns = n * -(-c // y.block), h + top + bottom, w + left + right
    plane, row = rows * columns * y.block, columns * y.block
    with p.parallel("map", 0, maps) as m:
        start = m * plane
        zero_run(p, y.buffer, start, top * row + left * y.block)
        between = (left + right) * y.block
        if between:
            with p.loop("row", 0, h - 1) as r:
                zero_run(p, y.buffer, start + (r + top) * row + (left + w) * y.block, between)
        last = (top + h - 1) * row + (left + w) * y.block
        zero_run(p, y.buffer, start + last, right * y.block + bottom * row)


def zero_run(p: ProgramBuilder, buffer: str, offset: Index, count: int) -> None:
    """Writes `count` zeros."""
    lanes = 16
    zero = Constant(lanes, 0.0)
    whole = count // lanes
    if whole:
        with p.loop("z", 0, whole) as z:
            p.store(buffer, offset + z * lanes, zero)
    if count % lanes:
        p.store(buffer, offset + whole * lanes, zero, count=count % lanes)


def pieces(total: int, most: int) -> list[tuple[int, int, int]]:
    """Covers 0..total with equal pieces of at most `most`: [(start, length, how many)].

    One entry where the pieces divide evenly, else a second one for the shorter last piece.
    """
    count = -(-total // most)
    length = -(-total // count)
    whole, rest = divmod(total, length)
    found = [(0, length, whole)]
    return [*found, (whole * length, rest, 1)] if rest else found


def channel_counts(channels: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first block, how many blocks, channels in each): the full blocks, then the partial one."""
    whole, rest = divmod(channels, block)
    if whole:
        yield 0, whole, block
    if rest:
        yield whole, 1, rest
