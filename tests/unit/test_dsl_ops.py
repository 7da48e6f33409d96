"""The `.cnn` language: every operation, and what layers do about sizes and weights."""

from __future__ import annotations

import pytest
from dsl_harness import applied, load

from cnnc.frontends.dsl import trainable
from cnnc.frontends.dsl.ops import OPERATIONS
from cnnc.ir import ops
from cnnc.ir.op import Op, Step

FLAT = "f32[N, 6]"
ROWS: dict[str, tuple[str, Op, str]] = {
    "conv(4, 3)": ("f32[N, 3, 8, 8]", ops.Conv2d(), "f32[N,4,6,6]"),
    "conv(6, [3, 1], 2, pad=1, dilation=2, groups=3, bias=no)": (
        "f32[N, 3, 8, 8]",
        ops.Conv2d(stride=(2, 2), pad=(1, 1, 1, 1), dilation=(2, 2), groups=3),
        "f32[N,6,3,5]",
    ),
    "conv(4, 3, pad=[0, 1, 2, 3])": (
        "f32[N, 3, 8, 8]",
        ops.Conv2d(pad=(0, 1, 2, 3)),
        "f32[N,4,8,10]",
    ),
    "dwconv(3, mult=2, pad=1)": (
        "f32[N, 3, 8, 8]",
        ops.Conv2d(pad=(1, 1, 1, 1), groups=3),
        "f32[N,6,8,8]",
    ),
    "bn(eps=0.001)": ("f32[N, 3, 8, 8]", ops.BatchNorm(epsilon=0.001), "f32[N,3,8,8]"),
    "inorm": (
        "f32[N, 3, 8, 8]",
        ops.Normalize(axes=(2, 3), epilogue=(Step(ops.Mul()), Step(ops.Add()))),
        "f32[N,3,8,8]",
    ),
    "gnorm(3, 0.1)": (
        "f32[N, 6, 8]",
        ops.Normalize(
            axes=(1, 2), epsilon=0.1, groups=3, epilogue=(Step(ops.Mul()), Step(ops.Add()))
        ),
        "f32[N,6,8]",
    ),
    "lnorm": (
        "f32[N, 7, 8]",
        ops.Normalize(axes=(2,), epilogue=(Step(ops.Mul()), Step(ops.Add()))),
        "f32[N,7,8]",
    ),
    "mean([2, 3])": (
        "f32[N, 3, 8, 8]",
        ops.Reduction(how=ops.How.MEAN, axes=(2, 3)),
        "f32[N,3]",
    ),
    "sum([-1], keep=yes)": (
        "f32[N, 3]",
        ops.Reduction(how=ops.How.SUM, axes=(-1,), keep=True),
        "f32[N,1]",
    ),
    "cmean": (
        "f32[N, 3, 8, 8]",
        ops.Reduction(how=ops.How.MEAN, axes=(1,), keep=True),
        "f32[N,1,8,8]",
    ),
    "cmax": (
        "f32[N, 3, 8, 8]",
        ops.Reduction(how=ops.How.MAX, axes=(1,), keep=True),
        "f32[N,1,8,8]",
    ),
    "argmax": ("f32[N, 3, 8, 8]", ops.ArgMax(axis=1), "i64[N,8,8]"),
    "upconv(4, 2, 2)": (
        "f32[N, 3, H, 8]",
        ops.ConvTranspose2d(stride=(2, 2)),
        "f32[N,4,2*H,16]",
    ),
    "upconv(6, [3, 2], pad=[1, 0, 2, 1], dilation=[1, 2], groups=3, output_padding=[0, 1])": (
        "f32[N, 3, 8, 8]",
        ops.ConvTranspose2d(pad=(1, 0, 2, 1), dilation=(1, 2), groups=3, output_padding=(0, 1)),
        "f32[N,6,7,10]",
    ),
    "upconv(4, 3, 2, same)": (
        "f32[N, 3, 5, 8]",
        ops.ConvTranspose2d(stride=(2, 2), pad=(0, 0, 1, 1)),
        "f32[N,4,10,16]",
    ),
    "upconv(4, 3, 2, valid, bias=no)": (
        "f32[N, 3, 5, 8]",
        ops.ConvTranspose2d(stride=(2, 2)),
        "f32[N,4,11,17]",
    ),
    "dense(5)": (FLAT, ops.Dense(), "f32[N,5]"),
    "maxpool(2)": (
        "f32[N, 3, 8, 8]",
        ops.MaxPool2d(window=(2, 2), stride=(2, 2)),
        "f32[N,3,4,4]",
    ),
    "maxpool(3, 2, pad=1, ceil=yes)": (
        "f32[N, 3, 8, 8]",
        ops.MaxPool2d(window=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1), ceil_mode=True),
        "f32[N,3,5,5]",
    ),
    "avgpool([2, 4], dilation=2, stride=1, include_pad=yes)": (
        "f32[N, 3, 8, 8]",
        ops.AvgPool2d(window=(2, 4), dilation=(2, 2), count_include_pad=True),
        "f32[N,3,6,2]",
    ),
    "gap": ("f32[N, 3, 8, 8]", ops.GlobalAvgPool(), "f32[N,3]"),
    "gap(keep=yes)": ("f32[N, 3, 8, 8]", ops.GlobalAvgPool(keep=True), "f32[N,3,1,1]"),
    "gmp": ("f32[N, 3, 8, 8]", ops.GlobalMaxPool(), "f32[N,3]"),
    "gmp(keep=yes)": ("f32[N, 3, 8, 8]", ops.GlobalMaxPool(keep=True), "f32[N,3,1,1]"),
    "relu": (FLAT, ops.Relu(), "f32[N,6]"),
    "relu6": (FLAT, ops.Relu6(), "f32[N,6]"),
    "leaky(0.2)": (FLAT, ops.LeakyRelu(alpha=0.2), "f32[N,6]"),
    "sigmoid": (FLAT, ops.Sigmoid(), "f32[N,6]"),
    "tanh": (FLAT, ops.Tanh(), "f32[N,6]"),
    "silu": (FLAT, ops.Silu(), "f32[N,6]"),
    "hswish": (FLAT, ops.HardSwish(), "f32[N,6]"),
    "hsigmoid": (FLAT, ops.HardSigmoid(), "f32[N,6]"),
    "elu": (FLAT, ops.Elu(), "f32[N,6]"),
    "elu(0.5)": (FLAT, ops.Elu(alpha=0.5), "f32[N,6]"),
    "clip(-1, 2)": (FLAT, ops.Clip(low=-1.0, high=2.0), "f32[N,6]"),
    "clip(high=2)": (FLAT, ops.Clip(high=2.0), "f32[N,6]"),
    "gelu": (FLAT, ops.Gelu(), "f32[N,6]"),
    "gelu(tanh=yes)": (FLAT, ops.Gelu(tanh=True), "f32[N,6]"),
    "celu(0.5)": (FLAT, ops.Celu(alpha=0.5), "f32[N,6]"),
    "softplus": (FLAT, ops.Softplus(), "f32[N,6]"),
    "softsign": (FLAT, ops.Softsign(), "f32[N,6]"),
    "mish": (FLAT, ops.Mish(), "f32[N,6]"),
    "selu": (FLAT, ops.Selu(), "f32[N,6]"),
    "log": (FLAT, ops.Log(), "f32[N,6]"),
    "erf": (FLAT, ops.Erf(), "f32[N,6]"),
    "sin": (FLAT, ops.Sin(), "f32[N,6]"),
    "cos": (FLAT, ops.Cos(), "f32[N,6]"),
    "floor": (FLAT, ops.Floor(), "f32[N,6]"),
    "ceil": (FLAT, ops.Ceil(), "f32[N,6]"),
    "round": (FLAT, ops.Round(), "f32[N,6]"),
    "sign": (FLAT, ops.Sign(), "f32[N,6]"),
    "abs": (FLAT, ops.Abs(), "f32[N,6]"),
    "exp": (FLAT, ops.Exp(), "f32[N,6]"),
    "sqrt": (FLAT, ops.Sqrt(), "f32[N,6]"),
    "softmax": (FLAT, ops.Softmax(axis=1), "f32[N,6]"),
    "softmax(axis=-1)": (FLAT, ops.Softmax(axis=1), "f32[N,6]"),
    "flatten": ("f32[N, 3, 8, 8]", ops.Flatten(), "f32[N,192]"),
    "reshape([0, 4, -1])": ("f32[N, 3, 8, 8]", ops.Reshape(shape=(0, 4, -1)), "f32[N,4,48]"),
    "dropout(0.2)": (FLAT, ops.Dropout(rate=0.2), "f32[N,6]"),
    "pad([1, 2, 3, 4], 0.5)": (
        "f32[N, 3, 8, 8]",
        ops.Pad(pad=(1, 2, 3, 4), value=0.5),
        "f32[N,3,12,14]",
    ),
    "transpose([0, 2, 3, 1])": (
        "f32[N, 3, H, 8]",
        ops.Transpose(perm=(0, 2, 3, 1)),
        "f32[N,H,8,3]",
    ),
    "slice(-1, 1, -1, 2)": (
        "f32[N, 3, 8, 8]",
        ops.Slice(axes=(3,), starts=(1,), stops=(-1,), steps=(2,)),
        "f32[N,3,8,3]",
    ),
    "slice(2)": (
        "f32[N, 3, H, 8]",
        ops.Slice(axes=(2,), starts=(0,), stops=((1 << 31) - 1,), steps=(1,)),
        "f32[N,3,H,8]",
    ),
    "expand([3, 1, 8])": ("f32[N, 1, H, 1]", ops.Expand(shape=(3, 1, 8)), "f32[N,3,H,8]"),
    "tile([1, 2, 3])": ("f32[N, 3, H]", ops.Tile(repeats=(1, 2, 3)), "f32[N,6,3*H]"),
    "border([0, 2], [0, -1])": (FLAT, ops.Border(before=(0, 2), after=(0, -1)), "f32[N,7]"),
    "border([0, 2], [0, 1], reflect)": (
        FLAT,
        ops.Border(before=(0, 2), after=(0, 1), mode=ops.Filling.REFLECT),
        "f32[N,9]",
    ),
    "triu(1)": ("f32[N, 3, 3]", ops.Trilu(k=1), "f32[N,3,3]"),
    "tril": ("f32[N, 3, 3]", ops.Trilu(upper=False), "f32[N,3,3]"),
    "upsample(2)": ("f32[N, 3, H, 8]", ops.Upsample(scale=(2, 2)), "f32[N,3,2*H,16]"),
    "upsample([1, 3], bilinear)": (
        "f32[N, 3, 8, 8]",
        ops.Upsample(scale=(1, 3), mode=ops.Resampling.BILINEAR),
        "f32[N,3,8,24]",
    ),
}


@pytest.mark.parametrize("expr", ROWS)
def test_op(expr: str) -> None:
    input, op, type = ROWS[expr]
    assert applied(expr, input) == (op, type)


def test_concat() -> None:
    graph = load("output y = concat(x, x, relu(x), axis=-1)")
    assert graph.nodes[-1].op == ops.Concat(axis=3)
    assert str(graph.types["concat[0]"]) == "f32[N,3,8,24]"


def test_every_op_is_tested() -> None:
    tested = {expr.partition("(")[0] for expr in ROWS} | {"concat"}
    assert tested == set(OPERATIONS)


@pytest.mark.parametrize("size", range(5, 12))
@pytest.mark.parametrize(("k", "stride", "dilation"), [(3, 1, 1), (2, 1, 1), (3, 2, 1), (2, 3, 2)])
def test_same_is_same_upper(size: int, k: int, stride: int, dilation: int) -> None:
    for op in (f"conv(4, {k}", f"maxpool({k}"):
        expr = f"{op}, stride={stride}, dilation={dilation}, pad=same)"
        made, type = applied(expr, f"f32[N, 3, {size}, 9]")
        assert type.split(",")[2] == str(-(-size // stride))
        assert isinstance(made, ops.Conv2d | ops.MaxPool2d)
        top, _, bottom, _ = made.pad
        assert top <= bottom <= top + 1


def test_same_of_a_symbolic_size() -> None:
    op, type = applied("conv(4, 3, stride=2, pad=same)", "f32[N, 3, H%2, 7]")
    assert isinstance(op, ops.Conv2d)
    assert (op.pad, type) == ((0, 1, 1, 1), "f32[N,4,H/2%2,4]")


def test_weights_of_layers() -> None:
    graph = load("output y = x -> conv(4, 3) -> bn -> flatten -> dense(5, bias=no)")
    shapes = {name: array.shape for name, array in graph.constants.items()}
    assert shapes == {
        "conv[0].weight": (4, 3, 3, 3),
        "conv[0].bias": (4,),
        "bn[0].scale": (4,),
        "bn[0].shift": (4,),
        "bn[0].mean": (4,),
        "bn[0].variance": (4,),
        "dense[0].weight": (5, 144),
    }
    assert trainable(graph) == 4 * 27 + 4 + 8 + 5 * 144
