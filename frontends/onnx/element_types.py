"""Which ops take which element types; float16 as float32.

What computes with float16 computes with float32, and is rounded where float16 is asked for: in
results of the model, and where numbers become others than floats. In between it is not, as sums of
float16 would lose too much, and processors would compute with it no faster.
"""

from __future__ import annotations

from collections.abc import Set

from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import (
    AlongAxis,
    Border,
    Cast,
    Centre,
    Compress,
    Concat,
    ConvNd,
    Dequantize,
    Dropout,
    DynamicScale,
    DynamicZero,
    Expand,
    Flatten,
    Indexing,
    MatMul,
    MaxPool2d,
    MaxPoolPlaces,
    MaxUnpool,
    NonZero,
    Pad,
    Quantize,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
    Trilu,
    Unique,
)
from cnnc.ir.types import DType

FLOATS = (DType.F16, DType.F32, DType.F64)
QUANTISED = (Quantize, Dequantize, Centre, DynamicScale, DynamicZero, ConvNd, MatMul)
MIXED = (Indexing, Compress, MaxUnpool, *QUANTISED)  # take operands of different element types
SUMMING = (ConvNd, MatMul, Reduction)
ANY_TYPE = (
    *MIXED,
    AlongAxis,
    Border,
    Concat,
    Dropout,
    Expand,
    Flatten,
    MaxPool2d,
    MaxPoolPlaces,
    Pad,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
    Trilu,
    NonZero,
    Unique,
)


def is_half(op: Op, dtypes: Set[DType], known: bool) -> bool:
    """Whether an op of such operands is to compute with float32, and then round.

    Args:
        op: the op.
        dtypes: its operands' element types.
        known: whether its operands are known numbers; these are only moved as they are.
    """
    if DType.F16 not in dtypes or dtypes & {DType.F32, DType.F64}:
        return False
    if isinstance(op, SUMMING):
        return True
    if isinstance(op, QUANTISED) or (isinstance(op, Cast) and op.to not in (DType.F32, DType.F64)):
        return False
    return not (known and isinstance(op, (*ANY_TYPE, Elementwise)))
