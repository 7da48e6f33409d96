"""The machine code of the convolution kernels: full-width vectors and no spills in inner loops.

Both faults are invisible in results and cost a factor of two to three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.llvm import assembly
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.op import Fusable, Step
from cnnc.ir.ops import Conv2d, ConvTranspose2d, Relu
from cnnc.ir.target import Target
from cnnc.ir.types import Layout, TensorType

LAYERS = [
    # channels, size, out, kernel, stride, groups
    (64, 56, 64, 3, 1, 1),
    (256, 14, 256, 3, 1, 1),
    (64, 28, 192, 1, 1, 1),
    (512, 7, 512, 3, 2, 1),
    (512, 7, 2048, 1, 1, 1),
    (3, 224, 64, 7, 2, 1),
    (40, 13, 80, 5, 1, 1),
    (96, 28, 96, 3, 1, 96),
]
TRANSPOSED = [
    # channels, size, out, kernel; the stride is 2
    (512, 8, 256, 4),
    (128, 32, 64, 4),
    (64, 64, 3, 4),
    (256, 28, 128, 2),
    (64, 64, 32, 3),
]
TARGETS = {"x86-64-v4": "zmm", "x86-64-v3": "ymm"}


def sites(target: Target) -> Iterator[Site]:
    for channels, size, out, kernel, stride, groups in LAYERS:
        op = Conv2d(
            stride=(stride, stride),
            pad=(kernel // 2,) * 4,
            groups=groups,
            epilogue=(Step(Relu()),),
        )
        yield site_of(op, channels, size, out, (out, channels // groups, kernel, kernel), target)
    for channels, size, out, kernel in TRANSPOSED:
        up = ConvTranspose2d(stride=(2, 2), pad=((kernel - 1) // 2,) * 4, epilogue=(Step(Relu()),))
        yield site_of(up, channels, size, out, (channels, out, kernel, kernel), target)


def site_of(
    op: Fusable, channels: int, size: int, out: int, weight: tuple[int, ...], target: Target
) -> Site:
    operands = (
        TensorType((1, channels, size, size)),
        TensorType(weight),
        TensorType((out,)),
    )
    return Site(op, operands, (op.infer(*operands),), (False, True, True), target)


def chosen(site: Site) -> Iterator[Kernel]:
    """The best of each kind but the general one; for a transposed convolution the best of all,
    since the others may be asked there to do what they are not made for.
    """
    best = [
        min(found, key=lambda kernel: kernel.cycles(site))
        for kind in KERNELS.values()
        if kind.native and (found := list(kind.candidates(site)))
    ]
    if isinstance(site.op, Conv2d):
        yield from (kernel for kernel in best if not kernel.name.startswith("general"))
    else:
        yield min(best, key=lambda kernel: kernel.cycles(site))


def planned(kernel: Kernel, site: Site) -> Site:
    blocks, block = kernel.blocks(site)
    operands = tuple(
        t.with_layout(Layout(b, kernel.halo(site, i))) if t.rank == 4 and i == 0 else t
        for i, (t, b) in enumerate(zip(site.operands, blocks, strict=True))
    )
    return Site(
        site.op, operands, (site.result.with_layout(Layout(block)),), site.constant, site.target
    )


def inner_loops(text: str) -> Iterator[list[str]]:
    """Stretches between a label and a jump back to it, with no other label in between."""
    lines = [line.strip() for line in text.splitlines()]
    for i, line in enumerate(lines):
        label = re.match(r"(\.L\w+):", line)
        if not label:
            continue
        body = []
        for after in lines[i + 1 :]:
            if re.match(r"\.L\w+:", after):
                break
            body.append(after)
            if re.match(r"j\w+\s", after) and after.endswith(label[1]):
                yield body
                break


@pytest.mark.parametrize("name", TARGETS)
def test_inner_loops_are_full_width_and_keep_to_registers(name: str) -> None:
    target = named_target(name)
    full = TARGETS[name]
    looked_at = 0
    for site in sites(target):
        for kernel in chosen(site):
            program = kernel.program(planned(kernel, site))
            text, declared = emit_function(program, "kernel", target)
            width = f'"prefer-vector-width"="{8 * target.vector_bytes}"'
            module = "\n".join([*sorted(declared), text, f"attributes #0 = {{ {width} }}\n"])
            for body in inner_loops(assembly(module, target)):
                fused = [line for line in body if line.startswith("vfmadd")]
                if len(fused) < 8:
                    continue
                looked_at += 1
                spills = [line for line in body if "(%rsp)" in line and full in line]
                narrow = [line for line in fused if full not in line]
                assert not narrow, f"{kernel} at {site.op}: {narrow[0]}"
                # A few at the ends of a long body or in a transform cost nothing to speak of.
                assert len(spills) <= 2 + len(fused) // 20, f"{kernel} at {site.op}: {spills}"
    assert looked_at >= len(LAYERS) + len(TRANSPOSED)
