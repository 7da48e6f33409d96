"""3x3 convolution by Winograd's F(4, 3) or F(2, 3): 4 or 2.25 times fewer multiplications.

The map is covered with tiles of m x m outputs. A block of tiles that fits in L2 goes through three
stages before the next block starts: transform the inputs to n * n matrices V [channels, tiles];
multiply each with its weights U, which is a 1x1 convolution with tiles for pixels and uses the same
micro-kernel; transform the products back, add bias, run the epilogue, store. V and the products
are in the thread's scratch. The input's halo supplies the zeros around the map; at the lower and
right edge what lies outside the result is not stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cnnc.codegen.kernels.common import (
    channel_counts,
    epilogue_cycles,
    extra_blocks,
    extras_fit,
    finish,
    multiply_add,
    pack_bias,
    pack_extra,
    pieces,
    residuals,
    split,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.winograd import combine, transform, transform_weight
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Value
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class WinogradConv(Kernel):
    """Winograd convolution F(m x m, 3 x 3) in blocks of tiles.

    `block` tiles are transformed at a time; `groups` of `depth` output-channel blocks are computed
    together; `share` is how many parts the output channels are split into so that several threads
    can work on few blocks (each part transforms the inputs anew).
    """

    name: ClassVar[str] = "winograd_conv"
    approximate: ClassVar[bool] = True
    m: int
    block: int
    depth: int
    share: int = 1

    @classmethod
    def candidates(cls, site: Site) -> Iterable[WinogradConv]:
        if not _fits(site):
            return
        target = site.target
        n, _, oh, ow = site.result.dims
        channels = site.operands[1].dims[1]
        blocks = -(-site.result.dims[1] // target.lanes)
        depth = 2 if blocks % 2 == 0 else 1
        for m in (4, 2):
            tiles = -(-oh // m) * -(-ow // m)
            # V takes half of L2; the rest is for the weights that stream through.
            most = max(target.l2_bytes // 2 // ((m + 2) ** 2 * channels * 4), 7)
            step = 14 if depth == 2 else 28
            sizes = {min(tiles, most), min(tiles, max(most // step * step, step))}
            for size in sorted(sizes):
                if size > 2 * most:
                    continue
                block = pieces(tiles, size)[0][1]
                few = -(-tiles // block) * n < 4 and blocks // depth % 2 == 0
                yield cls(m=m, block=block, depth=depth, share=2 if few else 1)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        own, _ = split(site)
        lanes = site.target.lanes
        return (lanes, *(1,) * (len(own) - 1), *extra_blocks(site, lanes)), lanes

    def halo(self, site: Site, operand: int) -> Halo:
        if operand:
            return NO_HALO
        assert isinstance(site.op, Conv2d)
        top, left = site.op.pad[:2]
        h, w = site.operands[0].dims[2:]
        oh, ow = site.result.dims[2:]
        down, across = -(-oh // self.m) * self.m, -(-ow // self.m) * self.m
        return top, left, max(down + 2 - top - h, 0), max(across + 2 - left - w, 0)

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target = site.target
        lanes = target.lanes
        images, out, oh, ow = site.result.dims
        channels = site.operands[1].dims[1]
        in_blocks, out_blocks = -(-channels // lanes), -(-out // lanes)
        n2 = (self.m + 2) ** 2
        tiles = -(-oh // self.m) * -(-ow // self.m)
        products = 0.0
        for _, size, count in pieces(tiles, self.block):
            for _, width, times in pieces(size, _columns(self.depth, target.registers)):
                work = self.depth * width / target.fma_per_cycle
                loads = (self.depth + width) / target.load_per_cycle
                step = max(work, loads, 4.0)
                products += count * times * (channels * step + 2 * self.depth * width + 10)
        products *= n2 * out_blocks / self.depth
        # A transform costs about 5 instructions for each element that it reads and writes.
        inputs = 5.0 * n2 * tiles * in_blocks * self.share / target.fma_per_cycle
        outputs = 5.0 * n2 * tiles * out_blocks / target.fma_per_cycle
        weights = 4.0 * n2 * channels * out_blocks * lanes * -(-tiles // self.block)
        stream = target.stream_bytes_per_cycle(4.0 * n2 * channels * out_blocks * lanes)
        moved = 0.5 * 4.0 * (site.operands[0].elements / images + site.result.elements / images)
        beyond = target.stream_bytes_per_cycle(target.l2_bytes + 1)
        work = max(products, weights / stream) + inputs + outputs + moved / beyond
        return images * work + epilogue_cycles(site, site.target.lanes)

    def relative_error(self, site: Site, weight: Array) -> float:
        """Largest error against float64 on sample inputs, relative to the result's range.

        The sample is some tiles of seeded noise, half of them cut off at zero as after a relu, and
        some of the output channels.
        """
        t = transform(self.m)
        rng = np.random.default_rng(0)
        sample = weight[:: max(len(weight) // 16, 1)]
        tiles = 8
        d = rng.standard_normal((tiles, sample.shape[1], self.m + 2, self.m + 2))
        d[tiles // 2 :] = np.maximum(d[tiles // 2 :], 0)
        d = d.astype(np.float32)
        rows, out = t.input.astype(np.float32), t.output.astype(np.float32)
        u = transform_weight(sample, self.m).astype(np.float32)
        v = (rows @ d @ rows.T).reshape(tiles, sample.shape[1], -1)
        products = np.matmul(u, v.transpose(2, 1, 0))  # [n * n, OC, tiles]
        side = self.m + 2
        grid = products.transpose(1, 2, 0).reshape(len(sample), tiles, side, side)
        got = out @ grid @ out.T
        windows = sliding_window_view(d.astype(np.float64), (3, 3), (2, 3))
        patches = windows.transpose(1, 4, 5, 0, 2, 3).reshape(sample[0].size, -1)
        exact = sample.reshape(len(sample), -1).astype(np.float64) @ patches
        wanted = exact.reshape(len(sample), tiles, self.m, self.m)
        span = np.abs(wanted).max()
        return float(np.abs(got - wanted).max() / span) if span else 0.0

    # -- weights -----------------------------------------------------------------------------

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        lanes = site.target.lanes
        own, _ = split(site)
        if operand == 1:
            return self.pack_weight(array, lanes)
        if operand < len(own):
            return pack_bias(array, lanes)
        return pack_extra(array, lanes)

    def pack_weight(self, weight: Array, lanes: int) -> Array:
        """[group][point][channel][block][lane], a group being `depth` output-channel blocks."""
        out, channels = weight.shape[:2]
        points = (self.m + 2) ** 2
        group = self.depth * lanes
        packed = np.zeros((-(-out // group), points, channels, self.depth, lanes), np.float32)
        for i in range(len(packed)):  # a group at a time bounds the float64 copies
            part = transform_weight(weight[i * group : (i + 1) * group], self.m)
            full = np.zeros((points, group, channels))
            full[:, : part.shape[1]] = part
            split_group = full.reshape(points, self.depth, lanes, channels)
            packed[i] = split_group.transpose(0, 3, 1, 2)
        return packed

    # -- program -----------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    op = site.op
    if not isinstance(op, Conv2d) or site.result.dtype is not DType.F32:
        return False
    if site.constant[0] or not all(site.constant[1 : len(split(site)[0])]):
        return False
    if 0 in site.result.shape or not extras_fit(site, site.target.lanes):
        return False
    plain = op.stride == (1, 1) and op.dilation == (1, 1) and op.groups == 1
    out, channels, kh, kw = site.operands[1].dims
    return plain and (kh, kw) == (3, 3) and channels >= 16 and out >= 16


def _columns(depth: int, registers: int) -> int:
    """How many tiles fit in the registers beside `depth` weight vectors."""
    return max(c for c in range(1, registers) if depth * c + depth + 1 <= registers)


class _Writer:
    """Writes the three stages; holds what they share."""

    def __init__(self, kernel: WinogradConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        inputs, self.extras, self.y = views(p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.lanes = site.target.lanes
        self.m, self.n = kernel.m, kernel.m + 2
        self.images, out, self.oh, self.ow = site.result.dims
        self.channels = site.operands[1].dims[1]
        self.in_blocks = -(-self.channels // self.lanes)
        self.groups = -(-out // (self.lanes * kernel.depth))
        self.across = -(-self.ow // self.m)
        self.tiles = -(-self.oh // self.m) * self.across
        block = kernel.block
        # V: [point][channel block][tile][lane]; products: [point][block of the group][tile][lane].
        self.v_point = self.in_blocks * block * self.lanes
        self.product_point = kernel.depth * block * self.lanes
        self.v = p.scratch("v", self.n**2 * self.v_point)
        self.products = p.scratch("products", self.n**2 * self.product_point)
        self.half = p.scratch("half", self.n**2 * self.lanes)

    def write(self) -> Program:
        p, share = self.p, self.kernel.share
        sizes = pieces(self.tiles, self.kernel.block)
        count = sum(times for _, _, times in sizes)
        with p.parallel("t", 0, self.images * count * share) as t:
            part = p.let("part", t % share)
            which = p.let("block", t // share % count)
            image = p.let("n", t // (share * count))
            first = 0
            for start, size, times in sizes:
                with p.when(which, first, first + times):
                    tile = p.let("tile", (which - first) * size + start)
                    self.transform_inputs(image, tile, size)
                    with p.loop("g", 0, self.groups // share) as g:
                        group = p.let("group", part * (self.groups // share) + g)
                        self.multiply(group, size)
                        self.transform_products(image, group, tile, size)
                first += times
        zero_halo(p, self.y)
        return p.finish()

    def transform_inputs(self, image: Index, first: Index, size: int) -> None:
        """V = B' d B for every channel block and tile of the block."""
        p, n, lanes = self.p, self.n, self.lanes
        matrix = transform(self.m).input
        with p.loop("c", 0, self.in_blocks) as c, p.loop("k", 0, size) as k:
            tile = p.let("at", first + k)
            top = p.let("top", tile // self.across * self.m - self.op.pad[0])
            left = p.let("left", tile % self.across * self.m - self.op.pad[1])
            with p.loop("j", 0, n) as j:
                column = [
                    p.bind(
                        "d", p.load(self.x.buffer, self.x.at(image, c, top + i, left + j), lanes)
                    )
                    for i in range(n)
                ]
                for i, value in enumerate(combine(p, matrix, column)):
                    p.store(self.half, (j + i * n) * lanes, value)
            with p.loop("i", 0, n) as i:
                row = [p.bind("d", p.load(self.half, (i * n + j) * lanes, lanes)) for j in range(n)]
                to = p.let("to", i * (n * self.v_point) + (c * size + k) * lanes)
                for j, value in enumerate(combine(p, matrix, row)):
                    p.store(self.v, to + j * self.v_point, value)

    def multiply(self, group: Index, size: int) -> None:
        """products[point] = U[point] V[point] for one group of output-channel blocks."""
        p, lanes, depth = self.p, self.lanes, self.kernel.depth
        panel = self.channels * depth * lanes
        with p.loop("point", 0, self.n**2) as point:
            weights = p.let("weights", (group * self.n**2 + point) * panel)
            for start, width, times in pieces(size, _columns(depth, self.site.target.registers)):
                with p.loop("q", 0, times) as q:
                    acc = p.tile("acc", (depth, 1, width), lanes)
                    column = p.let("column", q * width + start)
                    for first, count, channels in channel_counts(self.channels, lanes):
                        with p.loop("c", 0, count) as c:
                            origin = point * self.v_point + ((first + c) * size + column) * lanes
                            packed = weights + (first + c) * (lanes * depth * lanes)
                            with p.unroll("k", channels) as k:
                                multiply_add(
                                    p,
                                    acc,
                                    self.weight.buffer,
                                    packed + k * (depth * lanes),
                                    self.v,
                                    origin + k,
                                    (0, lanes),
                                )
                    with p.unroll("b", depth) as b, p.unroll("r", width) as r:
                        at = point * self.product_point + (b * size + column + r) * lanes
                        p.store(self.products, at, acc[b, 0, r])

    def transform_products(self, image: Index, group: Index, first: Index, size: int) -> None:
        """y = A' products A, with bias and epilogue, for every tile of the block."""
        p, n, m, lanes = self.p, self.n, self.m, self.lanes
        matrix = transform(m).output
        with p.loop("b", 0, self.kernel.depth) as b, p.loop("k", 0, size) as k:
            out_block = p.let("oc", group * self.kernel.depth + b)
            tile = p.let("at", first + k)
            top, left = p.let("oh", tile // self.across * m), p.let("ow", tile % self.across * m)
            bias = None
            if self.bias is not None:
                bias = p.bind("bias", p.load(self.bias.buffer, out_block * lanes, lanes))
            with p.loop("j", 0, n) as j:
                at = p.let("from", j * self.product_point + (b * size + k) * lanes)
                column = [
                    p.bind("d", p.load(self.products, at + i * (n * self.product_point), lanes))
                    for i in range(n)
                ]
                for i, value in enumerate(combine(p, matrix, column)):
                    p.store(self.half, (j + i * n) * lanes, value)
            with p.loop("i", 0, (top * -1 + self.oh).min(m)) as i:
                row = [p.bind("d", p.load(self.half, (i * n + j) * lanes, lanes)) for j in range(n)]
                for j, value in enumerate(combine(p, matrix, row)):
                    value = value + bias if bias is not None else value
                    place = (image, out_block, top + i, left + j)
                    if j < (self.ow - 1) % m + 1:
                        self.store(value, *place)
                    else:  # only the last column of tiles reaches beyond the result
                        with p.when(left, 0, self.ow - j):
                            self.store(value, *place)

    def store(self, value: Value, *place: Index) -> None:
        result = finish(self.p, self.site, value, self.extras, *place)
        self.p.store(self.y.buffer, self.y.at(*place), result)
