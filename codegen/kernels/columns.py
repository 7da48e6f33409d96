"""What convolutions by Winograd's F(m, r) along the height share: the transformed input.

All columns of the input pass through the same transform, so that vectors lie along its rows as they
are in plain NCHW, and nothing is shuffled or copied. Rows outside of the input are left out of
their tile's sums; columns outside of it are zeros beside the transformed rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnnc.codegen.kernels.common import View, zero_run
from cnnc.codegen.kernels.strips import reads_few_channels
from cnnc.codegen.kernels.winograd import combine
from cnnc.codegen.kernels.winograd_rows import RowTransform, row_transform
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Constant, Index, ProgramBuilder, Value
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

MOST_POINTS = 10  # beyond it errors grow, but not the gain
REGISTERS = 32  # with less each sum of products takes two loads, which is no gain
FREE_REGISTERS = 4  # beside the sums of a tile
TILE_CYCLES = 60.0  # to begin with a row of tiles


def height_transforms(site: Site) -> Iterator[RowTransform]:
    """The transforms down the height that are worth considering, if the convolution has few input
    channels and there are registers to sum up in."""
    op = site.op
    if site.target.registers < REGISTERS or not reads_few_channels(site):
        return
    assert isinstance(op, Conv2d)
    stride, kh, oh = op.stride[0], site.operands[1].dims[2], site.result.dims[2]
    if op.dilation[0] != 1 or stride >= kh:
        return
    for m in range(2, min(MOST_POINTS, oh) + 1):
        transform = row_transform(m, kh, stride)
        if transform.points <= MOST_POINTS and transform.n <= 0.8 * m * kh:
            yield transform


@dataclass(frozen=True, slots=True)
class Columns:
    """The input of a row of tiles, transformed: [channel][product][column].

    `width` is how many columns are read, from the first one on that a window starts at.
    """

    site: Site
    transform: RowTransform
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
    def cycles(self) -> float:
        """Predicted cycles for a row of tiles."""
        transform, target = self.transform, self.site.target
        _, channels, _, w = self.site.operands[0].dims
        work = sum(count * (count / 2 + 1) for count in transform.phases) / target.fma_per_cycle
        vector = max(work, transform.span / target.load_per_cycle) + 1.5 * transform.n
        return TILE_CYCLES + channels * (-(-w // target.lanes) * vector + transform.n)

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
