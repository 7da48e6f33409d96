"""The table of ops: name -> class. Adding an op is one class in a family file and one line here."""

from cnnc.ir.op import Op
from cnnc.ir.ops.conv import Conv2d, Dense
from cnnc.ir.ops.elementwise import (
    Add,
    Div,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Mul,
    Pointwise,
    Relu,
    Relu6,
    Sigmoid,
    Silu,
    Sub,
    Tanh,
)
from cnnc.ir.ops.norm import BatchNorm, Softmax
from cnnc.ir.ops.pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from cnnc.ir.ops.shape import Concat, Dropout, Flatten, Pad, Reorder, Resampling, Reshape, Upsample

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Conv2d,
        Dense,
        BatchNorm,
        Softmax,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool,
        Relu,
        Relu6,
        LeakyRelu,
        Sigmoid,
        Tanh,
        Silu,
        HardSigmoid,
        HardSwish,
        Add,
        Sub,
        Mul,
        Div,
        Pointwise,
        Concat,
        Flatten,
        Reshape,
        Dropout,
        Pad,
        Upsample,
        Reorder,
    )
}

__all__ = [
    "OPS",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Dense",
    "Div",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "MaxPool2d",
    "Mul",
    "Op",
    "Pad",
    "Pointwise",
    "Relu",
    "Relu6",
    "Reorder",
    "Resampling",
    "Reshape",
    "Sigmoid",
    "Silu",
    "Softmax",
    "Sub",
    "Tanh",
    "Upsample",
]
