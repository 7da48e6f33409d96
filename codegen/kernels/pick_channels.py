"""Picking channels on NCHW{c}: each block of the result by permutations of those that it is of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.boxloops import gathered
from cnnc.codegen.kernels.common import pieces, views, zero_halo
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder
from cnnc.ir.ops import PickChannels
from cnnc.ir.types import DType

UNROLLED = 4  # pixels side by side in the code


@dataclass(frozen=True, slots=True, kw_only=True)
class PickChannelsKernel(Kernel):
    """Channels picked in registers."""

    name: ClassVar[str] = "pick_channels"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PickChannelsKernel]:
        fits = isinstance(site.op, PickChannels) and site.result.dtype is DType.F32
        if fits and site.result.rank == 4 and site.target.lanes > 1 and not any(site.constant):
            if all(0 not in type.shape for type in (*site.operands, site.result)):
                yield cls()

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (site.target.lanes,) * len(site.operands), site.target.lanes

    def cycles(self, site: Site) -> float:
        n, _, h, w = site.result.dims
        # A load and a permutation for each block that is read, and a store.
        work = sum(2 * len(sources) + 1 for sources, _ in _picked(site))
        target, vectors = site.target, n * h * w * len(_picked(site))
        moved = 2 * vectors * target.vector_bytes
        return 300 + max(n * h * w * work, moved / target.stream_bytes_per_cycle(moved))

    def program(self, site: Site) -> Program:
        p, lanes = ProgramBuilder(self.name), site.target.lanes
        xs, _, y = views(p, site, *["x"] * len(site.operands))
        n, _, h, w = site.result.dims
        with p.parallel("t", 0, n * h) as t:
            image, row = p.let("n", t // h) if n > 1 else Index(0), p.let("i", t % h)
            # Most blocks are read for two of the result's, and stay in L1 for a row.
            for block, (sources, picks) in enumerate(_picked(site)):
                for start, width, times in pieces(w, UNROLLED):
                    with p.loop("j", 0, times) as j, p.unroll("u", width) as u:
                        column = j * width + start + u
                        vectors = [
                            p.bind("x", p.load(x.buffer, x.at(image, own, row, column), lanes))
                            for x, own in ((xs[k], own) for k, own in sources)
                        ]
                        value = gathered(p, vectors, picks)
                        p.store(y.buffer, y.at(image, block, row, column), value)
        zero_halo(p, y)
        return p.finish()


def _picked(site: Site) -> list[tuple[list[tuple[int, int]], list[int]]]:
    """For each block of the result the blocks that it reads, as (operand, block), and where its
    lanes are among them."""
    assert isinstance(site.op, PickChannels)
    lanes = site.target.lanes
    places = [
        ((k, channel // lanes), channel % lanes)
        for k, type in enumerate(site.operands)
        for channel in range(type.dims[1])
    ]
    found, channels = [], site.op.channels
    for start in range(0, len(channels), lanes):
        mine = [places[channel] for channel in channels[start : start + lanes]]
        sources = list(dict.fromkeys(block for block, _ in mine))
        picks = [sources.index(block) * lanes + lane for block, lane in mine]
        found.append((sources, picks + [0] * (lanes - len(picks))))
    return found
