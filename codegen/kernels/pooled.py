"""Convolutions that keep only the maxima of windows, as kernels see them."""

from __future__ import annotations

from dataclasses import replace

from cnnc.codegen.kernels.blocked import is_blockable
from cnnc.ir.kernel import Site
from cnnc.ir.ops import MaxPool2d, PooledConv2d, Relu

WINDOW = (2, 2)  # side by side


def window_of(site: Site) -> tuple[int, int]:
    """(rows, columns) of the results of which one maximum is stored."""
    return site.op.pool.window if isinstance(site.op, PooledConv2d) else (1, 1)


def conv_of(site: Site) -> Site:
    """The convolution alone, on that part of its result which windows meet."""
    if not isinstance(site.op, PooledConv2d):
        return site
    (n, out, oh, ow), (rows, columns) = site.result.dims, window_of(site)
    met = replace(site.result, shape=(n, out, oh * rows, ow * columns))
    return replace(site, op=site.op.conv, results=(met,))


def stored_by(site: Site) -> Site:
    """The convolution as if what is stored were its own result."""
    return replace(site, op=site.op.conv) if isinstance(site.op, PooledConv2d) else site


def is_blockable_in_windows(site: Site) -> bool:
    """Whether a convolution can run on blocks (`is_blockable`), and the maxima of windows, if any,
    are those of 2x2 elements side by side, before bias and epilogue.

    These must keep the order of numbers, then: they do not see which one was the largest.
    """
    op = site.op
    if not isinstance(op, PooledConv2d):
        return is_blockable(site)
    whole = op.conv.infer(*site.operands)
    return (
        op.pool == MaxPool2d(window=WINDOW, stride=WINDOW, ceil_mode=op.pool.ceil_mode)
        and site.result.dims[2:] == tuple(size // 2 for size in whole.dims[2:])
        and all(isinstance(step.op, Relu) for step in op.conv.epilogue)
        and 0 not in site.result.shape
        and is_blockable(replace(site, op=op.conv, results=(whole,)))
    )
