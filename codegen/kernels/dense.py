"""Fully connected layers: several blocks of outputs in registers while the weights stream by.

Weights are packed so that a group of output blocks reads them as one stream. For one image nearly
all time goes into that stream; several images share each weight vector. The products of an output
are summed in `chains` interleaved sums, which depend on the layer alone, so the bits do not depend
on the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.common import (
    View,
    epilogue_cycles,
    extras_fit,
    pieces,
    residuals,
    split,
    store_result,
    views,
)
from cnnc.codegen.kernels.rows import Part, cut, repeat, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, Value, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Dense
from cnnc.ir.types import DType

SUMS = 8  # independent sums that keep the multiply-adders busy
UNROLL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseKernel(Kernel):
    """x[N, K] times constant weights[M, K]; plain layouts.

    `tile` is what stays in registers: (output blocks, images, chains).
    """

    name: ClassVar[str] = "dense"
    several: ClassVar[bool] = True
    tile: tuple[int, int, int]

    @classmethod
    def candidates(cls, site: Site) -> Iterable[DenseKernel]:
        if not _fits(site):
            return
        lanes, registers = site.target.lanes, site.target.registers
        images, total = site.result.dims[0], -(-site.result.dims[1] // lanes)
        # Four groups at least for the threads to share, where there are as many blocks.
        usual = min(SUMS, max(total // 4, 1))
        chains = SUMS // (1 << (usual.bit_length() - 1))
        if images == 1:
            yield cls(tile=(usual, 1, chains))
            return
        for blocks in range(1, min(usual, 4) + 1):
            most = (registers - 1 - blocks) // (blocks * chains)
            if most:
                yield cls(tile=(blocks, pieces(images, most)[0][1], chains))

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target = site.target
        blocks, images, chains = self.tile
        n, features = site.operands[0].dims
        images = min(images, n)
        groups = -(-site.result.dims[1] // (blocks * target.lanes))
        tiles = -(-n // images)
        panel = features * blocks * target.vector_bytes
        work = blocks * images / target.fma_per_cycle
        latency = SUMS / 2 / chains
        loads = (blocks + images) / target.load_per_cycle
        step = max(work, latency, loads, panel / features / target.l2_bytes_per_cycle)
        compute = groups * tiles * (features * step + 4 * blocks * images * chains + 30)
        compute += epilogue_cycles(site, 1)
        weights = groups * panel
        again = weights * (tiles - 1) if panel > target.l2_bytes else 0
        stream = weights / target.weight_bytes_per_cycle(weights)
        stream += again / target.stream_bytes_per_cycle(weights)
        return max(compute, stream)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        own, _ = split(site)
        if operand == 0 or operand >= len(own):
            return array
        lanes = site.target.lanes
        spare = -array.shape[0] % lanes
        padded = np.pad(array, [(0, spare)] + [(0, 0)] * (array.ndim - 1))
        return padded if operand > 1 else self.pack_weight(site, padded)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[group][feature][block][lane] for a weight padded to whole blocks."""
        lanes = site.target.lanes
        groups = []
        for part in self.parts(site):
            width = -(-part.length // lanes) * lanes
            rows = weight[part.start : part.start + part.times * width]
            group = rows.reshape(part.times, width, weight.shape[1])
            groups.append(group.transpose(0, 2, 1).reshape(-1))
        return np.concatenate(groups)

    def parts(self, site: Site) -> list[Part]:
        """The groups of outputs."""
        lanes = site.target.lanes
        return cut(site.result.dims[1], self.tile[0] * lanes, lanes)

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        inputs, extras, y = views(p, site, "x", "weight", "bias")
        writer = _Writer(self, site, p, inputs, extras, y)
        groups, batches = self.parts(site), cut(site.result.dims[0], self.tile[1], 1)
        across, down = (sum(part.times for part in parts) for parts in (batches, groups))
        with p.parallel("t", 0, down * across) as t:
            group, batch = p.let("group", t // across), p.let("batch", t % across)
            for outputs, images in product(groups, batches):
                with (
                    within(p, outputs, groups, group),
                    within(p, images, batches, batch),
                ):
                    writer.tile(outputs.at(group), outputs.length, images.at(batch), images.length)
        return p.finish()


def _fits(site: Site) -> bool:
    return (
        isinstance(site.op, Dense)
        and all(t.dtype is DType.F32 for t in (*site.operands, *site.results))
        and all(site.constant[1 : len(split(site)[0])])
        and 0 not in site.result.shape
        and 0 not in site.operands[0].shape
        and extras_fit(site, 1)
    )


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes register tiles."""

    kernel: DenseKernel
    site: Site
    p: ProgramBuilder
    inputs: list[View]
    extras: list[View]
    y: View

    def tile(self, start: Index, outputs: int, image: Index, images: int) -> None:
        """The results of a group of outputs for a few images."""
        p, lanes = self.p, self.site.target.lanes
        blocks = -(-outputs // lanes)
        acc = p.tile("acc", (self.kernel.tile[2], blocks, images), lanes)
        if len(self.inputs) > 2:
            for b in range(blocks):
                bias = p.bind("bias", p.load(self.inputs[2].buffer, start + b * lanes, lanes))
                with p.unroll("i", images) as i:
                    p.set(acc[0, b, i], bias)
        self.accumulate(acc, start, image)
        for b in range(blocks):
            count = outputs - b * lanes if outputs < (b + 1) * lanes else 0
            with p.unroll("i", images) as i:
                place = (image + i, start + b * lanes)
                total = _total([acc[c, b, i] for c in range(acc.shape[0])])
                store_result(p, self.site, total, self.extras, self.y, *place, count=count)

    def accumulate(self, acc: TileRef, start: Index, image: Index) -> None:
        """All features into the tile; feature k into sum k modulo `chains`."""
        p, lanes = self.p, acc.lanes
        chains, blocks, images = acc.shape
        x, weight = self.inputs[0], self.inputs[1].buffer
        features = x.type.dims[1]
        packed = start * features

        def step(k: Index) -> None:
            first = packed + k * (blocks * lanes)
            vectors: list[Value] = [p.load(weight, first + b * lanes, lanes) for b in range(blocks)]
            if images > 1:  # else each is the memory operand of its only multiply-add
                vectors = [p.bind("w", vector) for vector in vectors]
            with p.unroll("i", images) as i:
                feature = p.bind("x", p.load(x.buffer, x.at(image + i, k), lanes, stride=0))
                for b, vector in enumerate(vectors):
                    at = acc[k % chains, b, i]
                    p.set(at, fma(vector, feature, at))

        repeat(p, "k", features, UNROLL, step)


def _total(sums: list[Value]) -> Value:
    """Sums added in pairs."""
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [a + b for a, b in zip(sums[:half], sums[half:], strict=True)]
    return sums[0]
