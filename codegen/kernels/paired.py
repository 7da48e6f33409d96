"""Products in pairs: which products are pairs, how weights are packed for them, and what they sum
up to; see `conv_paired`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from cnnc.ir.kernel import Site
from cnnc.ir.op import Array
from cnnc.ir.target import Target

TRIPLE = 3  # runs of input channels: two in pairs, one on its own
SUMMED = 8  # most pixels side by side while inputs are multiplied with each other
SPAN = 32.0  # how far from 1 the size of inputs may be that are taken in pairs


def most_pixels(target: Target) -> int:
    """How many pixels a register tile has: they fill half the registers. LLVM keeps each sum in the
    register of a factor, which leaves the others for moving sums about."""
    return target.registers // 2


@dataclass(frozen=True, slots=True)
class PairedShape:
    """The numbers of a convolution's sums."""

    channels: int
    lanes: int
    kh: int = 1
    kw: int = 1
    apart: bool = False  # whether there is a number to start from for each tap

    @staticmethod
    def of(site: Site, apart: bool = False) -> PairedShape:
        """Those of a convolution's windows."""
        _, channels, kh, kw = site.operands[1].dims
        return PairedShape(channels, site.target.lanes, kh, kw, apart)

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of the taps."""
        return self.kh, self.kw

    @property
    def starts(self) -> int:
        """Vectors that a panel begins with, of which sums start: one, or one for each tap."""
        return self.taps if self.apart else 1

    @property
    def front(self) -> int:
        """Elements of a panel before its weights: the starts, and what scales the sums."""
        return (self.starts + 1) * self.lanes

    @property
    def triples(self) -> int:
        """How many times three whole blocks there are."""
        return self.channels // (TRIPLE * self.lanes)

    @property
    def third(self) -> int:
        """A third of the channels behind the triples of blocks."""
        return self.channels % (TRIPLE * self.lanes) // TRIPLE

    @property
    def order(self) -> tuple[int, ...]:
        """The channels behind the triples of blocks, counted from there, in the order of their use:
        a third for each of three runs, then one or two plain ones.

        Runs in pairs do not cross blocks, and what they leave follows in order, so that all three
        advance by one for long (`stretches`).
        """
        rest, third = self.channels % (TRIPLE * self.lanes), self.third
        other = self.lanes if rest >= self.lanes + third else third
        paired = [*range(third), *range(other, other + third)]
        return (*paired, *sorted(set(range(rest)) - set(paired)))

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """(first, count) of the threes behind the triples of blocks, cut where one of their runs
        does not go on to the next lane of its block."""
        third, order = self.third, self.order
        if not third:
            return []
        runs = [order[run * third : (run + 1) * third] for run in range(TRIPLE)]
        cuts = [
            u
            for u in range(1, third)
            if any(run[u] != run[u - 1] + 1 or run[u] % self.lanes == 0 for run in runs)
        ]
        return [(a, b - a) for a, b in pairwise([0, *cuts, third])]

    @property
    def steps(self) -> int:
        """Threes of channels that are added for a result, under all taps."""
        return (self.triples * self.lanes + self.third) * self.taps

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return self.kh * self.kw

    @property
    def summed(self) -> int:
        """Pixels whose inputs are summed side by side: their sums fit into a vector."""
        return min(SUMMED, self.lanes)

    @property
    def panel(self) -> int:
        """Elements of the packed weights of one output-channel block."""
        return self.front + self.channels * self.taps * self.lanes

    @property
    def header(self) -> int:
        """Elements of the packed weights before the first panel."""
        return 2 * self.lanes

    def leaves_l1(self, target: Target, pixels: int) -> bool:
        """Whether the inputs of a strip of so many pixels are gone from L1 before the next output
        channels use them. Under several taps they are used again while they are there."""
        used = 4 * (pixels * self.channels + self.panel)
        return used > target.l1_bytes and self.taps == 1

    def tile_cycles(self, target: Target, pixels: int) -> float:
        """Predicted cycles of a register tile of that many pixels, with all its sums."""
        # Single elements are loaded twice as fast as whole vectors.
        triple = max(
            2 * pixels / target.fma_per_cycle,
            2 * pixels / target.spare_adds_per_cycle,
            (3 + 3 * pixels / 2) / target.load_per_cycle,
            8.0,
        )
        single = max(pixels / target.fma_per_cycle, (1 + pixels / 2) / target.load_per_cycle, 4.0)
        steps = self.channels // TRIPLE * triple + self.channels % TRIPLE * single
        return 1.06 * self.taps * steps + 13.0


# -- weights -------------------------------------------------------------------------------------


def pack_signs(lanes: int) -> Array:
    """What packed weights start with: the signs of the lanes, twice."""
    return lane_signs(2 * lanes)


def pack_pairs(weight: Array, lanes: int, size: Array | float = 1.0, apart: bool = False) -> Array:
    """[OC, C, kh, kw] as [output-channel block, PairedShape.panel], OC being whole blocks.

    A panel is: where the sums start (`apart`: for each tap), what they are scaled by, and the
    weights in the order of their use. `size` is the inputs' for each output channel, in the sense
    of the root mean square.
    """
    out, _, kh, kw = weight.shape
    count = out // lanes
    scaled, unscale = scale_weights(weight, size)
    groups, rest = group_channels(scaled, lanes)
    taps = [groups]
    if apart:
        taps = [
            [group[..., i : i + 1, k : k + 1] for group in groups]
            for i, k in product(range(kh), range(kw))
        ]
    starts = np.stack([-pair_products(part) for part in taps])
    panels = [starts.reshape(len(taps), count, lanes).swapaxes(0, 1), unscale]
    for group in groups:
        signed = group.copy()
        signed[:, :, 1] *= lane_signs(group.shape[3])[:, None, None]
        # [block, its lane, group, which of three, lane, kh, kw]
        order = signed.reshape(count, lanes, *group.shape[1:]).transpose(0, 2, 5, 6, 4, 3, 1)
        panels.append(order)
    panels.append(rest.reshape(count, lanes, *rest.shape[1:]).transpose(0, 3, 4, 2, 1))
    return np.concatenate([p.reshape(count, -1).astype(np.float32) for p in panels], axis=1)


def emulate_pairs(weight: Array, x: Array, lanes: int, size: Array | float = 1.0) -> Array:
    """The kernel's sums of weight * x over the last three axes, [..., C, kh, kw].

    The axes before are broadcast; `size` is as in `pack_pairs`.
    """
    scaled, unscale = scale_weights(weight, size)
    weights, last_weights = group_channels(scaled, lanes)
    inputs, last_inputs = group_channels(x, lanes)
    starts = (-pair_products(weights) - pair_products(inputs)).astype(np.float32)
    terms = [starts[..., None], (last_weights * last_inputs).reshape(*starts.shape, -1)]
    for w, i in zip(weights, inputs, strict=True):
        w0, w1, w2 = np.moveaxis(w, -4, 0)
        x0, x1, x2 = np.moveaxis(i, -4, 0)
        sign = lane_signs(w.shape[-3])[:, None, None]
        pairs = (w0 + sign * x1) * (sign * w1 + x0)
        terms.append(np.stack([pairs, w2 * x2], -1).reshape(*starts.shape, -1))
    # As the kernel sums up: one term after the other, in float32.
    sums = np.cumsum(np.concatenate(terms, -1), axis=-1)
    found: Array = sums[..., -1] * unscale
    return found


def pack_weight_pairs(weight: Array, lanes: int, apart: bool = False) -> Array:
    """The signs of the lanes, then a panel for each block of output channels (`pack_pairs`)."""
    _, channels, kh, kw = weight.shape
    shape, step = PairedShape(channels, lanes, kh, kw, apart), 4 * lanes
    packed = np.empty(shape.header + -(-len(weight) // lanes) * shape.panel, np.float32)
    packed[: shape.header] = pack_signs(lanes)
    panels = packed[shape.header :].reshape(-1, shape.panel)
    for i in range(0, len(weight), step):  # few blocks at a time stay in the caches
        part = weight[i : i + step]
        if len(part) % lanes:
            part = np.pad(part, [(0, -len(part) % lanes), *[(0, 0)] * 3])
        panels[i // lanes : -(-(i + len(part)) // lanes)] = pack_pairs(part, lanes, apart=apart)
    return packed


def pairs_error(weight: Array, lanes: int) -> float:
    """Largest error against float64 on sample inputs, relative to the result's range.

    The sample is some output channels and some windows of seeded noise, half of them cut off at
    zero as after a relu, of a size `SPAN` times too small and too large.
    """
    rng = np.random.default_rng(0)
    windows = 8
    sample = weight[:: max(len(weight) // 8, 1)]
    noise = rng.standard_normal((windows, *sample.shape[1:]))
    noise[windows // 2 :] = np.maximum(noise[windows // 2 :], 0)
    errors = []
    for size in (1 / SPAN, SPAN):
        x = (noise * size).astype(np.float32)
        wanted = np.einsum("ochw,pchw->op", sample.astype(np.float64), x.astype(np.float64))
        span = float(np.abs(wanted).max())
        if span:
            found = emulate_pairs(sample[:, None], x, lanes)
            errors.append(float(np.abs(found - wanted).max()) / span)
    return float(np.max(errors, initial=0.0))  # NaN if one is NaN


def lane_signs(count: int) -> Array:
    """+1 and -1 in turn: the sign with which a lane's pairs are taken."""
    return np.resize(np.array([1, -1], np.float32), count)


def scale_weights(weight: Array, wanted: Array | float) -> tuple[Array, Array]:
    """(each output channel's weights scaled to about that size by powers of two, what scales their
    sums back). If they are all zero that is zero, so that no rounding errors are left."""
    size = np.sqrt(np.square(weight.astype(np.float64)).mean((-3, -2, -1))) / wanted
    exponent = np.log2(size, out=np.zeros_like(size), where=np.isfinite(size) & (size > 0))
    scale = np.exp2(np.clip(-np.round(exponent), -100, 100)).astype(np.float32)
    scaled = (weight * scale[..., None, None, None]).astype(np.float32)
    return scaled, np.where(size == 0, np.float32(0), 1 / scale)


def group_channels(array: Array, lanes: int) -> tuple[list[Array], Array]:
    """[..., C, kh, kw] as groups of three runs of channels, [..., group, 3, lane, kh, kw] for each
    length of runs, and the channels that are left over, [..., channel, kh, kw]."""
    *leading, channels, kh, kw = array.shape
    shape = PairedShape(channels, lanes, kh, kw)
    whole = shape.triples * TRIPLE * lanes
    blocks, rest = array[..., :whole, :, :], array[..., whole:, :, :][..., shape.order, :, :]
    found, end = list[Array](), TRIPLE * shape.third
    for run, length in ((blocks, lanes), (rest[..., :end, :, :], shape.third)):
        if run.shape[-3]:
            found.append(run.reshape(*leading, -1, TRIPLE, length, kh, kw))
    return found, rest[..., end:, :, :]


def pair_products(groups: list[Array]) -> Array:
    """The sum over all pairs, with their signs, of what `group_channels` gives: [...]."""
    total = np.zeros(groups[0].shape[:-5])
    for group in groups:
        one, other = group[..., 0, :, :, :].astype(np.float64), group[..., 1, :, :, :]
        products = one * other
        signs = np.broadcast_to(lane_signs(group.shape[-3])[:, None, None], products.shape[-4:])
        total += products.reshape(*total.shape, -1) @ signs.reshape(-1).astype(np.float64)
    return total
