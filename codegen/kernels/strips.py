"""What convolutions of few channels in plain NCHW share: strips of rows, copied between zeros."""

from __future__ import annotations

from cnnc.codegen.kernels.blocked import is_blockable
from cnnc.codegen.kernels.common import View, pieces
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, ProgramBuilder
from cnnc.ir.ops import Conv2d

MOST_CHANNELS = 15
STRIP_CYCLES, ROW_CYCLES = 150.0, 20.0  # to begin with a strip, and with a row of a channel
CHUNKS = 12  # parts of the work that threads should find, where there are as many


def reads_few_channels(site: Site) -> bool:
    """Whether it is a convolution of few channels without groups, with constant weights."""
    return _is_dense(site) and site.operands[1].dims[1] <= MOST_CHANNELS


def gives_few_channels(site: Site) -> bool:
    """Whether it is a convolution to few channels without groups, with constant weights."""
    return _is_dense(site) and site.operands[1].dims[0] <= MOST_CHANNELS


def _is_dense(site: Site) -> bool:
    return isinstance(site.op, Conv2d) and site.op.groups == 1 and is_blockable(site)


def strip_height(site: Site, rows: int) -> int:
    """How many rows of the input a strip with that many rows of the result reads."""
    assert isinstance(site.op, Conv2d)
    kh = site.operands[1].dims[2]
    return (rows - 1) * site.op.stride[0] + (kh - 1) * site.op.dilation[0] + 1


def strip_rows(site: Site, row_elements: int) -> int:
    """Rows of a strip, each of whose rows takes that much scratch: few rows of the input should
    belong to two strips, but the scratch stay in L2, and threads find work."""
    images, _, oh, _ = site.result.dims
    for most in (16, 8, 4, 2):
        height = strip_height(site, min(most, oh))
        near = 4 * row_elements * height <= site.target.l2_bytes // 2
        if near and (most <= 4 or images * -(-oh // most) >= CHUNKS):
            return pieces(oh, most)[0][1]
    return 1


def strip_of(p: ProgramBuilder, site: Site, strip: Index, most: int) -> tuple[Index, Index, Index]:
    """A strip of at most that many rows: (its first row of the result, how many there are, how many
    rows of the input they read). Only the last strip is lower."""
    assert isinstance(site.op, Conv2d)
    oh = site.result.dims[2]
    row = p.let("oh", strip * most)
    rows = p.let("rows", (oh - row).min(most) if oh % most else most)
    return row, rows, p.let("height", (rows - 1) * site.op.stride[0] + strip_height(site, 1))


def copy_row(
    p: ProgramBuilder, x: View, start: Index, count: int, buffer: str, at: Index, lanes: int
) -> None:
    """Copies `count` neighbouring elements of x from `start` on to a place in a buffer."""
    whole, rest = divmod(count, lanes)
    with p.loop("j", 0, whole) as j:
        p.store(buffer, at + j * lanes, p.load(x.buffer, start + j * lanes, lanes))
    if rest:
        last = p.load(x.buffer, start + whole * lanes, lanes, count=rest)
        p.store(buffer, at + whole * lanes, last, count=rest)
