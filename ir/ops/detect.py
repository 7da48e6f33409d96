"""Ops of detectors: pooling of regions, and the choice among boxes that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from math import ceil, floor
from typing import ClassVar

import numpy as np

from cnnc.ir.location import InputError
from cnnc.ir.op import Array
from cnnc.ir.ops.index import Indexing
from cnnc.ir.types import DType, Sym, TensorType

_MOST_SAMPLES = 1 << 22  # of one region


class Pooling(Enum):
    """How the samples of a bin become one number."""

    AVG = "avg"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiAlign(Indexing):
    """Regions of maps, each cut into bins that are sampled between elements and pooled.

    Operands:
        x: [B, C, H, W], floats.
        rois: [R, 4]: x1, y1, x2, y2.
        images: [R], whole numbers: which of the B images a region is in.
    Results:
        y: [R, C, bins[0], bins[1]].
    Attributes:
        bins: rows and columns of the result.
        samples: along each side of a bin; 0 takes as many as it has elements.
        scale: of the regions' coordinates to those of x.
        half_pixel: whether coordinates count from the edge of the first element.
        pooling: `MAX` is that of the weighted elements, not of the samples, as in ONNX.
    Source: ONNX RoiAlign-22. Places more than one element outside of x read 0; a region that is
        not finite has no samples, and the result is 0.
    """

    name: ClassVar[str] = "roi_align"
    operands: ClassVar[tuple[str, ...]] = ("x", "rois", "images")
    bins: tuple[int, int] = (1, 1)
    samples: int = 0
    scale: float = 1.0
    half_pixel: bool = True
    pooling: Pooling = Pooling.AVG

    def infer(self, x: TensorType, rois: TensorType, images: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        self.check_indices(images)
        if rois.rank != 2 or rois.shape[1] != 4 or images.shape != rois.shape[:1]:
            raise self.fail(f"rois must be [R, 4] and images [R], got {rois} and {images}")
        if min(self.bins) < 1 or self.samples < 0 or rois.dtype != x.dtype:
            raise self.fail(f"bins {self.bins}, samples {self.samples}, {x} and rois {rois}")
        return TensorType((rois.shape[0], x.shape[1], *self.bins), x.dtype)

    def evaluate(self, x: Array, rois: Array, images: Array) -> Array:
        y = np.zeros((len(rois), x.shape[1], *self.bins), x.dtype)
        for i, image in enumerate(self.inside(images, x.shape[0])):
            if np.isfinite(rois[i]).all():
                y[i] = self._region(x[image], [float(v) for v in rois[i]])
        return y

    def _region(self, maps: Array, roi: Sequence[float]) -> Array:
        moved = 0.5 if self.half_pixel else 0.0
        left, top, right, bottom = (v * self.scale - moved for v in roi)
        counts, axes = [], []
        for axis, (start, end) in enumerate(((top, bottom), (left, right))):
            length = end - start if self.half_pixel else max(end - start, 1.0)
            count = self.samples or max(ceil(length / self.bins[axis]), 0)
            counts.append(count)
            if count * self.bins[axis] * max(counts[0], 1) > _MOST_SAMPLES:
                raise InputError(f"roi_align: region {list(roi)} needs too many samples")
            axes.append(self._taps(start, length, axis, count, maps.shape[axis + 1]))
        if 0 in (*counts, *maps.shape[1:]):
            return np.zeros((maps.shape[0], *self.bins), maps.dtype)
        parts = [_weighted(maps, row, column) for row, column in product(*axes)]
        shape = (-1, self.bins[0], counts[0], self.bins[1], counts[1])
        if self.pooling is Pooling.AVG:
            return np.asarray(sum(parts[1:], parts[0]).reshape(shape).mean(axis=(2, 4)))
        return np.asarray(np.maximum.reduce(parts).reshape(shape).max(axis=(2, 4)))

    def _taps(
        self, start: float, length: float, axis: int, count: int, size: int
    ) -> list[tuple[Array, Array]]:
        """(elements, weights) of the two taps of every sample along an axis."""
        places = start + (np.arange(self.bins[axis] * count) + 0.5) * (
            length / (self.bins[axis] * max(count, 1))
        )
        inside = (places >= -1) & (places <= size)
        places = np.clip(places, 0, max(size - 1, 0))
        low = np.floor(places).astype(np.int64)
        part = places - low
        high = np.minimum(low + 1, max(size - 1, 0))
        return [(low, (1 - part) * inside), (high, part * inside)]

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return bool(operands[0].shape) and isinstance(operands[0].shape[0], Sym)


def _weighted(maps: Array, row: tuple[Array, Array], column: tuple[Array, Array]) -> Array:
    """Elements times their weights; one that weighs nothing is not read, NaN or not."""
    weight = (row[1][:, None] * column[1]).astype(maps.dtype)
    found = maps[:, row[0]][:, :, column[0]]
    return np.asarray(np.where(weight == 0, maps.dtype.type(0), found * weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxRoiPool(Indexing):
    """The largest element of each bin of each region.

    Operands:
        x: [B, C, H, W], floats.
        rois: [R, 5]: which image, x1, y1, x2, y2.
    Results:
        y: [R, C, bins[0], bins[1]]; a bin without elements is 0.
    Attributes:
        bins: rows and columns of the result.
        scale: of the regions' coordinates to those of x.
    Source: ONNX MaxRoiPool-22.
    """

    name: ClassVar[str] = "max_roi_pool"
    operands: ClassVar[tuple[str, ...]] = ("x", "rois")
    bins: tuple[int, int]
    scale: float = 1.0

    def infer(self, x: TensorType, rois: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        if rois.rank != 2 or rois.shape[1] != 5 or min(self.bins) < 1 or rois.dtype != x.dtype:
            raise self.fail(f"rois must be [R, 5] and bins >= 1, got {rois} and {self.bins}")
        return TensorType((rois.shape[0], x.shape[1], *self.bins), x.dtype)

    def evaluate(self, x: Array, rois: Array) -> Array:
        y = np.zeros((len(rois), x.shape[1], *self.bins), x.dtype)
        if not np.isfinite(rois).all():
            raise InputError("max_roi_pool: a region is not finite")
        images = self.inside(rois[:, 0].astype(np.int64), x.shape[0])
        for i, image in enumerate(images):
            corners = [floor(float(v) * self.scale + 0.5) for v in rois[i, 1:]]
            rows = self._bins(corners[1], corners[3], self.bins[0], x.shape[2])
            columns = self._bins(corners[0], corners[2], self.bins[1], x.shape[3])
            for r, (top, bottom) in enumerate(rows):
                for c, (left, right) in enumerate(columns):
                    if top < bottom and left < right:
                        y[i, :, r, c] = x[image, :, top:bottom, left:right].max(axis=(1, 2))
        return y

    @staticmethod
    def _bins(first: int, last: int, count: int, size: int) -> list[tuple[int, int]]:
        length = max(last - first + 1, 1)
        ends = [
            (first + i * length // count, first - (-(i + 1) * length // count))
            for i in range(count)
        ]
        return [(min(max(a, 0), size), min(max(b, 0), size)) for a, b in ends]

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return bool(operands[0].shape) and isinstance(operands[0].shape[0], Sym)


@dataclass(frozen=True, slots=True, kw_only=True)
class NonMaxSuppression(Indexing):
    """The best boxes of each class that do not overlap better ones.

    Operands:
        boxes: [B, S, 4], floats: y1, x1, y2, x2, corners in any order.
        scores: [B, K, S].
    Results:
        chosen: i64[rows, 3]: image, class, box; by image, class and falling score.
    Attributes:
        rows: the name of the size of the result, which is known at run time only.
        most: boxes for each image and class.
        overlap: the intersection over the union above which a box is dropped.
        least: the score that a box must exceed; None takes every box.
        centers: whether boxes are given as x and y of the centre, width and height.
    Source: ONNX NonMaxSuppression-11.
    """

    name: ClassVar[str] = "non_max_suppression"
    operands: ClassVar[tuple[str, ...]] = ("boxes", "scores")
    rows: str
    most: int = 0
    overlap: float = 0.0
    least: float | None = None
    centers: bool = False

    def infer(self, boxes: TensorType, scores: TensorType) -> TensorType:
        if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4:
            raise self.fail(f"expects boxes [B, S, 4] and scores [B, K, S], got {boxes}, {scores}")
        if (boxes.shape[0], boxes.shape[1]) != (scores.shape[0], scores.shape[2]):
            raise self.fail(f"boxes {boxes} and scores {scores} do not fit together")
        return TensorType((Sym(self.rows), 3), DType.I64)

    def evaluate(self, boxes: Array, scores: Array) -> Array:
        found = [
            (image, kind, int(box))
            for image, kind in np.ndindex(*scores.shape[:2])
            for box in self._choose(self._corners(boxes[image]), scores[image, kind])
        ]
        return np.array(found, np.int64).reshape(-1, 3)

    def _corners(self, boxes: Array) -> Array:
        """[2, 2, S]: low and high ends along both axes."""
        if self.centers:
            middle, half = boxes[:, :2].T, boxes[:, 2:].T / 2
            return np.stack([middle - half, middle + half])
        return np.stack(
            [np.minimum(boxes[:, :2], boxes[:, 2:]).T, np.maximum(boxes[:, :2], boxes[:, 2:]).T]
        )

    def _choose(self, corners: Array, scores: Array) -> list[int]:
        order = np.argsort(-scores, kind="stable")
        if self.least is not None:
            order = order[scores[order] > np.float32(self.least)]
        low, high = corners
        areas = (high - low).prod(axis=0)
        chosen: list[int] = []
        while order.size and len(chosen) < self.most:
            best, order = int(order[0]), order[1:]
            chosen.append(best)
            sides = np.minimum(high[:, [best]], high[:, order]) - np.maximum(
                low[:, [best]], low[:, order]
            )
            shared = np.where((sides > 0).all(axis=0), sides.prod(axis=0), 0)
            union = areas[best] + areas[order] - shared
            meets = (shared > 0) & (areas[best] > 0) & (areas[order] > 0) & (union > 0)
            ratio = np.divide(shared, union, out=np.zeros_like(shared), where=meets)
            order = order[~(meets & (ratio > np.float32(self.overlap)))]
        return chosen

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True
