"""The tables of ONNX operators. A new one is a small function and one line here.

`CONVERTERS` put a node into the graph; a node of known numbers is computed by its converter, too.
`FOLDERS` compute what may hold symbolic sizes, or has no converter; they are asked first.
`HINTS` say what to do about operators that are not supported.
"""

from collections.abc import Callable

import numpy as np

from cnnc.frontends.onnx.call import Call
from cnnc.frontends.onnx.ops import elementwise, fold, linear, moves, norm, normalize, pool, resize
from cnnc.frontends.onnx.ops.elementwise import chain, simple, with_alpha
from cnnc.frontends.onnx.ops.fold import Folder, computed, reduced
from cnnc.frontends.onnx.ops.reduce import reduction
from cnnc.ir.ops import (
    Abs,
    Add,
    Div,
    Elu,
    Exp,
    HardSwish,
    How,
    LeakyRelu,
    Max,
    Min,
    Mul,
    Neg,
    Relu,
    Sigmoid,
    Sqrt,
    Sub,
    Tanh,
)

Converter = Callable[[Call], None]

CONVERTERS: dict[str, Converter] = {
    "Abs": simple(Abs()),
    "Add": simple(Add()),
    "AveragePool": pool.average_pool,
    "BatchNormalization": norm.batch_normalization,
    "Cast": moves.cast,
    "CenterCropPad": moves.center_crop_pad,
    "Clip": elementwise.clip,
    "Compress": moves.compress,
    "Concat": moves.concat,
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "DepthToSpace": moves.depth_to_space,
    "Div": simple(Div()),
    "Dropout": norm.dropout,
    "Elu": with_alpha(Elu, 1.0),
    "Exp": simple(Exp()),
    "Expand": moves.expand,
    "EyeLike": moves.eye_like,
    "Flatten": moves.flatten,
    "Gemm": linear.gemm,
    "GlobalAveragePool": pool.global_average_pool,
    "GlobalMaxPool": pool.global_max_pool,
    "GroupNormalization": normalize.group_normalization,
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": simple(HardSwish()),
    "Identity": moves.identity,
    "InstanceNormalization": normalize.instance_normalization,
    "LRN": norm.lrn,
    "LayerNormalization": normalize.layer_normalization,
    "LeakyRelu": with_alpha(LeakyRelu, 0.01),
    "LpNormalization": normalize.lp_normalization,
    "MatMul": linear.matmul,
    "Max": chain(Max()),
    "MaxPool": pool.max_pool,
    "Mean": elementwise.mean,
    "MeanVarianceNormalization": normalize.mean_variance_normalization,
    "Min": chain(Min()),
    "Mul": simple(Mul()),
    "Neg": simple(Neg()),
    "PRelu": elementwise.prelu,
    "Pad": moves.pad,
    "Pow": elementwise.power,
    "RMSNormalization": normalize.rms_normalization,
    "Reciprocal": elementwise.reciprocal,
    "ReduceL1": reduction(How.L1),
    "ReduceL2": reduction(How.L2),
    "ReduceLogSum": reduction(How.LOG_SUM),
    "ReduceLogSumExp": reduction(How.LOG_SUM_EXP),
    "ReduceMax": reduction(How.MAX),
    "ReduceMean": reduction(How.MEAN),
    "ReduceMin": reduction(How.MIN),
    "ReduceProd": reduction(How.PROD),
    "ReduceSum": reduction(How.SUM, since=13),
    "ReduceSumSquare": reduction(How.SUM_SQUARE),
    "Relu": simple(Relu()),
    "Reshape": moves.reshape,
    "Resize": resize.resize,
    "ReverseSequence": moves.reverse_sequence,
    "Selu": elementwise.selu,
    "Sigmoid": simple(Sigmoid()),
    "Slice": moves.slice_,
    "Softmax": norm.softmax,
    "SpaceToDepth": moves.space_to_depth,
    "Split": moves.split,
    "Sqrt": simple(Sqrt()),
    "Squeeze": moves.squeeze,
    "Sub": simple(Sub()),
    "Sum": chain(Add()),
    "Swish": elementwise.swish,
    "Tanh": simple(Tanh()),
    "Tile": moves.tile,
    "Transpose": moves.transpose,
    "Trilu": moves.trilu,
    "Unsqueeze": moves.unsqueeze,
    "Upsample": resize.upsample,
}

FOLDERS: dict[str, Folder] = {
    "Add": computed(np.add, symbolic=True),
    "And": computed(np.logical_and),
    "Cast": fold.cast,
    "Ceil": computed(np.ceil),
    "Concat": fold.concat,
    "Constant": fold.constant,
    "ConstantOfShape": fold.constant_of_shape,
    "Div": computed(fold.divide, symbolic=True),
    "Equal": computed(fold.equal, symbolic=True),
    "Expand": fold.expand,
    "Flatten": fold.flatten,
    "Floor": computed(np.floor),
    "Gather": fold.gather,
    "Greater": computed(np.greater),
    "GreaterOrEqual": computed(np.greater_equal),
    "Identity": fold.identity,
    "Less": computed(np.less),
    "LessOrEqual": computed(np.less_equal),
    "Mod": fold.modulo,
    "Mul": computed(np.multiply, symbolic=True),
    "Not": computed(np.logical_not),
    "Or": computed(np.logical_or),
    "Range": fold.fill_range,
    "ReduceProd": reduced(np.prod, since=18, symbolic=True),
    "ReduceSum": reduced(np.sum, since=13, symbolic=True),
    "Reshape": fold.reshape,
    "Shape": fold.shape,
    "Size": fold.size,
    "Slice": fold.slice_,
    "Squeeze": fold.squeeze,
    "Sub": computed(fold.subtract, symbolic=True),
    "Transpose": fold.transpose,
    "Unsqueeze": fold.unsqueeze,
    "Where": fold.where,
}

_FLOAT = "export the model with float32; quantised models are not supported"
_CONTROL = "export the model with control flow that is decided by constants, or simplify it first"

HINTS: dict[str, str] = {
    **dict.fromkeys(("If", "Loop", "Scan"), _CONTROL),
    **dict.fromkeys(
        ("QLinearConv", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear", "ConvInteger"),
        _FLOAT,
    ),
    "NonMaxSuppression": "end the model before it, and select boxes outside",
}
