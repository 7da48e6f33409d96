"""The `.cnn` language: what each construct means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnnc.frontends.dsl import load_file, load_text, trainable
from cnnc.frontends.dsl.ops import OPERATIONS
from cnnc.ir import ops
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError, Location, ParseError
from cnnc.ir.op import Op, Step
from cnnc.ir.types import Sym


def load(body: str, before: str = "", input: str = "f32[N, 3, 8, 8]") -> Graph:
    return load_text(
        f"{before}\nmodel m {{\n  input x: {input}\n{body}\n}}\n", "m.cnn", init="zeros"
    )


def applied(expr: str, input: str = "f32[N, 3, 8, 8]") -> tuple[Op, str]:
    """The op that `x -> expr` makes and the type of its result."""
    graph = load(f"output y = x -> {expr}", input=input)
    (node,) = graph.nodes
    return node.op, str(graph.types[node.name])


def value(expr: str, before: str = "", input: str = "f32[N, 3, 8, 8]") -> int | Sym:
    """The value of a compile-time expression, read off the pad that it makes."""
    graph = load(f"output y = x -> pad([{expr}, 0, 0, 0])", before, input)
    (node,) = graph.nodes
    assert isinstance(node.op, ops.Pad)
    return node.op.pad[0]


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


# -- ops -----------------------------------------------------------------------------------------

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


# -- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("20 - 3 - 4", 13),
        ("20 // 3 // 2", 3),
        ("17 % 10 * 2", 14),
        ("2 * -3 + 7", 1),
        ("-7 // 2 + 9", 5),
        ("if not 1 == 2 and 3 < 4 then 1 else 2", 1),
        ("if yes or no and no then 1 else 2", 1),
        ("if 1 + 1 == 2 then 3 + 4 else 0", 7),
        ("if no then 1 else if no then 2 else 3", 3),
        ("if 1.5 > 1 then 1 else 0", 1),
        ('if "a" + 1 == "a1" then 1 else 0', 1),
        ("(1..1+2)[2]", 3),
        ("[1, (2, 3)][1][0]", 2),
        ("([1] + [2, 3])[-1]", 3),
        ("len([1, 2]) + len(1..5)", 7),
        ("min(3, 1, 2) + max([4, 5]) + floor(2.7) + ceil(2.2)", 11),
        ("floor(7 / 2)", 3),
        ("x.c + x.h * x.w + x.rank", 71),
        ("x.shape[2]", 8),
        ("k * 2", 10),
        ("1_000", 1000),
    ],
)
def test_values(expr: str, expected: int) -> None:
    assert value(expr, "const k = 2 + 3") == expected


def test_short_circuit() -> None:
    assert value("if no and 1 // 0 == 1 then 1 else 2") == 2
    assert value("if yes or 1 // 0 == 1 then 1 else 2") == 1
    assert value("if yes then 1 else 1 // 0") == 1


def test_tensor_arithmetic() -> None:
    graph = load("y = (x + x) * 2 - x / x\noutput z = 1 - -y")
    kinds = [node.op.name for node in graph.nodes]
    assert kinds == ["add", "mul", "div", "sub", "neg", "sub"]
    assert graph.constants["y.mul.value"] == 2 and graph.constants["y.mul.value"].shape == ()
    assert graph.nodes[-1].operands == ("sub.value", "neg[0]")


def test_extremes_of_tensors_and_of_numbers() -> None:
    graph = load("a = max(x, max(1, 3), -x)\noutput y = min([a, x])")
    assert [node.op.name for node in graph.nodes] == ["neg", "max", "max", "min"]
    assert graph.constants["a.max.value"] == 3
    with pytest.raises(ParseError, match="`max` does not work on a tensor"):
        load("output y = max(x)")
    with pytest.raises(ParseError, match="shapes do not match in `min`: dimension C"):
        load("output y = min(x, x -> conv(4, 1))")


def test_what_an_upconv_cannot_do() -> None:
    with pytest.raises(ParseError, match="groups=2 must divide 3 channels in and 4 out"):
        load("output y = x -> upconv(4, 2, groups=2)")
    with pytest.raises(ParseError, match="`pad=same` needs a kernel and output_padding that"):
        load("output y = x -> upconv(4, 2, 3, same)")
    with pytest.raises(ParseError, match="output_padding must be >= 0 and less than"):
        load("output y = x -> upconv(4, 2, output_padding=1)")
    with pytest.raises(ParseError, match="leaves 0 rows of the result"):
        load("output y = x -> upconv(4, 1, pad=[4, 0, 4, 0])")


@pytest.mark.parametrize(
    ("expr", "inputs"),
    [
        ("upconv(4, 4, 2, 1)", 11),  # 3 * (30 / 16) ** 2: two taps, but one at each border
        ("upconv(4, 2, 2)", 3),
        ("upconv(6, 3, groups=3, pad=1)", 8),  # (22 / 8) ** 2
        ("gap(keep=yes) -> upconv(4, 5)", 3),  # of a single element each result meets one tap
    ],
)
def test_random_weights_of_an_upconv_know_how_much_is_summed(expr: str, inputs: int) -> None:
    text = f"model m {{\n  input x: f32[N, 3, 8, 8]\n  output y = x -> {expr}\n"
    drawn = [load_text(text + f"  init {how}(seed=1)\n}}\n") for how in ("he", "normal")]
    he, normal = (next(a for a in g.constants.values() if a.ndim == 4) for g in drawn)
    # The same numbers in other sizes: the standard deviations are sqrt(2 / inputs) and 0.02.
    found = 2 / float(np.mean(np.square(he / normal))) / 0.02**2
    assert round(found) == inputs


def test_broadcasting() -> None:
    graph = load("output y = x * (x -> gap(keep=yes) -> sigmoid)")
    assert str(graph.types["mul[0]"]) == "f32[N,3,8,8]"


def test_arrow_binds_loosest() -> None:
    graph = load("s = x -> relu\noutput y = x + s -> tanh")
    assert [node.op.name for node in graph.nodes] == ["relu", "add", "tanh"]


# -- stages and blocks ---------------------------------------------------------------------------


def test_applying_and_waiting() -> None:
    piped = load("output y = x -> conv(4, 3) -> relu")
    called = load("f = conv(4, 3)\noutput y = relu(f(x))")
    assert [node.op for node in piped.nodes] == [node.op for node in called.nodes]


def test_stages_compose_and_repeat() -> None:
    graph = load("f = conv(4, 3, pad=1) -> relu\noutput y = x -> f * 2 -> (f -> tanh) * 0 -> f")
    assert names(graph) == ["conv[0]", "relu[0]", "conv[1]", "relu[1]", "conv[2]", "relu[2]"]
    assert len(graph.constants) == 6  # copies are fresh


def test_block_with_defaults_and_names() -> None:
    before = "block cbr(c, k=1, s=k) = conv(c, k, stride=s, bias=no) -> bn -> relu"
    graph = load("output y = x -> cbr(8, s=1, k=3) -> cbr(c=4, k=2)", before)
    assert str(graph.types["cbr[1].relu[0]"]) == "f32[N,4,3,3]"
    assert names(graph)[:3] == ["cbr[0].conv[0]", "cbr[0].bn[0]", "cbr[0].relu[0]"]


def test_block_with_tensor_parameters() -> None:
    before = "block merge(a, b; c=4) = concat(b, a) -> conv(c, 1)"
    graph = load("s = x -> tanh\noutput y = x -> merge(s) \noutput z = merge(s, x, 5)", before)
    concats = [node for node in graph.nodes if node.op.name == "concat"]
    assert [node.operands for node in concats] == [("s.tanh[0]", "x"), ("x", "s.tanh[0]")]


def test_blocks_decide_by_shape() -> None:
    before = "block fit(c) {\n  if in.c == c {\n    return in\n  }\n  return in -> conv(c, 1)\n}"
    graph = load("output y = x -> fit(3) -> fit(4) -> fit(4)", before)
    assert names(graph) == ["fit[1].conv[0]"]


def test_block_takes_a_stage_and_returns_a_list() -> None:
    before = """
block residual(f) = in + (in -> f)
block both(k) {
  return (in -> relu, in -> conv(k, 1))
}
block recursive(n) = if n == 0 then in else in -> relu -> recursive(n - 1)
"""
    graph = load("a, b = x -> both(3)\noutput y = a + b -> residual(relu) -> recursive(2)", before)
    assert [node.op.name for node in graph.nodes] == ["relu", "conv2d", "add", *["relu", "add"],
                                                     "relu", "relu"]  # fmt: skip


def test_loops_and_patterns() -> None:
    body = """
y = x
for (c, (k, s)) in [(4, (3, 1)), (5, (1, 2))] {
  y = y -> conv(c, k, s)
  if c == 4 { y = y -> relu } else { y = y -> tanh }
}
for i in 2..3 {
  y = y -> conv(i, 1)
}
for i in 1..0 {
  y = y -> conv(99, 1)
}
output z = y
"""
    graph = load(body)
    kinds = [node.op.name for node in graph.nodes]
    assert kinds == ["conv2d", "relu", "conv2d", "tanh", "conv2d", "conv2d"]
    assert str(graph.types[graph.outputs[0][1]]) == "f32[N,3,3,3]"


def test_share_has_one_set_of_weights() -> None:
    before = """
block attention(r) {
  share mlp = conv(in.c//r, 1) -> relu -> conv(in.c, 1, bias=no)
  return in * sigmoid(mlp(gap(in, keep=yes)) + mlp(maxpool(in, 8)))
}
"""
    graph = load("output y = x -> conv(4, 1) -> attention(2) -> attention(2)", before)
    convs = [node for node in graph.nodes if node.name.startswith("attention[0].mlp.conv[0]")]
    assert [n.name for n in convs] == ["attention[0].mlp.conv[0]", "attention[0].mlp.conv[0]_1"]
    assert convs[0].operands[1:] == convs[1].operands[1:]
    assert trainable(graph) == 4 * 3 + 4 + 2 * (2 * 4 + 2 + 4 * 2)


def test_share_in_a_loop_is_fresh_each_time() -> None:
    graph = load(
        "y = x\nfor i in 1..2 {\n  share f = conv(3, 1, bias=no)\n  y = f(f(y))\n}\noutput z = y"
    )
    assert sorted(graph.constants) == ["f.conv[0].weight", "f[1].conv[0].weight"]


def test_several_outputs_and_inputs() -> None:
    graph = load("input z: f32[N, 3, 8, 8] -> relu\noutput a = x + z\noutput b = a -> tanh")
    assert graph.inputs == ("x", "z")
    assert graph.outputs == (("a", "add[0]"), ("b", "tanh[0]"))
    assert graph.nodes[0].name == "z.relu[0]"


def test_names_may_shadow_ops() -> None:
    graph = load("pad = 1\noutput y = x -> conv(4, 3, pad=pad) -> relu", "block relu = tanh")
    assert [node.op.name for node in graph.nodes] == ["conv2d", "tanh"]


def test_comments_and_line_ends() -> None:
    graph = load("output y =   # a comment\n  x\n   -> conv(4,\n\n  3,   # another\n)\n  -> relu")
    assert names(graph) == ["conv[0]", "relu[0]"]


def test_require() -> None:
    assert load('require x.c == 3 "three"\noutput y = x -> relu').nodes


# -- names ---------------------------------------------------------------------------------------


def test_structural_paths() -> None:
    before = """
block res(c) {
  main = in -> conv(c, 1) -> conv(c, 1)
  skip = in -> conv(c, 1)
  return relu(main + skip)
}
"""
    graph = load(
        "stem = x -> conv(4, 1)\ny = stem\nfor i in 1..2 {\n y = y -> res(4)\n}\noutput z = y",
        before,
    )
    assert names(graph)[:4] == [
        "stem.conv[0]",
        "res[0].main.conv[0]",
        "res[0].main.conv[1]",
        "res[0].skip.conv[0]",
    ]
    assert names(graph)[-1] == "res[1].relu[0]"


def test_name_attribute() -> None:
    before = """
block layer(n) {
  for i in 1..n {
    @name("conv" + i) in2 = in -> conv(3, 1, bias=no)
  }
  @name("bn") y = in2 -> bn -> relu
  return y
}
"""
    body = """
@name("layer1.0") y = x -> layer(2)
@name("head") output z = y -> conv(4, 1) -> conv(4, 1)
"""
    graph = load(body, before)
    assert list(graph.constants)[:3] == [
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.0.bn.scale",
    ]
    assert names(graph)[2:] == [
        "layer1.0.bn",
        "layer1.0.bn.relu[0]",
        "head.conv[0]",
        "head.conv[1]",
    ]


def test_locations() -> None:
    graph = load("output y = x\n  -> conv(4, 3)\n  -> conv(4,\n 3)")
    first, second = graph.nodes
    assert first.locations == (Location("m.cnn", 5, 6, 16, "conv[0]"),)
    assert (second.locations[0].line, second.locations[0].column) == (6, 6)


# -- sizes ---------------------------------------------------------------------------------------


def test_symbolic_sizes() -> None:
    graph = load("output y = x -> conv(4, 3, pad=1)", input="f32[N in 1..64, 3, H%4, (4 * 2)]")
    assert str(graph.types["conv[0]"]) == "f32[N,4,H%4,8]"
    assert graph.symbols == {"N", "H"}


def test_sizes_from_parameters() -> None:
    text = "model m(size=8) {\n input x: f32[1, 3, size, (2*size)]\n output y = x -> relu\n}"
    assert str(load_text(text).types["x"]) == "f32[1,3,8,16]"
    assert str(load_text(text, parameters={"size": 5}).types["x"]) == "f32[1,3,5,10]"


UNET = """
block double(c) = (conv(c, 3, pad=1, bias=no) -> bn -> relu) * 2
block down(c)   = maxpool(2) -> double(c)
block up(x, skip; c) = concat(skip, x -> upsample(2) -> conv(c, 3, pad=1)) -> double(c)

model unet(classes=2, base=64) {
  input image: f32[N, 3, H%16, W%16]
  s1 = image -> double(base)
  s2 = s1 -> down(2*base)
  s3 = s2 -> down(4*base)
  s4 = s3 -> down(8*base)
  output mask = s4 -> down(16*base)
    -> up(s4, 8*base) -> up(s3, 4*base) -> up(s2, 2*base) -> up(s1, base)
    -> conv(classes, 1)
}
"""


def test_unet_of_any_divisible_size() -> None:
    graph = load_text(UNET, parameters={"base": 2})
    assert str(graph.types[graph.outputs[0][1]]) == "f32[N,2,H%16,W%16]"
    bound = graph.bind({"N": 1, "H": 32, "W": 48})
    assert str(bound.types[bound.outputs[0][1]]) == "f32[1,2,32,48]"
    with pytest.raises(CnncError, match="E0201"):
        load_text(UNET.replace("H%16", "H%8"), parameters={"base": 2})


# -- files, models, parameters -------------------------------------------------------------------

TWO = """
model a(c=4, k=3, bias=yes, sizes=[1, 2]) {
  input x: f32[N, 3, 8, 8]
  output y = x -> conv(c, k, bias=bias) -> conv(sizes[1], 1)
}
model b { input x: f32[N, 3]
  output y = x -> relu }
"""


def test_parameters_and_model() -> None:
    given = {"c": 5, "bias": False, "sizes": [7, 8]}
    graph = load_text(TWO, model="a", parameters=given)
    assert str(graph.types["conv[1]"]) == "f32[N,8,6,6]"
    assert "conv[0].bias" not in graph.constants
    assert load_text(TWO, model="b").name == "b"


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        (None, {}, "E0310.*several models: `a`, `b`"),
        ("c", {}, "E0310.*no model `c`"),
        ("a", {"d": 3}, "E0302.*no parameter `d`"),
        ("a", {"c": None}, "E0305.*cannot be None"),
        ("a", {"c": np.float32(3)}, "E0305"),
        ("a", {"c": 0}, "E0305.*`c` must be a whole number >= 1"),
        ("b", {"c": 1}, "E0302"),
    ],
)
def test_wrong_parameters(model: str | None, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(CnncError, match=message):
        load_text(TWO, model=model, parameters=parameters)


def test_imports(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.cnn").write_text(
        'import "b.cnn"\nconst width = 2 * base\nblock wide = conv(width, 1)\nblock other = relu\n'
    )
    (tmp_path / "parts" / "b.cnn").write_text("const base = 3\nblock inner = tanh\n")
    (tmp_path / "m.cnn").write_text(
        'cnnc 1\nimport "parts/a.cnn" (wide, inner)\nblock other = sigmoid\n'
        "model m {\n  input x: f32[N, 3, 8, 8]\n  output y = x -> wide -> inner -> other\n}\n"
    )
    graph = load_file(tmp_path / "m.cnn")
    assert [node.op.name for node in graph.nodes] == ["conv2d", "tanh", "sigmoid"]
    assert graph.nodes[0].locations[0].file == str(tmp_path / "parts" / "a.cnn")
    assert graph.constants["wide[0].conv[0].weight"].shape == (6, 3, 1, 1)
