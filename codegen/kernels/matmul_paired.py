"""Products with constant matrices in pairs of products; `conv_paired` explains the algorithm.

The rows of a matrix are the pixels of a map whose channels lie side by side. A strip of rows is
copied to scratch in blocks of channels while its inputs are summed up: rows that lie a power of two
apart would push each other out of L1. If the inputs' size is not fit for pairs, the copy is scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.common import epilogue_cycles, extras_fit, pack_bias, residuals, split
from cnnc.codegen.kernels.matmul import MatMulShape
from cnnc.codegen.kernels.matmul_paired_loops import (
    PairedMatMulLoops,
    flat,
    keeps_strips,
    sizes,
)
from cnnc.codegen.kernels.paired import PairedShape, most_pixels, pack_weight_pairs, pairs_error
from cnnc.codegen.kernels.rows import cut
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array
from cnnc.ir.ops import Dense, MatMul
from cnnc.ir.types import DType

CHUNKS = 12  # parts of the work that threads should find, where there are as many
COPIED = 1.5  # cycles of a vector that is copied to scratch
STARTED = 30.0  # cycles that a part of a row of the result takes to be fetched from beyond L2
ASKED = 1.3  # how much longer weights take that are asked for than if read in one stream at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedMatMul(Kernel):
    """x[..., T, K] times a constant [K, M], or x[N, K] times the weights [M, K] of a dense layer.

    `rows` is how many rows a register tile has; `depth` how many vectors of columns are computed
    for a strip of so many rows at a time: they share the sums of its inputs' products.
    """

    name: ClassVar[str] = "paired_matmul"
    approximate: ClassVar[bool] = True
    rows: int
    depth: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PairedMatMul]:
        if not _fits(site):
            return
        rows, _, columns = sizes(site)
        tile = cut(rows, most_pixels(site.target), 1)[0].length
        blocks = -(-columns // site.target.lanes)
        for depth in _depths(site, -(-rows // tile), blocks):
            yield cls(rows=tile, depth=depth)

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element of a residual is read just before the result's is written in its place.
        return residuals(site)

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    # -- cost ------------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target, (rows, channels, columns) = site.target, sizes(site)
        shape = PairedShape(channels, target.lanes)
        blocks = -(-columns // target.lanes)
        strips = cut(rows, self.rows, 1)
        tiles = sum(part.times * shape.tile_cycles(target, part.length) for part in strips)
        sums = 0.7 * (shape.triples + 2) + 12.0 + COPIED * -(-channels // target.lanes)
        panel, inputs, parts = 4 * shape.panel, 4 * rows * channels, blocks // self.depth
        if parts > 1 and not keeps_strips(site):
            sums *= parts
        # Nobody asks ahead for the weights of the first part, and asking for the others' hides less
        # than half of the time that they take.
        moved = 0.6 * panel * (blocks + self.depth)
        if parts > 1 and inputs > target.l2_bytes * 2 // 3:
            moved += 0.5 * inputs * parts
        if 4 * rows * columns > target.l2_bytes:
            sums += STARTED * parts
        products = blocks * tiles + moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        stream = ASKED * panel * blocks / target.weight_bytes_per_cycle(panel * blocks)
        return max(products, stream) + rows * sums + epilogue_cycles(site, 1)

    def relative_error(self, site: Site, weight: Array) -> float:
        return pairs_error(_filters(site, weight), site.target.lanes)

    # -- weights ---------------------------------------------------------------------------------

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        if operand == 1:
            return pack_weight_pairs(_filters(site, array), site.target.lanes)
        own, _ = split(site)
        return pack_bias(array, site.target.lanes) if 1 < operand < len(own) else array

    # -- program ---------------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return PairedMatMulLoops(flat(site), sizes(site), self.rows, self.depth).write()


def _filters(site: Site, weight: Array) -> Array:
    """The constant as windows of one pixel: [M, K, 1, 1]."""
    if isinstance(site.op, MatMul):
        weight = weight.reshape(weight.shape[-2:])
        weight = weight if site.op.transpose_b else weight.T
    return weight[:, :, None, None]


def _fits(site: Site) -> bool:
    own, _ = split(site)
    op, target = site.op, site.target
    if not isinstance(op, MatMul | Dense) or not all(site.constant[1 : len(own)]):
        return False
    if any(t.dtype is not DType.F32 or 0 in t.shape for t in (*site.operands, *site.results)):
        return False
    if isinstance(op, MatMul) and (op.transpose_a or MatMulShape.of(site).batch):
        return False  # one large matrix of rows meets one matrix
    fits = target.spare_adds_per_cycle > 0 and sizes(site)[1] >= target.lanes
    return fits and extras_fit(site, 1)


def _depths(site: Site, strips: int, blocks: int) -> list[int]:
    """How many vectors of columns may be computed for a strip at a time: one; so many that L2 keeps
    their weights beside a strip's inputs and results, where these are beyond L2; or so many that it
    keeps little else, for inputs that it cannot keep."""
    target = site.target
    panel = 4 * PairedShape(sizes(site)[1], target.lanes).panel
    found = [1]
    for room in (target.l2_bytes // 6, target.l2_bytes * 3 // 4):
        depths = range(found[-1] + 1, min(room // panel, blocks) + 1)
        fit = (d for d in depths if blocks % d == 0 and blocks // d * strips >= CHUNKS)
        found.append(max(fit, default=found[-1]))
    return sorted(set(found))
