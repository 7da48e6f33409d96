"""What kernels share that compute a convolution on blocks of channels, with constant weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from cnnc.codegen.kernels.common import (
    extra_block,
    extra_blocks,
    extras_fit,
    pack_bias,
    pack_extra,
    residuals,
    split,
    window_halo,
)
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.op import Array
from cnnc.ir.types import DType

PARAMETERS = 3  # operands that are not a prologue's: x, weight and bias


def is_blockable(site: Site) -> bool:
    """Whether a convolution has what all kernels on blocks want: float32, weights and a bias that
    are constants, something to compute, and an epilogue that works on blocks."""
    x, *parameters = site.constant[: min(len(split(site)[0]), PARAMETERS)]
    return (
        site.result.dtype is DType.F32
        and not x
        and all(parameters)
        and 0 not in (*site.result.shape, *site.operands[0].shape)
        and extras_fit(site, site.target.lanes)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedConv(Kernel):
    """A convolution that reads and writes NCHW{c}; residuals are in blocks, too, and the border
    around the map holds what a window reads outside of it."""

    def source_block(self, site: Site) -> int:
        """The block of the map that is read."""
        return site.target.lanes

    @abstractmethod
    def pack_weight(self, site: Site, weight: Array) -> Array:
        """The weights in the order in which the program reads them."""

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        own, _ = split(site)
        lanes = site.target.lanes
        operands = zip(own[1:], site.constant[1:], strict=False)
        others = (1 if constant else extra_block(type, lanes) for type, constant in operands)
        return (self.source_block(site), *others, *extra_blocks(site, lanes)), lanes

    def halo(self, site: Site, operand: int) -> Halo:
        return window_halo(site) if operand == 0 else NO_HALO

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element of a residual is read just before the result's is written in its place.
        return residuals(site)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        own, _ = split(site)
        if operand == 1:
            return self.pack_weight(site, array)
        pack = pack_bias if operand < min(len(own), PARAMETERS) else pack_extra
        return pack(array, site.target.lanes)
