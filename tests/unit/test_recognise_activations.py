"""Activations that exporters spell out, in the ways they do, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import TARGET, evaluate_all, read

from cnnc.ir.graph import Graph
from cnnc.ir.op import Unary
from cnnc.ir.ops import Clip, Gelu, HardSigmoid, HardSwish, Mish, Relu, Relu6, Silu
from cnnc.passes import PASSES, Context, Pipeline

# Written in steps `name = op(operands)`; a number among the operands is a constant of that value.
EXACT = "u = div(x, 1.4142135); e = erf(u); s = add(e, 1)"
CUBE = "q = mul(x, x); p = mul(q, x); k = mul(0.044715, p); a = add(x, k)"
TANH = f"{CUBE}; u = mul(a, 0.7978846); t = tanh(u); s = add(1, t)"
TAKEN_OUT = (
    "q = mul(x, 0.044715); p = mul(q, x); a = add(p, 1); v = mul(x, 0.7978846); u = mul(v, a);"
    "t = tanh(u); s = add(t, 1)"
)
SIX = "a = add(x, 3); c = clip{low=0.0, high=6.0}(a)"
WRITTEN: list[tuple[Unary, str]] = [
    (Silu(), "s = sigmoid(x); y = mul(s, x)"),
    (Mish(), "p = softplus(x); t = tanh(p); y = mul(x, t)"),
    (Gelu(), f"{EXACT}; h = mul(x, 0.5); y = mul(h, s)"),
    (Gelu(), f"{EXACT}; h = mul(x, s); y = mul(h, 0.5)"),
    (Gelu(), f"{EXACT}; h = mul(0.5, s); y = mul(x, h)"),
    (Gelu(), f"{EXACT}; h = mul(s, x); y = div(h, 2)"),
    (Gelu(), "u = mul(x, 0.70710677); e = erf(u); s = sub(e, -1); h = div(x, 2); y = mul(s, h)"),
    (Gelu(tanh=True), f"{TANH}; h = mul(x, 0.5); y = mul(h, s)"),
    (Gelu(tanh=True), f"{TANH}; h = mul(x, s); y = mul(0.5, h)"),
    (Gelu(tanh=True), f"{TAKEN_OUT}; h = mul(0.5, s); y = mul(h, x)"),
    (HardSigmoid(), f"{SIX}; y = div(c, 6)"),
    (HardSigmoid(), f"{SIX}; y = mul(c, 0.16666667)"),
    (HardSigmoid(), "a = add(x, 3); r = relu6(a); y = div(r, 6)"),
    (HardSigmoid(), "m = mul(x, 0.16666667); a = add(0.5, m); y = clip{low=0.0, high=1.0}(a)"),
    (HardSigmoid(), "m = div(x, 6); a = add(m, 0.5); l = max(a, 0); y = min(l, 1)"),
    (HardSwish(), "g = hsigmoid(x); y = mul(x, g)"),
    (HardSwish(), f"{SIX}; d = div(c, 6); y = mul(x, d)"),
    (HardSwish(), f"{SIX}; m = mul(x, c); y = div(m, 6)"),
    (HardSwish(), f"{SIX}; d = div(x, 6); y = mul(c, d)"),
    (HardSwish(), "a = add(3, x); l = max(0, a); c = min(l, 6); m = mul(c, x); y = div(m, 6)"),
    (Relu6(), "r = relu(x); y = clip{high=6.0}(r)"),
    (Relu6(), "r = relu(x); y = min(r, 6)"),
    (Relu(), "y = max(x, 0)"),
    (Relu(), "y = clip{low=0.0}(x)"),
    (Clip(low=0.0, high=2.0), "c = clip{low=-1.0, high=2.0}(x); y = relu(c)"),
    (Clip(low=3.0, high=3.0), "c = clip{low=-1.0, high=2.0}(x); y = clip{low=3.0, high=5.0}(c)"),
]
# Nearly one of the above.
OTHERS = [
    "s = sigmoid(x); h = mul(x, 2); y = mul(h, s)",
    "m = mul(x, 1.702); s = sigmoid(m); y = mul(x, s)",
    f"{EXACT}; y = mul(x, s)",
    f"{EXACT}; h = mul(x, 0.5); n = neg(h); y = mul(n, s)",
    "u = div(x, 1.4); e = erf(u); s = add(e, 1); h = mul(x, 0.5); y = mul(h, s)",
    "e = erf(x); s = add(e, 1); h = mul(x, 0.5); y = mul(h, s)",
    f"{CUBE}; u = mul(a, 0.8); t = tanh(u); s = add(1, t); h = mul(x, 0.5); y = mul(h, s)",
    "a = add(x, 2); r = relu6(a); y = div(r, 6)",
    "a = add(x, 3); r = relu6(a); y = div(r, 5)",
    "a = add(x, 3); r = relu6(a); y = div(6, r)",
    "m = mul(x, 0.2); a = add(m, 0.5); y = clip{low=0.0, high=1.0}(a)",
    "t = tanh(x); y = mul(x, t)",
    "c = clip{low=2.0, high=1.0}(x); y = relu(c)",
]


def written(steps: str, shape: str = "", type: str = "f32") -> Graph:
    """The graph of these steps, its numbers of this shape."""
    lines, numbers = [], list[str]()
    for step in steps.split(";"):
        name, _, text = step.strip().partition(" = ")
        op, _, operands = text.removesuffix(")").rpartition("(")
        op, brace, fields = op.partition("{")
        names = []
        for operand in operands.split(", "):
            if operand[0] not in "-0123456789":
                names.append(f"%{operand}")
                continue
            names.append(f"%n{len(numbers)}")
            numbers.append(f"  {names[-1]} = constant [{float(operand)}] : {type}[{shape}]")
        lines.append(f"  %{name} = {op}({', '.join(names)}) {brace}{fields} : {type}[N,3,5,7]")
    head = f"graph @g(%x: {type}[N,3,5,7]) -> (y: %y) level=portable {{"
    return read("\n".join([head, *numbers, *lines, "}", ""]))


def recognised(graph: Graph) -> Graph:
    pipeline = Pipeline.parse("recognise-activations", PASSES)
    return pipeline.run(graph, Context(target=TARGET), check_changes=True)[0]


@pytest.mark.parametrize("shape", ["", "1", "1,1,1,1"])
@pytest.mark.parametrize(("op", "steps"), WRITTEN, ids=lambda v: str(v)[:40])
def test_is_recognised(op: Unary, steps: str, shape: str) -> None:
    graph = written(steps, shape)
    after = recognised(graph)
    assert [(node.op, node.operands) for node in after.nodes] == [(op, ("x",))]
    x = np.random.default_rng(0).uniform(-9, 9, (2, 3, 5, 7)).astype(np.float32)
    before, found = (evaluate_all(g, {"x": x})["y"] for g in (graph, after))
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("steps", OTHERS)
def test_is_something_else(steps: str) -> None:
    graph = written(steps)
    assert recognised(graph) == graph


def test_numbers_that_widen_the_result_stay() -> None:
    graph = read("""\
graph @g(%x: f32[3,5], %w: f32[3,5]) -> (y: %y, z: %z) level=portable {
  %three = constant [3.0] : f32[]
  %six = constant [6.0] : f32[1,1,1]
  %zero = constant [0.0] : f32[1,1,1]
  %a = add(%x, %three) : f32[3,5]
  %r = relu6(%a) : f32[3,5]
  %y = div(%r, %six) : f32[1,3,5]
  %z = max(%w, %zero) : f32[1,3,5]
}
""")
    assert recognised(graph) == graph


def test_long_products_are_looked_through_but_for_a_part() -> None:
    steps = "; ".join(f"m{i} = mul({f'm{i - 1}' if i else 'x'}, 1.5)" for i in range(2000))
    graph = written(f"{steps}; y = mul(m1999, 2)")
    assert recognised(graph) == graph


@pytest.mark.parametrize(("op", "steps"), WRITTEN, ids=lambda v: str(v)[:40])
def test_parts_that_others_read_stay(op: Unary, steps: str) -> None:
    graph = written(steps)
    if len(graph.nodes) == 1:
        return
    last = graph.nodes[-1]
    part = next(name for name in last.operands if name != "x" and name not in graph.constants)
    edited = read(str(graph).replace("(y: %y)", f"(y: %y, part: %{part})"))
    after = recognised(edited)
    assert dict(after.outputs)["part"] == part
    assert op not in [node.op for node in after.nodes]
