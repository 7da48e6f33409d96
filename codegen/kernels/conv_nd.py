"""Convolution over any number of axes, on plain layouts.

Vectors lie along the last axis; a tile of a few output channels and vectors stays in registers
while all input channels and taps pass by.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    conv_views,
    epilogue_cycles,
    extras_fit,
    pieces,
    residuals,
    split,
    store_result,
)
from cnnc.codegen.kernels.conv_general import MOST_CHANNELS, UNROLLED
from cnnc.codegen.kernels.rows import Part, cut, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, fma
from cnnc.ir.ops import ConvNd
from cnnc.ir.types import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNdKernel(Kernel):
    """Convolution on a register tile of (output channels of one group, vectors)."""

    name: ClassVar[str] = "conv_nd"
    tile: tuple[int, int]

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ConvNdKernel]:
        own, _ = split(site)
        types = (*site.operands, *site.results)
        if not isinstance(site.op, ConvNd) or any(t.dtype is not DType.F32 for t in types):
            return
        if any(0 in t.shape for t in (*own, site.result)) or not extras_fit(site, 1):
            return
        channels = site.result.dims[1] // site.op.groups
        for vectors in (1, 2, 4):
            if vectors <= -(-site.result.dims[-1] // site.target.lanes):
                fit = min((site.target.registers - 1) // vectors - 1, MOST_CHANNELS)
                yield cls(tile=(pieces(channels, fit)[0][1], vectors))

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element of a residual is read just before the result's is written in its place.
        return residuals(site)

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    def cycles(self, site: Site) -> float:
        op, target = site.op, site.target
        assert isinstance(op, ConvNd)
        n, out, *sizes = site.result.dims
        taps = prod(site.operands[1].dims[1:])
        total = 0.0
        for _, b, chunks in pieces(out // op.groups, self.tile[0]):
            for part in cut(sizes[-1], self.tile[1] * target.lanes, target.lanes):
                held = -(-part.length // target.lanes)
                loads = 0.5 * part.length if op.stride[-1] > 1 else held / target.load_per_cycle
                work = b * held / target.fma_per_cycle
                step = max(work, loads + b / target.load_per_cycle, 4.0)
                total += chunks * part.times * (taps * step + 3 * b * held + 20)
        return n * op.groups * prod(sizes[:-1]) * total + epilogue_cycles(site, 1)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: ConvNdKernel, site: Site) -> None:
        assert isinstance(site.op, ConvNd)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        self.lanes = site.target.lanes

    def write(self) -> Program:
        p, groups = self.p, self.op.groups
        n, out, *sizes = self.site.result.dims
        chunks = cut(out // groups, self.kernel.tile[0], 1)
        many, rows = sum(part.times for part in chunks), prod(sizes[:-1])
        with p.parallel("t", 0, n * groups * many * rows) as t:
            image = p.let("n", t // (rows * many * groups)) if n > 1 else Index(0)
            group = p.let("g", t // (rows * many) % groups)
            chunk = p.let("chunk", t // rows % many)
            row = tuple(
                p.let("at", t // prod(sizes[axis + 1 : -1]) % size)
                for axis, size in enumerate(sizes[:-1])
            )
            for part in chunks:
                with within(p, part, chunks, chunk):
                    channel = p.let("oc", group * (out // groups) + part.at(chunk))
                    for columns in cut(sizes[-1], self.kernel.tile[1] * self.lanes, self.lanes):
                        self.columns(image, group, row, channel, part.length, columns)
        return p.finish()

    def columns(
        self,
        image: Index,
        group: Index,
        row: tuple[Index, ...],
        channel: Index,
        channels: int,
        part: Part,
    ) -> None:
        """Equal tiles of a row of the result, for a few channels from `channel` on."""
        p, lanes = self.p, self.lanes
        counts = part.counts(lanes)
        with p.loop("v", 0, part.times) as v:
            start = v * part.length + part.start
            acc = p.tile("acc", (channels, len(counts)), lanes)
            first = group * self.weight.type.dims[1]
            self.accumulate(acc, (image, first, *row, start), channel, counts)
            with p.unroll("b", channels) as b:
                for k, count in enumerate(counts):
                    place = (image, channel + b, *row, start + k * lanes)
                    store_result(p, self.site, acc[b, k], self.extras, self.y, *place, count=count)

    def accumulate(
        self, acc: TileRef, place: tuple[Index, ...], channel: Index, counts: list[int]
    ) -> None:
        """The bias, then all input channels and taps into the tile; `place` is where in x."""
        p, op, (channels, vectors), lanes = self.p, self.op, acc.shape, acc.lanes
        if self.bias is not None:
            with p.unroll("b", channels) as b:
                at = self.bias.at(channel + b)
                start = p.bind("bias", p.load(self.bias.buffer, at, lanes, stride=0))
                with p.unroll("k", vectors) as k:
                    p.set(acc[b, k], start)
        image, first, *corner = place
        _, per_group, *kernel = self.weight.type.dims
        unrolled = kernel[-1] * channels * vectors <= UNROLLED
        with ExitStack() as loops:
            c = loops.enter_context(p.loop("c", 0, per_group))
            tap = [loops.enter_context(p.loop("i", 0, size)) for size in kernel[:-1]]
            last = p.unroll("j", kernel[-1]) if unrolled else p.loop("j", 0, kernel[-1])
            tap.append(loops.enter_context(last))
            steps = zip(corner, op.stride, tap, op.dilation, strict=True)
            at = self.x.at(image, first + c, *(o * s + i * d for o, s, i, d in steps))
            step = op.stride[-1]
            held = [
                p.bind("x", p.load(self.x.buffer, at + k * lanes * step, lanes, step, count))
                for k, count in enumerate(counts)
            ]
            with p.unroll("b", channels) as b:
                weight = self.weight.at(channel + b, c, *tap)
                factor = p.bind("w", p.load(self.weight.buffer, weight, lanes, stride=0))
                for k, value in enumerate(held):
                    p.set(acc[b, k], fma(factor, value, acc[b, k]))
