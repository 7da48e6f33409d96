"""Pipelines as text and in action, and what golden files of the passes cannot say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from graph_harness import TARGET, assert_same_answers, read

from cnnc.ir.graph import Builder, Graph, Level
from cnnc.ir.location import PassError
from cnnc.ir.ops import Add, BatchNorm, Conv2d, Mul, Relu, Reshape, Slice, Transpose
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import PASSES, PIPELINES, Context, Pass, PassRecord, Pipeline
from cnnc.passes.base import apply_rules
from cnnc.passes.fold_constants import FoldConstants

CONTEXT = Context(target=TARGET)

CONV_NORM = """\
graph @g(%x: f32[N,2,4,4]) -> (y: %y) level=portable {
  %w = constant : f32[2,2,3,3]
  %scale = constant [2.0,3.0] : f32[2]
  %shift = constant [1.0,0.5] : f32[2]
  %mean = constant [0.5,-0.5] : f32[2]
  %var = constant [1.0,4.0] : f32[2]
  %c = conv2d(%x, %w) {pad=[1,1,1,1]} : f32[N,2,4,4]
  %n = batch_norm(%c, %scale, %shift, %mean, %var) : f32[N,2,4,4]
  %y = relu(%n) : f32[N,2,4,4]
}
"""


def run(graph: Graph, pipeline: str) -> Graph:
    """The graph after the pipeline, having checked that it gives the same answers."""
    after, _ = Pipeline.parse(pipeline, PASSES, PIPELINES).run(graph, CONTEXT, check_changes=True)
    assert_same_answers(graph, after)
    return after


# -- the text of pipelines -----------------------------------------------------------------------


def test_pipelines_print_what_they_parse() -> None:
    text = "fold-constants{limit=16},fold-pad,fold-pad"
    pipeline = Pipeline.parse(f" {text.replace(',', ' , ')} // as given", PASSES)
    assert str(pipeline) == text
    assert pipeline.passes[0] == FoldConstants(limit=16)
    assert Pipeline.parse("", PASSES) == Pipeline(())
    assert str(Pipeline.parse("fold-constants{limit=65536}", PASSES)) == "fold-constants"


def test_pipelines_name_pipelines_and_leave_passes_out() -> None:
    whole = Pipeline.parse("portable", PASSES, PIPELINES)
    less = Pipeline.parse("portable,-fuse-epilogue,fold-pad", PASSES, PIPELINES)
    expected = [p for p in whole.passes if p.name != "fuse-epilogue"] + [PASSES["fold-pad"]()]
    assert list(less.passes) == expected
    assert Pipeline.parse(str(less), PASSES) == less


@pytest.mark.parametrize("name", PIPELINES)
def test_all_pipelines_can_be_read(name: str) -> None:
    assert Pipeline.parse(name, PASSES, PIPELINES).passes


@pytest.mark.parametrize("name", PASSES)
def test_all_passes_describe_themselves(name: str) -> None:
    description = PASSES[name].description()
    assert description.endswith(".") and "\n" not in description
    assert str(PASSES[name]()) == name


@pytest.mark.parametrize(
    ("text", "message", "help", "column"),
    [
        ("fold-pads", "unknown pass `fold-pads`", "did you mean `fold-pad`?", 1),
        ("fold-pad,portabel", "unknown pass `portabel`", "did you mean `portable`?", 10),
        ("fold-pad,-fuse-epilogue", "no pass `fuse-epilogue` to take out", "known: fold-pad", 11),
        ("fold-constants{limits=1}", "no attribute `limits`", "did you mean `limit`?", 16),
        ("fold-constants{limit=x}", "expected a value of type int", "", 22),
        ("portable{limit=1}", "options belong to a pass", "", 9),
        ("fold-pad,-fold-pad{limit=1}", "options belong to a pass", "", 19),
        ("fold-pad,", "found the end", "", 10),
    ],
)
def test_wrong_pipelines_are_told(text: str, message: str, help: str, column: int) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline.parse(text, PASSES, PIPELINES)
    (problem,) = caught.value.diagnostics
    assert message in problem.message and help in problem.help
    assert (problem.location.line, problem.location.column) == (1, column)


# -- running -------------------------------------------------------------------------------------


def test_observers_see_every_pass() -> None:
    graph = read(CONV_NORM)
    seen: list[tuple[str, Graph, Graph, PassRecord]] = []
    pipeline = Pipeline.parse("remove-dead,fold-batch-norm,fuse-epilogue", PASSES)
    after, records = pipeline.run(
        graph, CONTEXT, [lambda step, a, b, record: seen.append((step.name, a, b, record))]
    )
    assert [name for name, *_ in seen] == ["remove-dead", "fold-batch-norm", "fuse-epilogue"]
    assert [(r.changes, r.nodes_before, r.nodes_after) for r in records] == [
        (0, 3, 3),
        (1, 3, 2),
        (1, 2, 1),
    ]
    assert all(record.seconds >= 0 for record in records)
    assert tuple(record for *_, record in seen) == records
    assert seen[0][1] is graph and seen[1][1] is seen[0][2] and seen[2][2] is after


@dataclass(frozen=True, kw_only=True)
class Faulty(Pass):
    """Break something."""

    name: ClassVar[str] = "faulty"
    how: str = "raise"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        match self.how:
            case "raise":
                raise KeyError("lost")
            case "break":
                return replace(graph, outputs=(("y", "nothing"),)), 1
            case "miscount":
                return graph, 3
            case "hide":
                return replace(graph, name=graph.name + "x"), 0
            case _:
                return replace(graph, name=graph.name + "x"), 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "KeyError: 'lost'"),
        ("break", "output `y` is `nothing`, which is not defined"),
        ("miscount", "counts 3 changes, but the graph is the same"),
        ("hide", "counts 0 changes, but the graph is another one"),
        ("forever", "finds 1 more changes in its own result"),
    ],
)
def test_failures_name_the_pass_and_those_before_it(how: str, message: str) -> None:
    pipeline = Pipeline.parse(
        f'remove-dead,fold-pad,faulty{{how="{how}"}}', {**PASSES, "faulty": Faulty}
    )
    with pytest.raises(PassError) as caught:
        pipeline.run(read(CONV_NORM), CONTEXT, check_changes=True)
    (problem,) = caught.value.diagnostics
    shown = "faulty" if how == "raise" else f'faulty{{how="{how}"}}'
    assert problem.message == f"pass 3 `{shown}`, after [remove-dead, fold-pad]: {message}"
    assert caught.value.__cause__ is not None


def test_a_pass_refuses_the_wrong_level() -> None:
    planned = replace(read(CONV_NORM), level=Level.PLANNED)
    with pytest.raises(PassError, match="works on portable graphs, `g` is planned"):
        Pipeline.parse("fold-pad", PASSES).run(planned, CONTEXT)


def test_rules_that_never_end_are_stopped() -> None:
    def again(builder: Builder, node: object) -> bool:
        return True

    with pytest.raises(AssertionError, match="does not end"):
        apply_rules(read(CONV_NORM), [again])


# -- fold-batch-norm: the cases of its table -----------------------------------------------------


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def norm_network(order: str, groups: int, shift: float, pad: int, seed: int = 0) -> Graph:
    """A grouped convolution of 4 into 8 channels with batch norm before or after it."""
    rng = np.random.default_rng(seed)
    builder = Builder("g")
    value = builder.input("x", TensorType((2, 4, 5, 5)))
    for what in order.split():
        channels = TensorType(builder.types[value].shape[1:2]).elements
        if what == "conv":
            shape = (8, channels // groups, 3, 3)
            weight = builder.constant("w", rng.standard_normal(shape).astype(np.float32))
            value = builder.add(Conv2d(groups=groups, pad=(pad,) * 4), [value, weight], "conv")
            continue
        parameters = [
            rng.uniform(0.5, 2, channels),
            shift * np.arange(1, channels + 1),
            shift * np.arange(channels),
            rng.uniform(0.5, 2, channels),
        ]
        names = [
            builder.constant(f"{value}.p{i}", p.astype(np.float32))
            for i, p in enumerate(parameters)
        ]
        value = builder.add(BatchNorm(), [value, *names], f"norm_{value}")
    builder.output("y", value)
    return builder.finish()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pad", [0, 1])
def test_norm_after_a_convolution_goes_into_its_weights(groups: int, pad: int) -> None:
    after = run(norm_network("conv norm", groups, 0.7, pad), "fold-batch-norm")
    assert ops(after) == ["conv2d"]
    assert after.nodes[0].name == "norm_conv"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("pad", "shift", "expected"),
    [
        (0, 0.7, ["conv2d"]),
        (1, 0.0, ["conv2d"]),
        (1, 0.7, ["mul", "add", "conv2d"]),
    ],
)
def test_norm_before_a_convolution(
    groups: int, pad: int, shift: float, expected: list[str]
) -> None:
    graph = norm_network("norm conv", groups, shift, pad)
    assert ops(run(graph, "fold-batch-norm")) == expected


def test_norm_on_both_sides_and_twice() -> None:
    assert ops(run(norm_network("norm norm conv norm norm", 2, 0.7, 0), "fold-batch-norm")) == [
        "conv2d"
    ]


def test_shared_weights_stay_for_the_other_convolution() -> None:
    graph = read("""\
    graph @g(%x: f32[N,2,4,4]) -> (y: %y, z: %z) level=portable {
      %w = constant : f32[2,2,3,3]
      %s = constant [2.0,3.0] : f32[2]
      %t = constant [1.0,0.5] : f32[2]
      %a = conv2d(%x, %w) : f32[N,2,2,2]
      %y = batch_norm(%a, %s, %t, %t, %s) : f32[N,2,2,2]
      %z = conv2d(%x, %w) : f32[N,2,2,2]
    }
    """)
    after = run(graph, "fold-batch-norm")
    assert ops(after) == ["conv2d", "conv2d"]
    np.testing.assert_array_equal(after.constants["w"], graph.constants["w"])
    assert after.nodes[1].operands == ("x", "w")


def test_weights_that_would_overflow_are_left_alone() -> None:
    text = CONV_NORM.replace("%scale = constant [2.0,3.0]", "%scale = constant [3e38,3.0]")
    graph = read(text.replace("%w = constant", "%var_w = constant").replace("%w)", "%var_w)"))
    huge = {**graph.constants, "var_w": graph.constants["var_w"] * 1e3}
    before = replace(graph, constants=huge)
    after, _ = Pipeline.parse("fold-batch-norm", PASSES).run(before, CONTEXT)
    assert ops(after) == ["conv2d", "mul", "add", "relu"]


def test_unknown_weights_stay() -> None:
    graph = read("""\
    graph @g(%x: f32[1,2,4,4], %w: f32[2,2,1,1]) -> (y: %y) level=portable {
      %s = constant [2.0,3.0] : f32[2]
      %c = conv2d(%x, %w) : f32[1,2,4,4]
      %y = batch_norm(%c, %s, %s, %s, %s) : f32[1,2,4,4]
    }
    """)
    assert ops(run(graph, "fold-batch-norm")) == ["conv2d", "mul", "add"]


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_norm_alone_becomes_a_product_and_a_sum(rank: int) -> None:
    shape = ",".join(["2", "3", "4", "5"][:rank])
    graph = read(f"""\
    graph @g(%x: f32[{shape}]) -> (y: %y) level=portable {{
      %s = constant [2.0,3.0,4.0] : f32[3]
      %y = batch_norm(%x, %s, %s, %s, %s) : f32[{shape}]
    }}
    """)
    after = run(graph, "fold-batch-norm")
    assert [type(node.op) for node in after.nodes] == [Mul, Add]
    assert after.nodes[-1].name == "y"
    assert after.constants["y.scale"].shape == (3, 1, 1)[: rank - 1]


def test_folding_rounds_once() -> None:
    graph = read(CONV_NORM.replace("%scale = constant [2.0,3.0]", "%scale = constant [0.1,0.3]"))
    after = run(graph, "fold-batch-norm")
    scale = graph.constants["scale"].astype(np.float64) / np.sqrt(
        graph.constants["var"].astype(np.float64) + 1e-5
    )
    exact = graph.constants["w"].astype(np.float64) * scale[:, None, None, None]
    np.testing.assert_array_equal(after.constants["w.folded"], exact.astype(np.float32))


# -- others --------------------------------------------------------------------------------------


def test_folded_constants_do_not_keep_larger_arrays_alive() -> None:
    graph = read("""\
    graph @g(%x: f32[N,8]) -> (y: %y) level=portable {
      %w = constant : f32[4,4]
      %f = flatten(%w) : f32[4,4]
      %r = reshape(%f) {shape=[2,8]} : f32[2,8]
      %y = dense(%x, %r) : f32[N,2]
    }
    """)
    after = run(graph, "fold-constants")
    assert list(after.constants) == ["r"]
    assert after.constants["r"].base is None


def test_outputs_keep_their_names_through_the_whole_pipeline() -> None:
    graph = read(CONV_NORM)
    after = run(graph, "portable")
    assert [node.name for node in after.nodes] == ["y"]
    assert after.outputs == graph.outputs


def test_passes_leave_the_graph_they_are_given_alone() -> None:
    graph = read(CONV_NORM)
    text, weight = str(graph), graph.constants["w"].copy()
    run(graph, "portable")
    assert str(graph) == text
    np.testing.assert_array_equal(graph.constants["w"], weight)


def test_a_graph_without_changes_is_given_back_itself() -> None:
    builder = Builder("g")
    builder.output("y", builder.add(Relu(), [builder.input("x", TensorType((1,)))]))
    graph = builder.finish()
    for name in ("remove-dead", "fold-constants", "fold-batch-norm", "fold-pad", "fuse-epilogue"):
        assert PASSES[name]().run(graph, CONTEXT) == (graph, 0)
        assert PASSES[name]().run(graph, CONTEXT)[0] is graph


@pytest.mark.parametrize("shape", ["", "1", "1,1,1", "1,1,1,1"])
def test_one_number_is_a_bias_for_all_channels(shape: str) -> None:
    text = f"""\
graph @g(%x: f32[N,2,4,4]) -> (y: %y) level=portable {{
  %w = constant : f32[3,2,1,1]
  %c = constant [2.5] : f32[{shape}]
  %a = conv2d(%x, %w) : f32[N,3,4,4]
  %y = sub(%a, %c) : f32[N,3,4,4]
}}
"""
    after = run(read(text), "fuse-epilogue")
    (conv,) = after.nodes
    np.testing.assert_array_equal(after.constants[conv.operands[2]], np.full(3, -2.5, np.float32))


@pytest.mark.parametrize("part", [0, 2])
def test_queries_and_keys_leave_the_batch_where_it_is(part: int) -> None:
    """As attention is exported: reshape, transpose the parts to the front, take one of them."""
    builder = Builder("attention")
    x = builder.input("x", TensorType((Sym("N"), 4, 3, 2, 5)))
    turned = builder.add(Transpose(perm=(2, 0, 3, 1, 4)), [x])
    cut = Slice(axes=(0,), starts=(part,), stops=(part + 1,), steps=(1,))
    one = builder.add(cut, [turned])
    builder.output("y", builder.add(Reshape(shape=(-1, 2, 4, 5)), [one]))
    before = builder.finish()
    after, _ = Pipeline.parse("simplify-moves", PASSES).run(before, CONTEXT, check_changes=True)
    assert [n.op for n in after.nodes if isinstance(n.op, Transpose)] == [
        Transpose(perm=(0, 2, 1, 3))
    ]
    assert not any(n.op.mixes_batch([after.types[o] for o in n.operands]) for n in after.nodes)
    assert_same_answers(before, after)
