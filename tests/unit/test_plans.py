"""What plans hold: the reorders of each zoo model, so that a change shows, and predicted times."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graph_harness import read

from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.kernels.conv_direct import DirectConv
from cnnc.codegen.kernels.move import ReorderKernel
from cnnc.codegen.kernels.pointwise import PointwiseKernel
from cnnc.driver import zoo_models
from cnnc.frontends.dsl.load import load_file
from cnnc.ir.graph import Graph, Node
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.ops import Conv2d, Reorder
from cnnc.passes import PASSES, PIPELINES, Context, Pipeline

SIZES = {"unet": {"H": 256, "W": 256}, "yolo_body": {"H": 320, "W": 320}}

# Without inexact kernels, as weights are zeros here: that takes no time and decides on no layout.
# `model.report()` states the number for a model as it was compiled.
REORDERS = {
    "convnext_tiny": 0,
    "dcgan_g": 2,
    "densenet121": 1,
    "digits": 1,
    "efficientnet_b0": 1,
    "inception_v3": 0,
    "lenet": 2,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "resnet101": 1,
    "resnet152": 1,
    "resnet18": 1,
    "resnet34": 1,
    "resnet50": 1,
    "resnext50_32x4d": 1,
    "shufflenet_v2": 1,
    "squeezenet1_1": 0,
    "teaching": 1,
    "unet": 2,
    "vgg16": 2,
    "yolo_body": 4,
}


def test_every_model_is_here() -> None:
    assert set(REORDERS) == set(zoo_models())


@pytest.mark.parametrize("name", REORDERS)
def test_reorders(name: str) -> None:
    graph = load_file(zoo_models()[name], init="zeros")
    context = Context(target=named_target("x86-64-v4"), kernels=KERNELS, exact=True)
    pipeline = Pipeline.parse("default", PASSES, PIPELINES)
    planned, _ = pipeline.run(graph.bind(SIZES.get(name, {})), context)
    assert sum(isinstance(node.op, Reorder) for node in planned.nodes) == REORDERS[name]


class Bare(DirectConv):
    """Takes a little longer, but no border."""

    name = "bare_conv"

    def cycles(self, site: Site) -> float:
        return DirectConv.cycles(self, site) + 100.0

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO


def test_a_border_around_an_input_has_its_price() -> None:
    graph = read(
        """
        graph @stems(%image: f32[1,3,64,64], %x: f32[1,3,64,64]) -> (y: %y, z: %z) level=portable {
          %w = constant : f32[32,3,3,3]
          %y = conv2d(%image, %w) {pad=[1,1,1,1]} : f32[1,32,64,64]
          %a = relu(%x) : f32[1,3,64,64]
          %z = conv2d(%a, %w) {pad=[1,1,1,1]} : f32[1,32,64,64]
        }
        """
    )
    kernels: dict[str, type[Kernel]] = {"direct_conv": DirectConv, "bare_conv": Bare}
    kernels |= {"pointwise": PointwiseKernel, "reorder": ReorderKernel}
    context = Context(target=named_target("x86-64-v4"), kernels=kernels, exact=True)
    planned, _ = Pipeline.parse("choose-kernels", PASSES, PIPELINES).run(graph, context)
    chosen = [n.kernel.name for n in planned.nodes if n.kernel and isinstance(n.op, Conv2d)]
    assert chosen == ["bare_conv", "direct_conv"]


def test_weights_that_stay_in_l2_come_from_there() -> None:
    target = named_target("x86-64-v4")
    near, far = target.keeping(target.l2_bytes // 2), target.keeping(target.l2_bytes)
    assert far == replace(target, weights_bytes=target.l2_bytes)
    for size in (target.l2_bytes, target.l3_bytes, 1 << 30):
        assert near.stream_bytes_per_cycle(size) == target.l2_bytes_per_cycle


def test_weights_of_a_large_network_come_from_memory() -> None:
    target = named_target("x86-64-v4")
    half = target.l3_bytes // 2
    assert target.keeping(half).weight_bytes_per_cycle(1) == target.l3_bytes_per_cycle
    assert target.keeping(half + 1).weight_bytes_per_cycle(1) == target.memory_bytes_per_cycle


def test_written_lines_move_twice_and_come_from_beyond_l2_where_maps_are_large() -> None:
    target = named_target("x86-64-v4")
    half, near, far = target.l2_bytes // 2, target.l2_bytes_per_cycle, target.l3_bytes_per_cycle
    assert target.move_cycles(0, half) == 2 * half / near
    assert target.move_cycles(half, 1) == half / near + 2 / far
    assert target.move_cycles(3 * half, 0) == 2 * half / near + half / far
    small = target.keeping(half)
    assert small.move_cycles(3 * half, half) == pytest.approx(5 * half / near)


def test_a_small_network_does_not_wait_for_weights() -> None:
    text = """
        graph @g(%x: f32[1,16,8,8]) -> (y: %y) level=portable {
          %w = constant : f32[32,16,3,3]
          %y = conv2d(%x, %w) {pad=[1,1,1,1]} : f32[1,32,8,8]
        }
        """
    more = text.replace("%y =", "%v = constant : f32[512,512]\n          %y =")
    small, large = (_convolution(read(t)).microseconds for t in (text, more))
    assert small < large


def test_what_stays_in_its_place_takes_no_time() -> None:
    graph = read(
        """
        graph @places(%x: f32[1,32,8,8]) -> (y: %y) level=portable {
          %w = constant : f32[32,32,1,1]
          %u = constant : f32[16,16,1,1]
          %v = constant : f32[4,48,1,1]
          %c = conv2d(%x, %w) : f32[1,32,8,8]
          %piece = slice(%c) {axes=[1], starts=[16], stops=[32], steps=[1]} : f32[1,16,8,8]
          %moved = slice(%c) {axes=[2], starts=[1], stops=[8], steps=[1]} : f32[1,32,7,8]
          %small = conv2d(%moved, %w) {pad=[1,0,0,0]} : f32[1,32,8,8]
          %p = conv2d(%piece, %u) : f32[1,16,8,8]
          %joined = concat(%p, %small) {axis=1} : f32[1,48,8,8]
          %m = conv2d(%joined, %v) : f32[1,4,8,8]
          %z = tanh(%m) : f32[1,4,8,8]
          %y = reshape(%z) {shape=[1,256]} : f32[1,256]
        }
        """
    )
    target = named_target("x86-64-v4")
    context = Context(target=target, kernels=KERNELS, exact=True)
    planned, _ = Pipeline.parse("choose-kernels,plan-memory", PASSES, PIPELINES).run(graph, context)
    idle = {node.name for node in planned.nodes if _kernel(node).idle(planned.site(node, target))}
    assert idle == {"piece", "joined", "y"}
    assert idle == {node.name for node in planned.nodes if _kernel(node).microseconds == 0}


def _kernel(node: Node) -> Kernel:
    assert node.kernel is not None
    return node.kernel


def _convolution(graph: Graph) -> Kernel:
    """The kernel of a graph's only convolution."""
    context = Context(target=named_target("x86-64-v4"), kernels=KERNELS)
    planned, _ = Pipeline.parse("choose-kernels", PASSES, PIPELINES).run(graph, context)
    (kernel,) = (n.kernel for n in planned.nodes if isinstance(n.op, Conv2d))
    assert kernel is not None
    return kernel
