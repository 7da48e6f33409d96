"""Images put together from the blocks they were cut into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.types import TensorType

_EVERY = (slice(None), slice(None))  # image, channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Col2Im(Op):
    """Blocks added up where a sliding window would have read them.

    Operands:
        x: [N, C * block elements, windows].
    Results:
        y: [N, C, *image].
    Attributes:
        image: the sizes of the image.
        block: the sizes of a block, as many.
        stride, dilation: of the window, as many.
        pad: what was put before each axis, then behind each, and is cut off again.
    Source: ONNX Col2Im-18.
    """

    name: ClassVar[str] = "col2im"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    image: tuple[int, ...]
    block: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]

    @property
    def windows(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        k = len(self.image)
        spans = [d * (b - 1) + 1 for d, b in zip(self.dilation, self.block, strict=True)]
        padded = [self.image[i] + self.pad[i] + self.pad[i + k] for i in range(k)]
        return tuple((p - s) // t + 1 for p, s, t in zip(padded, spans, self.stride, strict=True))

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 3)
        k = len(self.image)
        if not len(self.block) == len(self.stride) == len(self.dilation) == k == len(self.pad) / 2:
            raise self.fail(f"attributes are not all for {k} axes")
        positive = (*self.block, *self.stride, *self.dilation)
        if min(positive, default=0) < 1 or min((*self.image, *self.pad)) < 0:
            raise self.fail("block, stride and dilation must be >= 1, image and pad >= 0")
        rows, columns = x.shape[1:]
        if not isinstance(rows, int) or rows % prod(self.block):
            raise self.fail(f"{x} does not hold whole blocks of {self.block}")
        if min(self.windows) < 0 or columns != prod(self.windows):
            raise self.fail(f"{x} must have {self.windows} windows")
        return TensorType((x.shape[0], rows // prod(self.block), *self.image), x.dtype)

    def evaluate(self, x: Array) -> Array:
        k, n = len(self.image), x.shape[0]
        blocks = x.reshape(n, x.shape[1] // prod(self.block), *self.block, *self.windows)
        padded = [self.image[i] + self.pad[i] + self.pad[i + k] for i in range(k)]
        y = np.zeros((*blocks.shape[:2], *padded), x.dtype)
        for place in np.ndindex(*self.block):
            starts = [d * p for d, p in zip(self.dilation, place, strict=True)]
            spans = zip(starts, self.windows, self.stride, strict=True)
            window = tuple(slice(a, a + count * step, step) for a, count, step in spans)
            y[_EVERY + window] += blocks[_EVERY + place]
        kept = tuple(slice(b, b + size) for b, size in zip(self.pad, self.image, strict=False))
        return np.ascontiguousarray(y[_EVERY + kept])

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return operands[0].elements
