"""Products in pairs: which products are pairs, and what they sum up to; see `conv_paired`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnc.ir.kernel import Site
from cnnc.ir.op import Array

TRIPLE = 3  # runs of input channels: two in pairs, one on its own
SPAN = 32.0  # how far from 1 the size of inputs may be that are taken in pairs


@dataclass(frozen=True, slots=True)
class PairedShape:
    """The numbers of a convolution's sums."""

    channels: int
    lanes: int
    kh: int
    kw: int

    @staticmethod
    def of(site: Site) -> PairedShape:
        """Those of the convolution at the site."""
        _, channels, kh, kw = site.operands[1].dims
        return PairedShape(channels, site.target.lanes, kh, kw)

    @property
    def triples(self) -> int:
        """How many times three whole blocks there are."""
        return self.channels // (TRIPLE * self.lanes)

    @property
    def third(self) -> int:
        """A third of the channels behind the triples of blocks."""
        return self.channels % (TRIPLE * self.lanes) // TRIPLE

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return self.kh * self.kw

    @property
    def panel(self) -> int:
        """Elements of the packed weights of one output-channel block."""
        return (2 + self.channels * self.taps) * self.lanes


def lane_signs(count: int) -> Array:
    """+1 and -1 in turn: the sign with which a lane's pairs are taken."""
    return np.resize(np.array([1, -1], np.float32), count)


def scale_weights(weight: Array) -> tuple[Array, Array]:
    """(each output channel's weights scaled to a size of about 1, the powers of two)."""
    size = np.sqrt(np.square(weight.astype(np.float64)).mean((1, 2, 3)))
    exponent = np.log2(size, out=np.zeros_like(size), where=np.isfinite(size) & (size > 0))
    scale = np.exp2(np.clip(-np.round(exponent), -100, 100)).astype(np.float32)
    return weight * scale[:, None, None, None], scale


def group_channels(array: Array, lanes: int) -> tuple[list[Array], Array]:
    """[N, C, kh, kw] as groups of three runs of channels, [N, group, 3, lane, kh, kw] for each
    length of runs, and the channels that are left over, [N, channel, kh, kw]."""
    n, channels, kh, kw = array.shape
    shape = PairedShape(channels, lanes, kh, kw)
    found, start = list[Array](), 0
    for count, length in ((shape.triples, lanes), (1, shape.third)):
        size = count * TRIPLE * length
        if size:
            run = array[:, start : start + size]
            found.append(run.reshape(n, count, TRIPLE, length, kh, kw))
        start += size
    return found, array[:, start:]


def pair_products(groups: list[Array]) -> Array:
    """The sum over all pairs, with their signs, of what `group_channels` gives: [N]."""
    total = np.zeros(len(groups[0]))
    for group in groups:
        product = group[:, :, 0].astype(np.float64) * group[:, :, 1]
        total += np.einsum("ntlhw,l->n", product, lane_signs(product.shape[2]).astype(np.float64))
    return total


def emulate_pairs(weight: Array, x: Array, lanes: int) -> Array:
    """What the kernel makes of windows [P, C, kh, kw] and weights [OC, C, kh, kw]: [OC, P]."""
    scaled, scale = scale_weights(weight)
    weights, last_weights = group_channels(scaled, lanes)
    inputs, last_inputs = group_channels(x, lanes)
    starts = -pair_products(weights)[:, None] - pair_products(inputs)
    terms = [starts.astype(np.float32)[..., None]]
    for w, i in zip(weights, inputs, strict=True):
        w0, w1, w2 = np.moveaxis(w, 2, 0)[:, :, None]
        x0, x1, x2 = np.moveaxis(i, 2, 0)[:, None]
        sign = lane_signs(w.shape[3])[:, None, None]
        pairs = (w0 + sign * x1) * (sign * w1 + x0)
        terms.append(np.stack([pairs, w2 * x2], -1).reshape(len(weight), len(x), -1))
    rest = last_weights[:, None] * last_inputs[None]
    terms.append(rest.reshape(len(weight), len(x), -1))
    # As the kernel sums up: one term after the other, in float32.
    sums = np.cumsum(np.concatenate(terms, 2), axis=2)
    found: Array = sums[..., -1] / scale[:, None]
    return found
