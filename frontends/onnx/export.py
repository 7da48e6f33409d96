"""Portable graph -> ONNX model, with standard operators only.

Every op has one converter in `EXPORTERS`, which gives the ONNX nodes for it. The `onnx` package
comes with the extra `cnnc[onnx]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cnnc.ir.graph import Graph, Node
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.ir.op import Fusable, Op
from cnnc.ir.ops import (
    Abs,
    Acos,
    Acosh,
    Add,
    AffineGrid,
    And,
    ArgExtreme,
    ArgMax,
    ArgMin,
    Asin,
    Asinh,
    Atan,
    Atanh,
    AvgPool2d,
    BatchNorm,
    BitAnd,
    BitNot,
    BitOr,
    BitShift,
    BitXor,
    Border,
    Cast,
    Ceil,
    Celu,
    Clip,
    Col2Im,
    Concat,
    Conv2d,
    ConvNd,
    ConvTranspose2d,
    Coordinates,
    Cos,
    Cosh,
    CumSum,
    Dense,
    Div,
    Dropout,
    Elu,
    Equal,
    Erf,
    Exp,
    Expand,
    Filling,
    Flatten,
    Floor,
    Gather,
    GatherElements,
    GatherND,
    Gelu,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    GridSample,
    Hardmax,
    HardSigmoid,
    HardSwish,
    How,
    Interpolation,
    IsInf,
    IsNaN,
    LeakyRelu,
    Less,
    LessEqual,
    Log,
    MatMul,
    Max,
    MaxPool2d,
    Min,
    Mish,
    Mod,
    Mul,
    Neg,
    NonZero,
    Normalize,
    Not,
    Or,
    Pad,
    Pointwise,
    Pow,
    PRelu,
    Reciprocal,
    Reduction,
    Relu,
    Relu6,
    Resampling,
    Reshape,
    Resize,
    ResizedAxis,
    RoiAlign,
    Round,
    ScatterElements,
    ScatterND,
    Selu,
    Shrink,
    Sigmoid,
    Sign,
    Silu,
    Sin,
    Sinh,
    Slice,
    Softmax,
    Softplus,
    Softsign,
    Sqrt,
    Sub,
    Tan,
    Tanh,
    ThresholdedRelu,
    Tile,
    Transpose,
    Trilu,
    Upsample,
    Where,
    Xor,
)
from cnnc.ir.types import TensorType

OPSET = 18
NEWER_OPSET = 19  # for what `_is_newer` names
NEWEST_OPSET = 20  # for Gelu and samples
IR_VERSION = 10


class _Writer:
    """Collects ONNX nodes and the small constants that they need."""

    def __init__(self, graph: Graph) -> None:
        import onnx

        self.onnx = onnx
        self.graph = graph
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.taken = set(graph.types)
        self.ranks = {name: type.rank for name, type in graph.types.items()}

    def fresh(self, hint: str) -> str:
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, hint: str, values: Any, dtype: str) -> str:
        name = self.fresh(hint)
        array = np.asarray(values, dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name


Exporter = Callable[[_Writer, Any, Sequence[str], str], object]
"""(writer, op, operand names, result name): adds the nodes that compute the result."""


def _simple(kind: str, **attributes: Any) -> Exporter:
    return lambda w, op, inputs, y: w.add(kind, inputs, y, **attributes)


def _conv(w: _Writer, op: Conv2d | ConvTranspose2d, inputs: Sequence[str], y: str) -> None:
    attributes: dict[str, Any] = {
        "strides": op.stride,
        "pads": op.pad,
        "dilations": op.dilation,
        "group": op.groups,
    }
    if isinstance(op, ConvTranspose2d):
        w.add("ConvTranspose", inputs, y, output_padding=op.output_padding, **attributes)
    else:
        w.add("Conv", inputs, y, **attributes)


def _conv_nd(w: _Writer, op: ConvNd, inputs: Sequence[str], y: str) -> None:
    w.add("Conv", inputs, y, strides=op.stride, dilations=op.dilation, group=op.groups)


def _matmul(w: _Writer, op: MatMul, inputs: Sequence[str], y: str) -> None:
    operands = []
    for name, turned in zip(inputs, (op.transpose_a, op.transpose_b), strict=True):
        if turned:
            rank = w.ranks[name]
            order = (*range(rank - 2), rank - 1, rank - 2)
            name = w.add("Transpose", [name], w.fresh(f"{y}.turned"), perm=order)
        operands.append(name)
    w.add("MatMul", operands, y)


def _pool(w: _Writer, op: MaxPool2d | AvgPool2d, inputs: Sequence[str], y: str) -> None:
    attributes: dict[str, Any] = {
        "kernel_shape": op.window,
        "strides": op.stride,
        "pads": op.pad,
        "ceil_mode": int(op.ceil_mode),
    }
    if op.dilation != (1, 1):
        attributes["dilations"] = op.dilation
    if isinstance(op, AvgPool2d):
        attributes["count_include_pad"] = int(op.count_include_pad)
    w.add("MaxPool" if isinstance(op, MaxPool2d) else "AveragePool", inputs, y, **attributes)


def _global_pool(w: _Writer, op: GlobalPool2d, inputs: Sequence[str], y: str) -> None:
    kind = "GlobalMaxPool" if isinstance(op, GlobalMaxPool) else "GlobalAveragePool"
    if op.keep:
        w.add(kind, inputs, y)
    else:
        w.add("Flatten", [w.add(kind, inputs, w.fresh(f"{y}.maps"))], y, axis=1)


def _clip(w: _Writer, inputs: Sequence[str], y: str, low: float, high: float) -> None:
    bounds = [w.constant(f"{y}.{n}", v, "float32") for n, v in (("low", low), ("high", high))]
    w.add("Clip", [*inputs, *bounds], y)


def _silu(w: _Writer, op: Silu, inputs: Sequence[str], y: str) -> None:
    w.add("Mul", [inputs[0], w.add("Sigmoid", inputs, w.fresh(f"{y}.gate"))], y)


def _reshape(w: _Writer, op: Reshape, inputs: Sequence[str], y: str) -> None:
    w.add("Reshape", [*inputs, w.constant(f"{y}.shape", op.shape, "int64")], y)


def _pad(w: _Writer, op: Pad, inputs: Sequence[str], y: str) -> None:
    top, left, bottom, right = op.pad
    pads = w.constant(f"{y}.pads", (0, 0, top, left, 0, 0, bottom, right), "int64")
    w.add("Pad", [*inputs, pads, w.constant(f"{y}.value", op.value, "float32")], y)


def _slice(w: _Writer, op: Slice, inputs: Sequence[str], y: str) -> None:
    fields = {"starts": op.starts, "stops": op.stops, "axes": op.axes, "steps": op.steps}
    bounds = [w.constant(f"{y}.{name}", values, "int64") for name, values in fields.items()]
    w.add("Slice", [*inputs, *bounds], y)


def _border(w: _Writer, op: Border, inputs: Sequence[str], y: str) -> None:
    pads = w.constant(f"{y}.pads", (*op.before, *op.after), "int64")
    dtype = str(w.graph.types[y].dtype.numpy)
    value = [w.constant(f"{y}.value", op.value, dtype)] if op.mode is Filling.CONSTANT else []
    w.add("Pad", [*inputs, pads, *value], y, mode=op.mode.value)


def _trilu(w: _Writer, op: Trilu, inputs: Sequence[str], y: str) -> None:
    w.add("Trilu", [*inputs, w.constant(f"{y}.k", op.k, "int64")], y, upper=int(op.upper))


def _upsample(w: _Writer, op: Upsample, inputs: Sequence[str], y: str) -> None:
    scales = w.constant(f"{y}.scales", (1, 1, *op.scale), "float32")
    if op.mode is Resampling.NEAREST:
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        w.add("Resize", [*inputs, "", scales], y, nearest_mode="floor", **how)
    else:
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        w.add("Resize", [*inputs, "", scales], y, **how)


def _resize(w: _Writer, op: Resize, inputs: Sequence[str], y: str) -> None:
    """One node for axes that go by their sizes, and one for those that go by a scale."""
    shape = w.graph.types[inputs[0]].shape
    for part in op.axes:
        length = shape[part.axis]
        if part.scale and (not isinstance(length, int) or part.size != int(part.scale * length)):
            raise CnncError(f"resize `{y}` has a size that is not its scale's: ONNX cannot say so")
    by_size = [part for part in op.axes if not part.scale]
    by_scale = [part for part in op.axes if part.scale]
    running = inputs[0]
    for parts in filter(None, (by_size, by_scale)):
        result = y if parts is by_scale or not by_scale else w.fresh(f"{y}.sizes")
        _resize_axes(w, op, parts, running, result)
        running = result
    if not op.axes:
        w.add("Identity", inputs, y)


def _resize_axes(w: _Writer, op: Resize, parts: Sequence[ResizedAxis], x: str, result: str) -> None:
    attributes: dict[str, Any] = {
        "axes": [part.axis for part in parts],
        "mode": op.mode.value,
        "coordinate_transformation_mode": op.coordinates.value,
        "extrapolation_value": op.extrapolation,
    }
    if op.mode is Interpolation.NEAREST:
        attributes["nearest_mode"] = op.rounding.value
    else:
        attributes |= {
            "antialias": int(op.antialias),
            "exclude_outside": int(op.exclude_outside),
            "cubic_coeff_a": op.cubic,
        }
    region = [part.start for part in parts] + [part.end for part in parts]
    roi = w.constant(f"{result}.roi", region, "float32")
    if parts[0].scale:
        scales = w.constant(f"{result}.scales", [part.scale for part in parts], "float32")
        w.add("Resize", [x, roi, scales], result, **attributes)
    else:
        sizes = w.constant(f"{result}.sizes", [part.size for part in parts], "int64")
        w.add("Resize", [x, roi, "", sizes], result, **attributes)


_REDUCTIONS = {
    How.SUM: "ReduceSum",
    How.MEAN: "ReduceMean",
    How.MAX: "ReduceMax",
    How.MIN: "ReduceMin",
    How.PROD: "ReduceProd",
    How.L1: "ReduceL1",
    How.L2: "ReduceL2",
    How.SUM_SQUARE: "ReduceSumSquare",
    How.LOG_SUM: "ReduceLogSum",
    How.LOG_SUM_EXP: "ReduceLogSumExp",
}


def _reduction(w: _Writer, op: Reduction, inputs: Sequence[str], y: str) -> None:
    axes = w.constant(f"{y}.axes", op.axes, "int64")
    how = {"keepdims": int(op.keep), "noop_with_empty_axes": 1}
    w.add(_REDUCTIONS[op.how], [*inputs, axes], y, **how)


def _normalize(w: _Writer, op: Normalize, inputs: Sequence[str], y: str) -> None:
    """Written out: ONNX has this with scale and shift only, and not over all axes."""
    (x,) = inputs
    type = w.graph.types[x]
    axes, result = op.places(type.rank), y
    if op.groups > 1:
        sizes = TensorType(type.shape[1:]).dims
        split = (0, op.groups, sizes[0] // op.groups, *sizes[1:])
        shape = w.constant(f"{y}.split", split, "int64")
        x, result = w.add("Reshape", [x, shape], w.fresh(f"{y}.groups")), w.fresh(f"{y}.grouped")
        axes = tuple(axis + (axis > 0) for axis in axes)

    def mean(values: str, what: str) -> str:
        along = w.constant(f"{y}.axes", axes, "int64")
        how = {"keepdims": 1, "noop_with_empty_axes": 1}
        return w.add("ReduceMean", [values, along], w.fresh(f"{y}.{what}"), **how)

    off = w.add("Sub", [x, mean(x, "mean")], w.fresh(f"{y}.off")) if op.centred else x
    variance = mean(w.add("Mul", [off, off], w.fresh(f"{y}.square")), "variance")
    epsilon = w.constant(f"{y}.epsilon", op.epsilon, type.dtype.value)
    base = w.add("Add", [variance, epsilon], w.fresh(f"{y}.base"))
    w.add("Div", [off, w.add("Sqrt", [base], w.fresh(f"{y}.root"))], result)
    if op.groups > 1:
        shape = w.constant(f"{y}.shape", (0, *TensorType(type.shape[1:]).dims), "int64")
        w.add("Reshape", [result, shape], y)


def _arg_extreme(w: _Writer, op: ArgExtreme, inputs: Sequence[str], y: str) -> None:
    how = {"keepdims": int(op.keep), "select_last_index": int(op.last)}
    w.add("ArgMax" if isinstance(op, ArgMax) else "ArgMin", inputs, y, axis=op.axis, **how)


def _cum_sum(w: _Writer, op: CumSum, inputs: Sequence[str], y: str) -> None:
    axis = w.constant(f"{y}.axis", op.axis, "int64")
    w.add("CumSum", [*inputs, axis], y, exclusive=int(op.exclusive), reverse=int(op.reverse))


def _roi_align(w: _Writer, op: RoiAlign, inputs: Sequence[str], y: str) -> None:
    w.add(
        "RoiAlign",
        inputs,
        y,
        output_height=op.bins[0],
        output_width=op.bins[1],
        sampling_ratio=op.samples,
        spatial_scale=op.scale,
        mode=op.pooling.value,
        coordinate_transformation_mode="half_pixel" if op.half_pixel else "output_half_pixel",
    )


_GELU = {False: "none", True: "tanh"}


def _cast(w: _Writer, op: Cast, inputs: Sequence[str], y: str) -> None:
    w.add("Cast", inputs, y, to=w.onnx.helper.np_dtype_to_tensor_dtype(op.to.numpy))


def _col2im(w: _Writer, op: Col2Im, inputs: Sequence[str], y: str) -> None:
    image = w.constant(f"{y}.image", op.image, "int64")
    block = w.constant(f"{y}.block", op.block, "int64")
    how = {"strides": op.stride, "dilations": op.dilation, "pads": op.pad}
    w.add("Col2Im", [*inputs, image, block], y, **how)


def _grid_sample(w: _Writer, op: GridSample, inputs: Sequence[str], y: str) -> None:
    how = {"mode": op.mode.value, "padding_mode": op.padding.value}
    w.add("GridSample", inputs, y, align_corners=int(op.align_corners), **how)


def _affine_grid(w: _Writer, op: AffineGrid, inputs: Sequence[str], y: str) -> None:
    """As a product with the places of the unmoved image: ONNX's own wants a number of images."""
    k = len(op.size)
    unmoved = np.eye(k, k + 1, dtype=np.float64)[None]
    places = op.evaluate(unmoved).reshape(-1, k)
    homogeneous = np.concatenate([places, np.ones((len(places), 1))], axis=1)
    base = w.constant(f"{y}.places", homogeneous, str(w.graph.types[inputs[0]].dtype.numpy))
    turned = w.add("Transpose", inputs, w.fresh(f"{y}.turned"), perm=(0, 2, 1))
    moved = w.add("MatMul", [base, turned], w.fresh(f"{y}.moved"))
    shape = w.constant(f"{y}.shape", (0, *op.size, k), "int64")
    w.add("Reshape", [moved, shape], y)


EXPORTERS: dict[type[Op], Exporter] = {
    Conv2d: _conv,
    ConvNd: _conv_nd,
    ConvTranspose2d: _conv,
    Dense: lambda w, op, inputs, y: w.add("Gemm", inputs, y, transB=1),
    MatMul: _matmul,
    BatchNorm: lambda w, op, inputs, y: w.add("BatchNormalization", inputs, y, epsilon=op.epsilon),
    Softmax: lambda w, op, inputs, y: w.add(
        "LogSoftmax" if op.log else "Softmax", inputs, y, axis=op.axis
    ),
    Reduction: _reduction,
    Normalize: _normalize,
    ArgMax: _arg_extreme,
    ArgMin: _arg_extreme,
    Hardmax: lambda w, op, inputs, y: w.add("Hardmax", inputs, y, axis=op.axis),
    CumSum: _cum_sum,
    MaxPool2d: _pool,
    AvgPool2d: _pool,
    GlobalAvgPool: _global_pool,
    GlobalMaxPool: _global_pool,
    Relu: _simple("Relu"),
    Relu6: lambda w, op, inputs, y: _clip(w, inputs, y, 0, 6),
    LeakyRelu: lambda w, op, inputs, y: w.add("LeakyRelu", inputs, y, alpha=op.alpha),
    Sigmoid: _simple("Sigmoid"),
    Tanh: _simple("Tanh"),
    Silu: _silu,
    HardSigmoid: _simple("HardSigmoid", alpha=1 / 6, beta=0.5),
    HardSwish: _simple("HardSwish"),
    Elu: lambda w, op, inputs, y: w.add("Elu", inputs, y, alpha=op.alpha),
    Clip: lambda w, op, inputs, y: _clip(w, inputs, y, op.low, op.high),
    Abs: _simple("Abs"),
    Neg: _simple("Neg"),
    Exp: _simple("Exp"),
    Log: _simple("Log"),
    Sin: _simple("Sin"),
    Cos: _simple("Cos"),
    Tan: _simple("Tan"),
    Asin: _simple("Asin"),
    Acos: _simple("Acos"),
    Atan: _simple("Atan"),
    Sinh: _simple("Sinh"),
    Cosh: _simple("Cosh"),
    Asinh: _simple("Asinh"),
    Acosh: _simple("Acosh"),
    Atanh: _simple("Atanh"),
    Floor: _simple("Floor"),
    Ceil: _simple("Ceil"),
    Round: _simple("Round"),
    Sign: _simple("Sign"),
    Reciprocal: _simple("Reciprocal"),
    Erf: _simple("Erf"),
    Pow: _simple("Pow"),
    Softplus: _simple("Softplus"),
    Softsign: _simple("Softsign"),
    Mish: _simple("Mish"),
    PRelu: _simple("PRelu"),
    Equal: _simple("Equal"),
    Less: _simple("Less"),
    And: _simple("And"),
    Or: _simple("Or"),
    Xor: _simple("Xor"),
    Not: _simple("Not"),
    IsNaN: _simple("IsNaN"),
    Where: _simple("Where"),
    LessEqual: _simple("LessOrEqual"),
    Gelu: lambda w, op, inputs, y: w.add("Gelu", inputs, y, approximate=_GELU[op.tanh]),
    Celu: lambda w, op, inputs, y: w.add("Celu", inputs, y, alpha=op.alpha),
    Selu: lambda w, op, inputs, y: w.add("Selu", inputs, y, alpha=op.alpha, gamma=op.gamma),
    ThresholdedRelu: lambda w, op, inputs, y: w.add("ThresholdedRelu", inputs, y, alpha=op.alpha),
    Shrink: lambda w, op, inputs, y: w.add("Shrink", inputs, y, lambd=op.threshold, bias=op.bias),
    IsInf: lambda w, op, inputs, y: w.add(
        "IsInf",
        inputs,
        y,
        detect_negative=int(op.negative),
        detect_positive=int(op.positive),
    ),
    Mod: lambda w, op, inputs, y: w.add("Mod", inputs, y, fmod=int(op.fmod)),
    BitAnd: _simple("BitwiseAnd"),
    BitOr: _simple("BitwiseOr"),
    BitXor: _simple("BitwiseXor"),
    BitNot: _simple("BitwiseNot"),
    BitShift: lambda w, op, inputs, y: w.add("BitShift", inputs, y, direction=op.direction.name),
    Cast: _cast,
    Sqrt: _simple("Sqrt"),
    Add: _simple("Add"),
    Sub: _simple("Sub"),
    Mul: _simple("Mul"),
    Div: _simple("Div"),
    Max: _simple("Max"),
    Min: _simple("Min"),
    Pointwise: _simple("Identity"),
    Concat: lambda w, op, inputs, y: w.add("Concat", inputs, y, axis=op.axis),
    Flatten: _simple("Flatten", axis=1),
    Reshape: _reshape,
    Dropout: _simple("Identity"),
    Pad: _pad,
    Transpose: lambda w, op, inputs, y: w.add("Transpose", inputs, y, perm=op.perm),
    Slice: _slice,
    Expand: lambda w, op, inputs, y: w.add(
        "Expand", [*inputs, w.constant(f"{y}.shape", op.shape, "int64")], y
    ),
    Tile: lambda w, op, inputs, y: w.add(
        "Tile", [*inputs, w.constant(f"{y}.repeats", op.repeats, "int64")], y
    ),
    Border: _border,
    Trilu: _trilu,
    Upsample: _upsample,
    Resize: _resize,
    Gather: lambda w, op, inputs, y: w.add("Gather", inputs, y, axis=op.axis),
    GatherElements: lambda w, op, inputs, y: w.add("GatherElements", inputs, y, axis=op.axis),
    GatherND: lambda w, op, inputs, y: w.add("GatherND", inputs, y, batch_dims=op.batch_dims),
    ScatterElements: lambda w, op, inputs, y: w.add(
        "ScatterElements", inputs, y, axis=op.axis, reduction=op.reduction.value
    ),
    ScatterND: lambda w, op, inputs, y: w.add("ScatterND", inputs, y, reduction=op.reduction.value),
    NonZero: _simple("NonZero"),
    RoiAlign: _roi_align,
    Col2Im: _col2im,
    AffineGrid: _affine_grid,
    GridSample: _grid_sample,
}


def export_onnx(graph: Graph) -> Any:
    """The graph as an `onnx.ModelProto`; a symbolic batch stays symbolic.

    Raises:
        CnncError: the `onnx` package is missing, or an op has no ONNX form; all are listed.
    """
    try:
        from onnx import checker, helper, numpy_helper
    except ImportError:
        raise CnncError(
            Diagnostic("exporting needs the `onnx` package", help='pip install "cnnc[onnx]"')
        ) from None
    unknown = [node for node in graph.nodes if type(node.op) not in EXPORTERS]
    if unknown:
        raise CnncError(
            [Diagnostic(f"{n.op.name} `{n.title}` has no ONNX form", n.location) for n in unknown]
        )
    writer = _Writer(graph)
    for node in graph.nodes:
        for op, operands, result in _steps(writer, node):
            EXPORTERS[type(op)](writer, op, operands, result)
    weights = [numpy_helper.from_array(a, name) for name, a in graph.constants.items()]
    outputs = []
    for public, value in graph.outputs:
        if public != value:
            writer.add("Identity", [value], public)
        outputs.append(_value_info(public, graph.types[value]))
    body = helper.make_graph(
        writer.nodes,
        graph.name,
        [_value_info(name, graph.types[name]) for name in graph.inputs],
        outputs,
        [*weights, *writer.constants],
    )
    ops = [op for node in graph.nodes for op, _, _ in _steps(writer, node)]
    opset = [helper.make_opsetid("", max(map(_since, ops), default=OPSET))]
    model = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION)
    model.producer_name = "cnnc"
    checker.check_model(model)
    return model


def _since(op: Op) -> int:
    """The opset that the op's form needs."""
    if isinstance(op, Gelu | GridSample):
        return NEWEST_OPSET
    return NEWER_OPSET if _is_newer(op) else OPSET


def _is_newer(op: Op) -> bool:
    """Whether the op needs what average pooling, Resize and padding have since opset 19."""
    if isinstance(op, Resize):
        return op.coordinates is Coordinates.HALF_PIXEL_SYMMETRIC
    if isinstance(op, Border):
        return op.mode is Filling.WRAP
    return isinstance(op, AvgPool2d) and op.dilation != (1, 1)


def _steps(writer: _Writer, node: Node) -> Iterator[tuple[Op, Sequence[str], str]]:
    """The node's op, then its epilogue step by step: (op, operands, result)."""
    if not isinstance(node.op, Fusable) or not node.op.epilogue:
        yield node.op, node.operands, node.name
        return
    own, extras = node.op.split(node.operands)
    running = writer.fresh(f"{node.name}.0")
    yield node.op, own, running
    rest = iter(extras)
    for i, step in enumerate(node.op.epilogue, 1):
        last = i == len(node.op.epilogue)
        result = node.name if last else writer.fresh(f"{node.name}.{i}")
        yield step.op, step.arrange(running, rest), result
        running = result


def _value_info(name: str, type: TensorType) -> Any:
    from onnx import helper

    element = helper.np_dtype_to_tensor_dtype(type.dtype.numpy)
    shape = [dim if isinstance(dim, int) else str(dim) for dim in type.shape]
    return helper.make_tensor_value_info(name, element, shape)
