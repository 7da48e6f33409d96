"""The machine code of the convolution kernels: full-width vectors and no spills in inner loops.

Both faults are invisible in results and cost a factor of two to three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import assembly, named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.op import Step
from cnnc.ir.ops import Conv2d, Relu
from cnnc.ir.target import Target
from cnnc.ir.types import Layout, TensorType

LAYERS = [
    # channels, size, out, kernel, stride, groups
    (64, 56, 64, 3, 1, 1),
    (256, 14, 256, 3, 1, 1),
    (64, 28, 192, 1, 1, 1),
    (512, 7, 512, 3, 2, 1),
    (3, 224, 64, 7, 2, 1),
    (40, 13, 80, 5, 1, 1),
    (96, 28, 96, 3, 1, 96),
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
        x = TensorType((1, channels, size, size))
        weight = TensorType((out, channels // groups, kernel, kernel))
        operands = (x, weight, TensorType((out,)))
        yield Site(op, operands, (op.infer(*operands),), (False, True, True), target)


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
        for kind in KERNELS.values():
            candidates = sorted(kind.candidates(site), key=lambda k: k.cycles(site))
            for kernel in candidates[:1] if kind.native and kind.name != "general_conv" else ():
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
                    # A few at the ends of a long unrolled body cost nothing that can be measured.
                    assert len(spills) <= len(fused) // 20, f"{kernel} at {site.op}: {spills}"
    assert looked_at >= len(LAYERS)
