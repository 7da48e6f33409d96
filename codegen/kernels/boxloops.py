"""Loops that move a box (`boxes`): runs, strided runs and transposed tiles.

The dimension that is written side by side is the vectors' one. Where another one is read side by
side, square tiles are read along that and exchanged in registers; where the two lie within each
other (as every second element does) vectors are picked apart or put together instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

from cnnc.codegen.kernels.boxes import Box, Dim
from cnnc.codegen.kernels.common import View
from cnnc.codegen.kernels.rows import walk
from cnnc.ir.loops import Constant, Index, ProgramBuilder, Value, shuffle
from cnnc.ir.types import DType, TensorType

CHUNK = 4096  # elements that are moved as one piece of work
UNROLLED = 4  # vectors side by side in the code
MOST_PICKED = 4  # vectors that are picked apart or put together at once
MOST_PARALLEL = 64  # iterations of the parallel loop, about


@dataclass(frozen=True, slots=True)
class Shape:
    """How a box is moved: by `inner` dimensions at once, the others being loops.

    `kind` is `run` (inner: the dimension written), `tile`, `apart` or `together` (inner: the
    dimension read, which may be missing where elements are left out, and the one written).
    """

    kind: str
    outer: tuple[Dim, ...]
    inner: tuple[Dim, ...]


def shape_of(box: Box, lanes: int) -> Shape:
    """The best way to move a box."""
    dims = box.dims or (Dim(1, 1, 1),)
    last = dims[-1]
    outer = dims[:-1]
    if box.fill is None and last.write == 1 and lanes > 1:
        found = [i for i, dim in enumerate(outer) if dim.read == 1]
        across = outer[found[0]] if found else None
        rest = tuple(d for d in outer if d is not across)
        if 2 <= last.read <= MOST_PICKED and (across is None or across.size == last.read):
            return Shape("apart", rest, (across or Dim(1, 1, 0), last))
        if across is not None and last.read not in (0, 1):
            if across.write == last.size <= MOST_PICKED:
                return Shape("together", rest, (across, last))
            return Shape("tile", rest, (across, last))
    return Shape("run", outer, (last,))


def box_cycles(box: Box, lanes: int) -> float:
    """Predicted cycles, memory aside."""
    shape = shape_of(box, lanes)
    loops, last = prod(d.size for d in shape.outer), shape.inner[-1]
    if shape.kind == "tile":
        tiles = loops * prod(-(-d.size // lanes) for d in shape.inner)
        return 2.5 * lanes * tiles
    if shape.kind == "run" and (last.read not in (0, 1, -1) or last.write != 1):
        return 1.2 * box.elements + 4.0 * loops
    return 1.5 * loops + 2.0 * box.elements / lanes


def moved_view(p: ProgramBuilder, name: str, type: TensorType) -> View:
    """Declares a buffer for boxes: but for truth values, elements of any type are moved as if they
    were float32, several small ones at a time.
    """
    return View(p.buffer(name, DType.BOOL if type.dtype is DType.BOOL else DType.F32), type)


def move_box(p: ProgramBuilder, x: str, y: str, box: Box, lanes: int) -> None:
    """Writes the loops that move a box from buffer `x` to buffer `y`."""
    shape = shape_of(box, lanes)
    mover = _Mover(p, x, y, box, lanes)
    if shape.kind == "run":
        mover.runs(shape)
    elif shape.kind == "tile":
        mover.tiles(shape)
    else:
        mover.picked(shape)


@dataclass(frozen=True, slots=True)
class _Mover:
    p: ProgramBuilder
    x: str
    y: str
    box: Box
    lanes: int

    def runs(self, shape: Shape) -> None:
        (dim,) = shape.inner
        loops, cuts = _cut(dim, CHUNK)
        with self.nest((*shape.outer, loops)) as (read, write, places):
            for count in self.each(places[-1], cuts):
                self.run(read, write, dim, count)

    def run(self, read: Index, write: Index, dim: Dim, count: int) -> None:
        p = self.p

        def vector(v: Index, used: int) -> None:
            if self.box.fill is not None:
                value: Value = Constant(self.lanes, self.box.fill)
            elif dim.read == -1 and self.lanes > 1:
                some = used or self.lanes
                back = p.load(self.x, read - v - (some - 1), self.lanes, count=used)
                picks = [max(some - 1 - i, 0) for i in range(self.lanes)]
                value = shuffle(back, back, picks)
            else:
                value = p.load(self.x, read + v * dim.read, self.lanes, dim.read, used)
            p.store(self.y, write + v * dim.write, value, dim.write, used)

        walk(p, count, self.lanes, UNROLLED, vector)

    def tiles(self, shape: Shape) -> None:
        across, along = shape.inner
        (rows, row_cuts), (columns, column_cuts) = _cut(across, self.lanes), _cut(along, self.lanes)
        with self.nest((*shape.outer, rows, columns)) as (read, write, places):
            for height in self.each(places[-2], row_cuts):
                for width in self.each(places[-1], column_cuts):
                    self.tile(read, write, across, along, (height, width))

    def tile(
        self, read: Index, write: Index, across: Dim, along: Dim, sizes: tuple[int, int]
    ) -> None:
        """`sizes` are how many places of `across` and of `along` there are, at most `lanes`."""
        p, (height, width) = self.p, sizes
        size = max(height, width)
        size = 1 << (size - 1).bit_length()
        vectors: list[Value] = []
        for i in range(size):
            if i < width:
                vectors.append(
                    p.bind("t", p.load(self.x, read + i * along.read, self.lanes, count=height))
                )
            else:
                vectors.append(Constant(self.lanes, 0.0))
        turned = _transposed(p, vectors, size)
        for i in range(height):
            p.store(self.y, write + i * across.write, turned[i], count=width)

    def picked(self, shape: Shape) -> None:
        across, along = shape.inner
        loops, cuts = _cut(along if shape.kind == "apart" else across, self.lanes)
        move = self.apart if shape.kind == "apart" else self.together
        with self.nest((*shape.outer, loops)) as (read, write, places):
            for count in self.each(places[-1], cuts):
                move(read, write, across, along, count)

    def apart(self, read: Index, write: Index, across: Dim, along: Dim, count: int) -> None:
        """`count` groups of neighbours, of which the first goes here, the second there, ..."""
        p, lanes, by = self.p, self.lanes, along.read
        extent = (count - 1) * by + across.size
        vectors = [
            p.bind("t", p.load(self.x, read + i, lanes, count=min(extent - i, lanes)))
            for i in range(0, extent, lanes)
        ]
        for k in range(across.size):
            value = gathered(p, vectors, [min(i * by + k, extent - 1) for i in range(lanes)])
            p.store(self.y, write + k * across.write, value, count=count)

    def together(self, read: Index, write: Index, across: Dim, along: Dim, count: int) -> None:
        """`count` groups of neighbours, the first of each from here, the second from there, ..."""
        p, lanes, by = self.p, self.lanes, along.size
        vectors = [
            p.bind("t", p.load(self.x, read + k * along.read, lanes, count=count))
            for k in range(by)
        ]
        for start in range(0, count * by, lanes):
            flat = range(start, start + lanes)
            value = gathered(p, vectors, [f % by * lanes + f // by for f in flat])
            p.store(self.y, write + start, value, count=min(count * by - start, lanes))

    # -- loops -------------------------------------------------------------------------------

    @contextmanager
    def nest(self, dims: Sequence[Dim]) -> Iterator[tuple[Index, Index, list[Index]]]:
        """Loops over the dimensions, the first ones as one parallel loop: (read, write, places)."""
        p = self.p
        first = next(
            (i for i in range(1, len(dims)) if prod(d.size for d in dims[:i]) >= MOST_PARALLEL),
            len(dims),
        )
        with ExitStack() as stack:
            t = stack.enter_context(p.parallel("t", 0, prod(d.size for d in dims[:first])))
            places: list[Index] = []
            for i, dim in enumerate(dims):
                if dim.size == 1:
                    places.append(Index(0))
                elif i < first:
                    inner = prod(d.size for d in dims[i + 1 : first])
                    number = t // inner if inner > 1 else t
                    is_first = all(d.size == 1 for d in dims[:i])
                    places.append(p.let("i", number if is_first else number % dim.size))
                else:
                    places.append(stack.enter_context(p.loop("i", 0, dim.size)))
            read, write = Index(self.box.read), Index(self.box.write)
            for place, dim in zip(places, dims, strict=True):
                read, write = read + place * dim.read, write + place * dim.write
            yield read, write, places

    def each(self, place: Index, cuts: Sequence[tuple[int, int, int]]) -> Iterator[int]:
        """The lengths of the pieces, each while that piece's own code is written."""
        for start, stop, length in cuts:
            if len(cuts) == 1:
                yield length
            else:
                with self.p.when(place, start, stop):
                    yield length


def _cut(dim: Dim, by: int) -> tuple[Dim, list[tuple[int, int, int]]]:
    """The dimension as pieces of `by` elements: the loop, and [(first, stop, length)] of them."""
    whole, rest = divmod(dim.size, by)
    cuts = [(0, whole, by)] if whole else []
    if rest:
        cuts.append((whole, whole + 1, rest))
    return Dim(whole + bool(rest), by * dim.read, by * dim.write), cuts


def _transposed(p: ProgramBuilder, rows: Sequence[Value], size: int) -> list[Value]:
    """The first `size` lanes of as many vectors exchanged with those; `size` is a power of 2."""
    rows, lanes = list(rows), rows[0].lanes
    step = 1
    while step < size:
        for i in range(size):
            if i & step:
                continue
            a, b = rows[i], rows[i + step]
            low = [n if not n & step else lanes + n - step for n in range(lanes)]
            high = [n + step if not n & step else lanes + n for n in range(lanes)]
            rows[i] = p.bind("t", shuffle(a, b, low))
            rows[i + step] = p.bind("t", shuffle(a, b, high))
        step *= 2
    return rows


def gathered(p: ProgramBuilder, vectors: Sequence[Value], picks: Sequence[int]) -> Value:
    """The lanes that `picks` names, counted through all the vectors."""
    lanes = vectors[0].lanes
    sources = sorted({pick // lanes for pick in picks if pick < lanes * len(vectors)})
    first = vectors[sources[0]]
    second = vectors[sources[1]] if len(sources) > 1 else first
    places = {sources[0]: 0} | ({sources[1]: lanes} if len(sources) > 1 else {})
    lanes_of = [places.get(pick // lanes, 0) + pick % lanes for pick in picks]
    value: Value = shuffle(first, second, lanes_of)
    for source in sources[2:]:
        own = [
            lanes + pick % lanes if pick // lanes == source else i for i, pick in enumerate(picks)
        ]
        value = shuffle(p.bind("t", value), vectors[source], own)
    return value
