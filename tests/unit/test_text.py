"""The text form of graphs reads back exactly; what cannot be read is told with its place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnc.ir.attributes import write_fields, write_value
from cnnc.ir.graph import Builder, Graph, Level, Place, Region
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.location import Location, ParseError
from cnnc.ir.loops import Program
from cnnc.ir.op import Step
from cnnc.ir.ops import Conv2d, LeakyRelu, Pad, Pointwise, Relu, Resampling, Sub, Upsample
from cnnc.ir.parser import parse_dim, parse_graph, parse_type
from cnnc.ir.printer import print_graph
from cnnc.ir.types import DType, Layout, Sym, TensorType


class Order(Enum):
    ROWS = 1
    COLUMNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct(Kernel):
    """A kernel with a field of every type that has a text form."""

    name: ClassVar[str] = "direct"
    tile: tuple[int, int]
    order: Order = Order.ROWS
    unroll: int | None = None
    label: str = ""
    exact: bool = True
    ratio: float = 1.0
    shapes: tuple[tuple[int, ...], ...] = ()
    inner: Layout = Layout()

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Kernel]:
        return ()

    def cycles(self, site: Site) -> float:
        return 0.0

    def program(self, site: Site) -> Program:
        raise NotImplementedError("these tests run no kernel")


KERNELS = {"direct": Direct}

LENET = """\
graph @lenet(%x: f32[N,1,28,28]) -> (prob: %y) level=portable {
  %conv1.weight = constant : f32[6,1,5,5]
  %bias = constant [0.1,-0.0,inf,-inf,nan,1e-30] : f32[6]
  %h = conv2d(%x, %conv1.weight, %bias) {pad=[2,2,2,2]} : f32[N,6,28,28]  loc("le.cnn":3:8-20 "c")
  %y = pointwise(%h, %h) {epilogue=[relu, sub swapped, leaky_relu{alpha=0.2}]} : f32[N,6,28,28]
}
"""
WEIGHTS = {"conv1.weight": np.arange(150, dtype=np.float32).reshape(6, 1, 5, 5)}

PLANNED = """\
graph @net(%x: f32[N,16,4,4] @input+0) -> (y: %y) level=planned arena_bytes=4096 {
  %w = constant : f32[16,16,3,3]
  %h = reorder(%x) : f32[N,16,4,4]{c16 halo=1x1x1x1} @arena+1024
  %y = conv2d(%h, %w) {pad=[1,1,1,1]} kernel=direct{tile=[2,14], order=columns, unroll=4, \
label="a \\"b\\"", exact=false, ratio=inf, shapes=[[1,2],[]], inner={block=8}, microseconds=31.2} \
: f32[N,16,4,4] @output+0
}
"""


def test_canonical_text_prints_back() -> None:
    graph = parse_graph(LENET, WEIGHTS)
    assert print_graph(graph) == LENET == str(graph)
    assert graph.nodes[0].op == Conv2d(pad=(2, 2, 2, 2))
    steps = (Step(Relu()), Step(Sub(), at=1), Step(LeakyRelu(alpha=0.2)))
    assert graph.nodes[1].op == Pointwise(epilogue=steps)
    assert graph.nodes[0].locations == (Location("le.cnn", 3, 8, 20, "c"),)
    assert graph.outputs == (("prob", "y"),)


def test_planned_graphs_print_back() -> None:
    graph = parse_graph(PLANNED, {"w": np.zeros((16, 16, 3, 3), np.float32)}, KERNELS)
    assert print_graph(graph) == PLANNED
    assert graph.level is Level.PLANNED and graph.arena_bytes == 4096
    assert graph.types["h"].layout == Layout(16, (1, 1, 1, 1))
    assert graph.places["h"] == Place(Region.ARENA, 1024)
    kernel = graph.nodes[1].kernel
    assert isinstance(kernel, Direct)
    assert (kernel.tile, kernel.unroll, kernel.label) == ((2, 14), 4, 'a "b"')
    assert (kernel.shapes, kernel.inner) == (((1, 2), ()), Layout(8))


def test_comments_and_white_space_do_not_matter() -> None:
    loose = LENET.replace(" : ", "\n :\t").replace("{\n", "{ // the net\n\n")
    assert parse_graph(loose, WEIGHTS) == parse_graph(LENET, WEIGHTS)


def test_attributes_that_hold_their_default_are_omitted() -> None:
    assert write_fields(Conv2d()) == ""
    assert write_fields(Upsample(scale=(2, 2))) == "{scale=[2,2]}"
    bilinear = Upsample(scale=(2, 2), mode=Resampling.BILINEAR)
    assert write_fields(bilinear) == "{scale=[2,2], mode=bilinear}"


def test_the_sign_of_a_zero_and_whole_floats_are_kept() -> None:
    assert write_fields(Pad(pad=(0, 0, 0, 0), value=-0.0)) == "{pad=[0,0,0,0], value=-0.0}"
    assert write_fields(LeakyRelu(alpha=1)) == "{alpha=1.0}"


def test_a_field_without_text_form_is_refused() -> None:
    with pytest.raises(TypeError, match="dict"):
        write_value({}, dict[str, int])


# -- round trips of the parts --------------------------------------------------------------------

names = st.text(min_size=1, max_size=12) | st.from_regex(r"[\w.\[\]/:-]{1,8}", fullmatch=True)
counts = st.integers(0, 99)
locations = st.builds(Location, st.text(max_size=9), counts, counts, counts, st.text(max_size=9))


@given(st.lists(names, min_size=3, max_size=3, unique=True), names, names, st.lists(locations))
def test_all_names_and_locations_read_back(
    values: list[str], graph_name: str, public: str, places: list[Location]
) -> None:
    builder = Builder(graph_name)
    x = builder.input(values[0], TensorType((Sym("N"), 2)))
    c = builder.constant(values[1], np.ones(2, np.float32))
    y = builder.add(Pointwise(epilogue=(Step(Sub()),)), (x, c), values[2], places)
    builder.output(public, y)
    graph = builder.finish()
    text = print_graph(graph)
    assert parse_graph(text) == graph
    assert print_graph(parse_graph(text)) == text


dims = st.integers(0, 999) | st.builds(
    Sym,
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True),
    st.sampled_from([1, 2, 6, 16, 32]),
    st.integers(-40, 40),
    st.integers(-9, 9),
)


@given(dims)
def test_all_sizes_read_back(dim: int | Sym) -> None:
    assert parse_dim(str(dim)) == dim


@given(st.lists(dims, max_size=4), st.sampled_from(DType), st.integers(1, 16), st.booleans())
def test_all_types_read_back(shape: list[int | Sym], dtype: DType, block: int, halo: bool) -> None:
    type = TensorType(tuple(shape), dtype, Layout(block, (1, 0, 2, 3) if halo else (0, 0, 0, 0)))
    assert parse_type(str(type)) == type


@given(st.floats(allow_nan=False))
def test_all_floats_read_back(value: float) -> None:
    builder = Builder("g")
    x = builder.input("x", TensorType((1, 1, 1, 1)))
    builder.output("y", builder.add(Pad(pad=(0, 0, 0, 0), value=value), [x]))
    op = parse_graph(print_graph(builder.finish())).nodes[0].op
    assert isinstance(op, Pad)
    assert (op.value, math.copysign(1, op.value)) == (value, math.copysign(1, value))


@given(st.sampled_from(DType), st.binary(min_size=64, max_size=64), st.integers(0, 8))
def test_all_constants_read_back(dtype: DType, bits: bytes, size: int) -> None:
    raw = np.frombuffer(bits, np.uint8) % 2 if dtype is DType.BOOL else bits
    array = np.frombuffer(bytes(raw), dtype.numpy)[:size]
    builder = Builder("g")
    builder.output("c", builder.constant("c", array))
    graph = builder.finish()
    text = print_graph(graph)
    plain = not (np.issubdtype(array.dtype, np.floating) and np.isnan(array).any())
    assert parse_graph(text, {} if plain else graph.constants) == graph


def test_a_nan_with_a_payload_is_not_written_into_the_text() -> None:
    builder = Builder("g")
    odd = np.array([0x7FC00001], np.uint32).view(np.float32)
    builder.output("c", builder.constant("c", odd))
    graph = builder.finish()
    assert "= constant :" in print_graph(graph)
    assert parse_graph(print_graph(graph), {"c": odd}) == graph


def test_constants_of_any_name_read_back() -> None:
    graph = parse_graph(LENET, {**WEIGHTS})
    odd = replace(
        graph,
        constants={("/a b" if n == "bias" else n): a for n, a in graph.constants.items()},
        types={("/a b" if n == "bias" else n): t for n, t in graph.types.items()},
        nodes=tuple(
            replace(n, operands=tuple("/a b" if o == "bias" else o for o in n.operands))
            for n in graph.nodes
        ),
    )
    assert parse_graph(print_graph(odd), odd.constants) == odd


def test_an_empty_graph_prints_back() -> None:
    graph = Graph("", (), (), (), {})
    assert parse_graph(print_graph(graph)) == graph


# -- errors --------------------------------------------------------------------------------------

ERRORS = [
    ("level=portable", "level=portabl", "`portabl` is no level", "did you mean `portable`"),
    ("conv2d(", "conv2(", "unknown op `conv2`", "did you mean `conv2d`"),
    ("pad=[2,2,2,2]", "pads=[2,2,2,2]", "conv2d has no attribute `pads`", "did you mean `pad`"),
    ("pad=[2,2,2,2]", "pad=[2,2,2]", "expected 4 values, found 3", ""),
    ("pad=[2,2,2,2]", "pad=[2,2,2,2.5]", "expected a value of type int", ""),
    ("pad=[2,2,2,2]", "pad=2", "expected a list", ""),
    ("pad=[2,2,2,2]", "pad=[2,2,2,2], pad=[2,2,2,2]", "`pad` is given twice", ""),
    ("pad=[2,2,2,2]", "pad=[2,2,2,relu swapped]", "`swapped` has no meaning here", ""),
    ("sub swapped", "sub swapt", "expected `swapped`, found `swapt`", ""),
    ("epilogue=[relu", "epilogue=[rel", "expected an op, found `rel`", "did you mean `relu`"),
    ("epilogue=[relu", "epilogue=[concat", "expected an op, found `concat`", ""),
    ("[N,6,28,28]  loc", "[N,6,28,27]  loc", "`h` is f32[N,6,28,28], the text says", ""),
    ("%x, %conv1", "%z, %conv1", "`z` is not defined before its use", ""),
    ("%y = point", "%h = point", "two values are called `h`", ""),
    ("prob: %y", "prob: %y, prob: %h", "two outputs are called `prob`", ""),
    ("(%x: f32[N,1,28,28])", "(%x: f32[N,2,28,28])", "weight expects 1 input channels", ""),
    ("(%x: f32[N,1,28,28])", "(%x: f33[N,1,28,28])", "unknown element type `f33`", "f32"),
    ("(%x: f32[N,1,28,28])", "(%x: f32[N,1,H/3%16,28])", "is not whole", ""),
    ("(%x: f32[N,1,28,28])", "(%x: f32[N,1,?,28])", "`?` is no size", ""),
    ("(%x: f32[N,1,28,28])", "(%x: f32[N,1,28,28]{d16})", "is no layout", ""),
    ("(%x: f32[N,1,28,28])", "(%x: f32[N,1,28,28] @heap+0)", "unknown region `heap`", "arena"),
    ("1e-30]", "1e-30,2.0]", "these elements do not make a f32[6]", ""),
    ("1e-30]", "relu]", "these elements do not make a f32[6]", ""),
    (": f32[6,1,5,5]", ": f32[6,1,5,4]", "its array is float32[6,1,5,5]", ""),
    ("%conv1.weight = constant", "%conv2.weight = constant", "no array is given", "pass the"),
    ("{pad=[2,2,2,2]}", "kernel=direct", "unknown kernel `direct`", "table of kernels"),
    ('"c")', '"\\c")', "the string cannot be read", ""),
    ("-> (prob", "(prob", "expected `->`, found `(`", ""),
    ("28,28]\n}", "28,28]\n", "found the end", ""),
    ("= conv2d", "= $", "found `$`", ""),
]


@pytest.mark.parametrize(("old", "new", "message", "help"), ERRORS)
def test_errors_name_place_reason_and_fix(old: str, new: str, message: str, help: str) -> None:
    assert old in LENET
    text = LENET.replace(old, new, 1)
    with pytest.raises(ParseError) as caught:
        parse_graph(text, WEIGHTS, filename="le.cnnc")
    (problem,) = caught.value.diagnostics
    assert message in problem.message
    assert help in problem.help
    # The place lies within what was changed, or where its consequence shows.
    assert problem.location.file == "le.cnnc" and 1 <= problem.location.line <= 7
    assert "^" in str(caught.value)


def test_an_error_shows_the_guilty_text() -> None:
    text = LENET.replace("pad=", "pads=")
    with pytest.raises(ParseError) as caught:
        parse_graph(text, WEIGHTS, filename="le.cnnc")
    assert str(caught.value) == (
        "error: conv2d has no attribute `pads`\n"
        " --> le.cnnc:4:42\n"
        "  |\n"
        "4 |   %h = conv2d(%x, %conv1.weight, %bias) {pads=[2,2,2,2]} : f32[N,6,28,28]  "
        'loc("le.cnn":3:8-20 "c")\n'
        "  |                                          ^^^^\n"
        "  = help: did you mean `pad`?"
    )


def test_missing_attributes_and_kernels_with_wrong_ones() -> None:
    text = "graph @g(%x: f32[1,1,1,1]) -> (y: %y) level=portable { %y = pad(%x) : f32[1,1,1,1] }"
    with pytest.raises(ParseError, match="pad needs `pad`"):
        parse_graph(text)
    with pytest.raises(ParseError, match="`row` is no Order"):
        bad = PLANNED.replace("order=columns", "order=row")
        parse_graph(bad, {"w": np.zeros((16, 16, 3, 3), np.float32)}, KERNELS)
    with pytest.raises(ParseError, match="expected a value of type bool"):
        bad = PLANNED.replace("exact=false", "exact=1")
        parse_graph(bad, {"w": np.zeros((16, 16, 3, 3), np.float32)}, KERNELS)
