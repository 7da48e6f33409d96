"""Each invariant of the verifier is told when it is broken, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from graph_harness import TARGET, read

from cnnc.ir.graph import Graph, Level, Node, Place, Region
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.location import Location, VerifyError
from cnnc.ir.loops import Program
from cnnc.ir.op import Op
from cnnc.ir.ops import Add, Concat, Conv2d, Flatten, Relu, Reorder, Slice
from cnnc.ir.types import Layout, Sym, TensorType
from cnnc.ir.verify import check, verify

PORTABLE = read("""\
graph @g(%x: f32[N,2,4,4]) -> (y: %y) level=portable {
  %w = constant : f32[2,2,3,3]
  %c = conv2d(%x, %w) {pad=[1,1,1,1]} : f32[N,2,4,4]  loc("net.cnn":3:1-5 "c")
  %y = add(%c, %x) : f32[N,2,4,4]
}
""")


def codes(graph: Graph) -> list[str]:
    return [problem.code for problem in verify(graph, TARGET)]


def with_type(graph: Graph, name: str, type: TensorType) -> Graph:
    return replace(graph, types={**graph.types, name: type})


def with_node(graph: Graph, index: int, **changes: object) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)  # type: ignore[arg-type]
    return replace(graph, nodes=tuple(nodes))


def test_a_sound_graph_has_no_problems() -> None:
    assert verify(PORTABLE) == []
    check(PORTABLE, TARGET)


# -- all graphs ----------------------------------------------------------------------------------


def test_1_values_are_defined_once_and_have_types() -> None:
    assert codes(replace(PORTABLE, inputs=("x", "x"))) == ["V1"]
    assert codes(with_node(PORTABLE, 1, results=("c",))) == ["V1", "V1"]  # and %y has none
    assert codes(with_type(PORTABLE, "ghost", TensorType((1,)))) == ["V1"]
    types = {name: type for name, type in PORTABLE.types.items() if name != "c"}
    assert codes(replace(PORTABLE, types=types)) == ["V1"]


def test_2_operands_are_defined_before_their_use() -> None:
    assert codes(replace(PORTABLE, nodes=PORTABLE.nodes[::-1])) == ["V2"]
    graph = with_node(PORTABLE, 0, operands=("x", "nothing"))
    (problem,) = verify(graph)
    assert problem.message == "`c` reads `nothing` which is not defined"
    assert problem.location == Location("net.cnn", 3, 1, 5, "c")


def test_3_outputs_have_names_of_their_own_and_values() -> None:
    assert codes(replace(PORTABLE, outputs=(("y", "y"), ("y", "c")))) == ["V3"]
    assert codes(replace(PORTABLE, outputs=(("y", "nothing"),))) == ["V3"]
    assert codes(replace(PORTABLE, outputs=(("y", "y"), ("z", "y"), ("w", "w")))) == []


def test_4_constants_are_what_their_types_say() -> None:
    weight = PORTABLE.constants["w"]
    for array in (weight.astype(np.float64), weight[:1]):
        assert codes(replace(PORTABLE, constants={"w": array})) == ["V4"]
    blocked = TensorType((2, 2, 3, 3), layout=Layout(16))
    assert "V4" in codes(with_type(PORTABLE, "w", blocked))


def test_5_results_are_what_ops_infer() -> None:
    # The wrong type of %c shows where it is made and where it is read.
    assert codes(with_type(PORTABLE, "c", TensorType((Sym("N"), 2, 4, 5)))) == ["V5", "V5"]
    assert codes(with_node(PORTABLE, 0, op=Relu())) == ["V5"]
    two = with_type(PORTABLE, "y2", TensorType((1,)))
    assert codes(with_node(two, 1, results=("y", "y2"))) == ["V5"]


def test_all_problems_are_found_and_raised_together() -> None:
    broken = with_type(PORTABLE, "c", TensorType((Sym("N"), 2, 4, 5)))
    with pytest.raises(VerifyError) as caught:
        check(broken)
    assert len(caught.value.diagnostics) == 2
    assert "error[V5]: `c` is f32[N,2,4,5], conv2d gives f32[N,2,4,4]" in str(caught.value)


# -- one level -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(Kernel):
    """A kernel whose rights to memory are its fields."""

    name: ClassVar[str] = "plain"
    over: tuple[int, ...] = ()
    view: bool = False
    starts: tuple[int, ...] | None = None
    part: int | None = None

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Kernel]:
        return ()

    def cycles(self, site: Site) -> float:
        return 0.0

    def program(self, site: Site) -> Program:
        raise NotImplementedError("these tests run no kernel")

    def in_place(self, site: Site) -> tuple[int, ...]:
        return self.over

    def alias(self, site: Site) -> bool:
        return self.view

    def slices(self, site: Site) -> tuple[int, ...] | None:
        return self.starts

    def piece(self, site: Site) -> int | None:
        return self.part


@dataclass(frozen=True, slots=True, kw_only=True)
class Many(Plain):
    """One that can compute several images at once."""

    several: ClassVar[bool] = True
    images: int = 2


def test_6_portable_graphs_know_no_target() -> None:
    blocked = PORTABLE.types["c"].with_layout(Layout(16))
    assert codes(with_type(PORTABLE, "c", blocked)) == ["V6"]
    assert codes(with_node(PORTABLE, 0, kernel=Plain())) == ["V6"]
    assert codes(with_node(PORTABLE, 1, op=Reorder(), operands=("c",))) == ["V6"]
    assert codes(replace(PORTABLE, arena_bytes=64)) == ["V6"]
    assert codes(replace(PORTABLE, places={"x": Place(Region.INPUT, 0)})) == ["V6"]


def test_7_only_the_batch_of_a_planned_graph_is_symbolic() -> None:
    graph = read("""\
    graph @g(%x: f32[N,2,H,4]) -> (y: %y) level=planned {
      %y = relu(%x) : f32[N,2,H,4]
    }
    """)
    assert codes(graph) == ["V7", "V7"]
    assert codes(replace(graph, level=Level.PORTABLE)) == []
    divided = replace(graph, types={name: TensorType((Sym("N", 2), 2)) for name in graph.types})
    assert codes(divided) == ["V7", "V7"]


def test_8_layouts_are_for_maps_inside() -> None:
    planned = replace(PORTABLE, level=Level.PLANNED)
    blocked = PORTABLE.types["c"].with_layout(Layout(16, (1, 1, 1, 1)))
    assert codes(with_type(planned, "c", blocked)) == []
    assert codes(with_type(planned, "x", blocked)) == ["V8"]
    assert codes(with_type(planned, "y", blocked)) == ["V8"]
    row = read("""\
    graph @g(%x: f32[N,2]) -> (y: %y) level=planned {
      %a = relu(%x) : f32[N,2]
      %y = relu(%a) : f32[N,2]
    }
    """)
    assert codes(with_type(row, "a", TensorType((Sym("N"), 2), layout=Layout(16)))) == ["V8"]


# -- memory --------------------------------------------------------------------------------------

MAP = TensorType((Sym("N"), 4))  # 16 bytes for one image


def chain(
    steps: Mapping[str, tuple[Op, tuple[str, ...], int, Kernel | None]],
    outputs: tuple[str, ...],
    arena: int = 64,
) -> Graph:
    """A planned graph over input %x; each step is (op, operands, arena byte, kernel)."""
    types = {"x": MAP}
    places = {"x": Place(Region.INPUT, 0)}
    nodes = []
    for name, (op, operands, at, kernel) in steps.items():
        result = op.infer(*(types[o] for o in operands))
        assert isinstance(result, TensorType)
        types[name] = result
        index = outputs.index(name) if name in outputs else 0
        places[name] = Place(Region.OUTPUT, index) if at < 0 else Place(Region.ARENA, at)
        nodes.append(Node(op, operands, (name,), (), kernel))
    outs = tuple((o, o) for o in outputs)
    return Graph("g", ("x",), outs, tuple(nodes), types, {}, Level.PLANNED, places, arena)


RELU = Relu()


def test_9_every_value_has_a_place_that_fits() -> None:
    graph = chain({"a": (RELU, ("x",), 48, None), "y": (RELU, ("a",), -1, None)}, ("y",))
    assert codes(graph) == []

    def moved(**places: Place) -> list[str]:
        return codes(replace(graph, places={**graph.places, **places}))

    assert moved(a=Place(Region.ARENA, 52)) == ["V9"]  # ends at 68 of 64
    assert moved(a=Place(Region.ARENA, -4)) == ["V9"]
    assert moved(a=Place(Region.ARENA, 2)) == ["V9"]  # splits an element
    assert moved(y=Place(Region.OUTPUT, 1)) == ["V9"]
    assert moved(x=Place(Region.INPUT, 1)) == ["V9"]
    assert moved(x=Place(Region.ARENA, 0)) == ["V9"]
    assert moved(ghost=Place(Region.ARENA, 0)) == ["V9"]
    left = {name: place for name, place in graph.places.items() if name != "a"}
    assert codes(replace(graph, places=left)) == ["V9"]


def test_10_memory_is_reused_only_after_its_last_reader() -> None:
    def graph(b: int, c: int) -> Graph:
        return chain(
            {
                "a": (RELU, ("x",), 0, None),
                "b": (RELU, ("a",), b, None),
                "c": (RELU, ("b",), c, None),
                "y": (Add(), ("c", "b"), -1, None),
            },
            ("y",),
        )

    assert codes(graph(16, 0)) == []  # %c takes the place of %a, which is dead
    assert codes(graph(16, 12)) == ["V10"]  # into %b, which %y reads
    assert codes(graph(0, 16)) == ["V10"]  # %b over %a while it reads it
    (problem,) = verify(graph(16, 16), TARGET)
    assert problem.message == "`c` at arena+16 overwrites `b`, which is read later"


def test_10_a_dead_result_still_needs_its_memory() -> None:
    steps = {"a": (RELU, ("x",), 0, None), "dead": (RELU, ("x",), 0, None)}
    assert codes(chain({**steps, "y": (RELU, ("a",), -1, None)}, ("y",))) == ["V10"]


def test_10_in_place_needs_the_kernels_word_and_a_dying_operand() -> None:
    def graph(b: int, kernel: Kernel | None, again: str = "b") -> Graph:
        return chain(
            {
                "a": (RELU, ("x",), 0, None),
                "b": (RELU, ("a",), b, kernel),
                "y": (Add(), ("b", again), -1, None),
            },
            ("y",),
        )

    assert codes(graph(0, Plain(over=(0,)))) == []
    assert codes(graph(4, Plain(over=(0,)))) == ["V10"]  # not from the same byte
    assert codes(graph(0, Plain())) == ["V10"]
    assert codes(graph(0, None)) == ["V10"]
    assert codes(graph(0, Plain(over=(0,)), again="a")) == ["V10"]  # %a is read again


def test_10_a_view_keeps_its_memory_in_use() -> None:
    def graph(c: int) -> Graph:
        return chain(
            {
                "a": (RELU, ("x",), 0, None),
                "b": (Flatten(), ("a",), 0, Plain(view=True)),
                "c": (RELU, ("x",), c, None),
                "y": (Add(), ("b", "c"), -1, None),
            },
            ("y",),
        )

    assert codes(graph(16)) == []
    assert codes(graph(0)) == ["V10"]


def test_10_a_piece_lies_where_its_kernel_says() -> None:
    half = Slice(axes=(1,), starts=(1,), stops=(3,), steps=(1,))
    piece = Plain(part=1, placed=(0,))

    def graph(b: int, kernel: Kernel, c: int, last: str = "b") -> Graph:
        return chain(
            {
                "a": (RELU, ("x",), 0, None),
                "b": (half, ("a",), b, kernel),
                "c": (RELU, ("b",), c, Plain(over=(0,))),
                "d": (RELU, (last,), 48, None),
                "y": (Add(), ("d", "c"), -1, None),
            },
            ("y",),
        )

    assert codes(graph(4, piece, 16)) == []
    assert codes(graph(8, piece, 16)) == ["V10"]  # not where the kernel says
    assert codes(graph(4, Plain(part=1), 16)) == ["V10"]  # it would be copied onto its operand
    assert codes(graph(4, piece, 4, last="c")) == []  # %c takes its place over when it dies
    assert codes(graph(4, piece, 4)) == ["V10"]
    assert codes(graph(4, piece, 12, last="c")) == ["V10"]  # half in the piece
    assert codes(graph(4, piece, 0)) == ["V10"]  # %a is in use as long as its piece


def test_10_slices_of_a_concatenation_lie_where_its_kernel_says() -> None:
    def graph(b: int, kernel: Kernel) -> Graph:
        return chain(
            {
                "a": (RELU, ("x",), 0, None),
                "b": (RELU, ("x",), b, None),
                "c": (Concat(), ("a", "b"), 0, kernel),
                "y": (RELU, ("c",), -1, None),
            },
            ("y",),
        )

    joined = Plain(starts=(0, 4), placed=(0, 1))
    assert codes(graph(16, joined)) == []
    assert codes(graph(20, joined)) == ["V10"]
    assert codes(graph(16, Plain(starts=(0, 4), placed=(0,)))) == ["V10"]
    assert codes(graph(16, Plain())) == ["V10", "V10"]


def test_10_inputs_are_never_written() -> None:
    graph = chain({"y": (RELU, ("x",), -1, Plain(over=(0,)))}, ("y",))
    onto_input = {**graph.places, "y": Place(Region.INPUT, 0)}
    assert codes(graph) == []
    assert codes(replace(graph, places=onto_input)) == ["V10"]
    view = chain({"y": (Flatten(), ("x",), -1, Plain(view=True))}, ("y",))
    assert codes(replace(view, places=onto_input)) == []


def test_10_two_values_do_not_share_an_output() -> None:
    graph = chain({"y": (RELU, ("x",), -1, None), "z": (RELU, ("x",), -1, None)}, ("y", "z"))
    both = {**graph.places, "z": graph.places["y"]}
    assert codes(graph) == []
    assert codes(replace(graph, places=both)) == ["V10"]


def test_every_place_of_a_convolution_counts_its_border() -> None:
    halo = Layout(16, (1, 1, 1, 1))
    shape = TensorType((Sym("N"), 2, 4, 4))
    weight = np.zeros((2, 2, 1, 1), np.float32)
    types = {"x": shape, "a": shape.with_layout(halo), "y": shape, "w": TensorType((2, 2, 1, 1))}
    nodes = (Node(Relu(), ("x",), ("a",)), Node(Conv2d(), ("a", "w"), ("y",)))
    places = {
        "x": Place(Region.INPUT, 0),
        "a": Place(Region.ARENA, 0),
        "y": Place(Region.OUTPUT, 0),
    }
    size = 16 * 6 * 6 * 4
    graph = Graph(
        "g", ("x",), (("y", "y"),), nodes, types, {"w": weight}, Level.PLANNED, places, size
    )
    assert codes(graph) == []
    assert codes(replace(graph, arena_bytes=size - 64)) == ["V9"]


# -- groups of images ----------------------------------------------------------------------------


def grouped(**places: Place) -> Graph:
    """x -> a, one by one; a -> b, two images at once; b -> y, one by one."""
    graph = chain(
        {
            "a": (RELU, ("x",), 0, Plain()),
            "b": (RELU, ("a",), 32, Many()),
            "y": (RELU, ("b",), -1, Plain()),
        },
        ("y",),
    )
    apart = {"a": Place(Region.ARENA, 0, 16), "b": Place(Region.ARENA, 32, 16)}
    return replace(graph, places={**graph.places, **apart, **places})


def test_11_every_image_of_a_group_has_memory_of_its_own() -> None:
    assert codes(grouped()) == []
    assert codes(grouped(a=Place(Region.ARENA, 0))) == ["V11", "V11"]  # and not kept
    assert codes(grouped(a=Place(Region.ARENA, 0, 12))) == ["V11", "V11"]
    assert codes(grouped(a=Place(Region.ARENA, 0, 20))) == ["V11"]  # gaps
    assert codes(grouped(b=Place(Region.OUTPUT, 0))) == ["V11"]
    assert codes(grouped(b=Place(Region.ARENA, 36, 16))) == ["V9"]  # the second image's end
    assert codes(grouped(b=Place(Region.ARENA, 16, 16))) == ["V10"]  # on the second image of a


def test_11_a_kernel_computes_groups_if_it_can() -> None:
    graph = grouped()
    first, second, third = graph.nodes
    unable = replace(second, kernel=Plain(images=2))
    assert codes(replace(graph, nodes=(first, unable, third))) == ["V11"]
    more = replace(third, kernel=Many(images=3))
    assert "V11" in codes(replace(graph, nodes=(first, second, more)))


def test_10_what_is_kept_lives_while_any_image_is_in_its_stretch() -> None:
    """The second image's b must not be made over the first one's c."""

    def graph(b: int) -> Graph:
        steps = {
            "b": (RELU, ("x",), b, Plain()),
            "c": (RELU, ("b",), 0, Plain(over=(0,))),
            "y": (RELU, ("c",), 32, Many()),
            "z": (RELU, ("y",), -1, Plain()),
        }
        apart = {"c": Place(Region.ARENA, 0, 16), "y": Place(Region.ARENA, 32, 16)}
        found = chain(steps, ("z",), 80)
        return replace(found, places={**found.places, **apart})

    assert codes(graph(64)) == []
    assert codes(graph(32)) == []  # y comes when b is done with
    assert codes(graph(0)) == codes(graph(16)) == ["V10"]
