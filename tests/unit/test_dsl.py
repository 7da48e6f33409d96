"""The `.cnn` language: what each construct means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dsl_harness import load, names, value

from cnnc.frontends.dsl import load_file, load_text, trainable
from cnnc.ir.location import CnncError, Location, ParseError

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
