"""What convolutions by Winograd's F(m, r) along the height share: all but the products.

All columns of the input pass through the same transform, so that vectors lie along its rows as they
are in plain NCHW, and nothing is shuffled or copied. Rows outside of the input are left out of
their tile's sums; columns outside of it are zeros beside the transformed rows. The products of a
row of tiles are summed up in registers, by point, and transformed back at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnnc.codegen.kernels.common import View, conv_views, store_result, zero_halo, zero_run
from cnnc.codegen.kernels.winograd import combine
from cnnc.codegen.kernels.winograd_axis import AxisTransform, axis_transform
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Constant, Index, Program, ProgramBuilder, Value
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

MOST_POINTS = 10  # beyond it errors grow, but not the gain
REGISTERS = 32  # with less each sum of products takes two loads, which is no gain
FREE_REGISTERS = 8  # beside the sums of a tile, for the transform back of one column of several
START_CYCLES = 500.0  # of a call: code that is not in L1 at first
TILE_CYCLES = 60.0  # to begin with a row of tiles
BACK_CYCLES = 1.0  # for an instruction of the transform back, at one multiply-add a cycle


def height_transforms(site: Site) -> Iterator[AxisTransform]:
    """The transforms down the height that are worth considering for a convolution, if there are
    registers to sum up in."""
    op = site.op
    assert isinstance(op, Conv2d)
    if site.target.registers < REGISTERS:
        return
    stride, kh, oh = op.stride[0], site.operands[1].dims[2], site.result.dims[2]
    if op.dilation[0] != 1 or stride >= kh:
        return
    for m in range(2, min(MOST_POINTS, oh) + 1):
        transform = axis_transform(m, kh, stride)
        if transform.points <= MOST_POINTS and transform.n <= 0.8 * m * kh:
            yield transform


def height_transform(site: Site, m: int) -> AxisTransform:
    """The transform down the height that gives m results."""
    assert isinstance(site.op, Conv2d)
    return axis_transform(m, site.operands[1].dims[2], site.op.stride[0])


def height_weights(transform: AxisTransform, weight: Array) -> Array:
    """The transformed weight [OC, IC, kw, product] of [OC, IC, kh, kw]."""
    return transform.weights(weight.swapaxes(2, 3))


def height_error(transform: AxisTransform, weight: Array) -> float:
    """The largest error on sample data, relative to the result's range."""
    return transform.relative_error(weight.swapaxes(2, 3))


@dataclass(frozen=True, slots=True)
class Columns:
    """The input of a row of tiles, transformed: [channel][product][column].

    `width` is how many columns are read, from the first one on that a window starts at.
    """

    site: Site
    transform: AxisTransform
    width: int

    @property
    def tiles(self) -> int:
        """How many rows of tiles there are."""
        return -(-self.site.result.dims[2] // self.transform.m)

    @property
    def pitch(self) -> int:
        """Elements of a transformed row."""
        assert isinstance(self.site.op, Conv2d)
        lanes, source = self.site.target.lanes, self.site.operands[0].dims[3]
        written = self.site.op.pad[1] + -(-source // lanes) * lanes
        return -(-max(written, self.width) // lanes) * lanes

    @property
    def elements(self) -> int:
        """Elements of all channels."""
        return self.site.operands[1].dims[1] * self.transform.n * self.pitch

    @property
    def back(self) -> float:
        """Predicted cycles to transform the results of one vector back."""
        work = self.transform.output_work + self.transform.points
        return BACK_CYCLES * work / self.site.target.fma_per_cycle

    def cycles(self, products: float) -> float:
        """Predicted cycles of the whole layer without its epilogue, where those of a row of tiles
        are known for all that follows the transform of its input."""
        transform, target = self.transform, self.site.target
        images, channels, _, w = self.site.operands[0].dims
        work = sum(count * (count / 2 + 1) for count in transform.phases) / target.fma_per_cycle
        vector = max(work, transform.span / target.load_per_cycle) + 1.5 * transform.n
        inputs = channels * (-(-w // target.lanes) * vector + transform.n)
        moved = self.site.operands[0].elements * 4 + self.site.result.elements * 4
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        row = TILE_CYCLES + inputs + products
        return START_CYCLES + images * self.tiles * row + beyond

    def at(self, channel: Index, product: int, column: Index) -> Index:
        """Where an element is; columns count from the first one that a window starts at."""
        return (channel * self.transform.n + product) * self.pitch + column

    def heights(self) -> Iterator[tuple[int, int, int]]:
        """Rows of tiles of the same height: (first, end, rows of the result in each)."""
        m, oh = self.transform.m, self.site.result.dims[2]
        whole, rest = divmod(oh, m)
        if whole:
            yield 0, whole, m
        if rest:
            yield whole, whole + 1, rest

    def write(self, p: ProgramBuilder, x: View, buffer: str, image: Index, tile: Index) -> None:
        """Transforms a row of tiles of all channels, from x to the buffer."""
        assert isinstance(self.site.op, Conv2d)
        (above, left, _, _), lanes = self.site.op.pad, self.site.target.lanes
        _, channels, _, w = x.type.dims
        whole, rest = divmod(w, lanes)
        top = p.let("top", tile * self.transform.step - above)
        for first, end, *inputs in self._bands(above):
            with p.when(tile, first, end), p.loop("c", 0, channels) as c:
                row = p.let("row", x.at(image, c, top, 0))
                target = p.let("target", self.at(c, 0, Index(left)))
                with p.loop("j", 0, whole) as j:
                    place = row + j * lanes, target + j * lanes
                    self._vector(p, x, buffer, place, range(*inputs), lanes)
                if rest:
                    place = row + whole * lanes, target + whole * lanes
                    self._vector(p, x, buffer, place, range(*inputs), rest)
        written = left + -(-w // lanes) * lanes
        for start, stop in ((0, left), (written, self.width)):
            if start < stop:
                with p.loop("row", 0, channels * self.transform.n) as r:
                    zero_run(p, buffer, r * self.pitch + start, stop - start)

    def _bands(self, above: int) -> Iterator[tuple[int, int, int, int]]:
        """Rows of tiles that read the same of their inputs: (first, end, first input, end)."""
        h, span, step = self.site.operands[0].dims[2], self.transform.span, self.transform.step
        tops = [tile * step - above for tile in range(self.tiles)]
        read = [(max(0, -top), max(0, min(span, h - top))) for top in tops]
        first = 0
        for tile, inputs in enumerate(read):
            if tile + 1 == len(read) or read[tile + 1] != inputs:
                yield first, tile + 1, *inputs
                first = tile + 1

    def _vector(
        self,
        p: ProgramBuilder,
        x: View,
        buffer: str,
        place: tuple[Index, Index],
        inputs: range,
        count: int,
    ) -> None:
        """One vector of neighbouring columns; `place` is where in x and in the buffer."""
        lanes, (source, target), pitch = self.site.target.lanes, place, x.pitch(2)
        rows: dict[int, Value] = {
            i: p.bind("x", p.load(x.buffer, source + i * pitch, lanes, count=count)) for i in inputs
        }
        first, stride = 0, self.transform.stride
        for phase, products in enumerate(self.transform.phases):
            mine = [i for i in rows if i % stride == phase]
            matrix = self.transform.input[first : first + products, mine]
            values = self._combined(p, matrix, [rows[i] for i in mine], len(inputs))
            for product, value in enumerate(values, first):
                p.store(buffer, target + product * self.pitch, value)
            first += products

    def _combined(
        self, p: ProgramBuilder, matrix: Array, rows: Sequence[Value], read: int
    ) -> list[Value]:
        """matrix @ rows, where `read` of all inputs are not left out."""
        if read == self.transform.span:
            return combine(p, matrix, rows)
        zero = Constant(self.site.target.lanes, 0.0)
        return [combine(p, row[None], rows)[0] if row.any() else zero for row in matrix]


class ColumnWriter(ABC):
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, name: str, source: Columns) -> None:
        assert isinstance(source.site.op, Conv2d)
        self.source, self.site, self.op = source, source.site, source.site.op
        self.transform = source.transform
        self.p = p = ProgramBuilder(name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(p, self.site)
        self.v = p.scratch("v", source.elements)

    def write(self) -> Program:
        """The program, whose rows of tiles are shared out."""
        p, images, tiles = self.p, self.site.result.dims[0], self.source.tiles
        with p.parallel("t", 0, images * tiles) as t:
            image = p.let("n", t // tiles) if images > 1 else Index(0)
            tile = p.let("tile", t % tiles) if images > 1 else t
            self.source.write(p, self.x, self.v, image, tile)
            top = p.let("oh", tile * self.transform.m)
            for first, end, rows in self.source.heights():
                with p.when(tile, first, end):
                    self.multiply(image, top, rows)
        zero_halo(p, self.y)
        return p.finish()

    @abstractmethod
    def multiply(self, image: Index, top: Index, rows: int) -> None:
        """The results of a row of tiles: `rows` of each tile, from row `top` on."""

    def store(
        self,
        sums: Sequence[Value],
        bias: Value | None,
        place: tuple[Index, Index, Index, Index],
        rows: int,
        count: int = 0,
    ) -> None:
        """Stores what a tile's sums by point give: its first rows from `place` on."""
        image, channel, top, column = place
        for i, result in enumerate(combine(self.p, self.transform.output, sums)[:rows]):
            at = image, channel, top + i, column
            value = result if bias is None else result + bias
            store_result(self.p, self.site, value, self.extras, self.y, *at, count=count)
