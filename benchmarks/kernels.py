"""How close single layers come to the machine's limit, on one thread.

    python benchmarks/kernels.py [--json] [--repeats 30]

Each layer is compiled as a model of its own, once with `exact` (direct convolution) and once as
cnnc would choose. Times are medians of the kernel alone, with the layers interleaved over several
rounds; the peak is that of fused multiply-adds, measured in each round of the same run. Percent
counts the operations of the direct convolution, so Winograd may exceed 100.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

import cnnc
from cnnc.codegen.measure import measure_peak
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import Conv2d, ConvTranspose2d, GlobalAvgPool
from cnnc.ir.types import TensorType
from cnnc.model import CompiledModel
from cnnc.report import KernelRow, table


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: channels x size x size -> out channels."""

    channels: int
    size: int
    out: int
    kernel: int
    stride: int = 1
    groups: int = 1
    transposed: bool = False
    floor: int = 0  # percent of the peak that the direct kernel must reach on AVX-512

    def __str__(self) -> str:
        group = f" groups {self.groups}" if self.groups > 1 else ""
        return ("up " if self.transposed else "") + (
            f"{self.kernel}x{self.kernel}/{self.stride} {self.size}x{self.size} "
            f"{self.channels}->{self.out}{group}"
        )

    def graph(self) -> Graph:
        """The layer in a network, so that layouts are what they would be in one: after a pointwise
        convolution (unless it is a first layer) and before a global pool. Weights are seeded."""
        rng = np.random.default_rng(0)
        builder = Builder("layer")
        x = builder.input("x", TensorType((1, self.sources, self.size, self.size)))
        if self.sources != self.channels:
            spread = rng.standard_normal((self.channels, self.sources, 1, 1)).astype(np.float32)
            x = builder.add(Conv2d(), (x, builder.constant("spread", spread)), "before")
        ends = (self.out, self.channels // self.groups)
        kind: type[Conv2d | ConvTranspose2d] = Conv2d
        pad = self.kernel // 2
        if self.transposed:
            ends = (self.channels, self.out // self.groups)
            kind, pad = ConvTranspose2d, (self.kernel - 1) // 2
        scale = (2 / (self.channels // self.groups * self.kernel**2)) ** 0.5
        weight = rng.standard_normal((*ends, self.kernel, self.kernel)) * scale
        weight = weight.astype(np.float32)
        bias = rng.standard_normal(self.out).astype(np.float32)
        op = kind(stride=(self.stride,) * 2, pad=(pad,) * 4, groups=self.groups)
        operands = (x, builder.constant("weight", weight), builder.constant("bias", bias))
        y = builder.add(op, operands, "conv")
        builder.output("y", builder.add(GlobalAvgPool(), (y,), "after"))
        return builder.finish()

    @property
    def sources(self) -> int:
        """Channels of the network's input."""
        return self.channels if self.channels <= 4 else 8


LAYERS = (
    Layer(64, 56, 64, 3, floor=85),
    Layer(128, 28, 128, 3, floor=85),
    Layer(256, 14, 256, 3, floor=85),
    Layer(256, 56, 64, 1, floor=85),
    Layer(64, 56, 256, 1, floor=85),
    Layer(1024, 14, 256, 1, floor=85),
    Layer(512, 7, 512, 3, floor=60),
    Layer(128, 56, 128, 3, stride=2, floor=60),
    Layer(256, 28, 256, 3, stride=2, floor=60),
    Layer(512, 14, 512, 3, stride=2, floor=60),
    Layer(3, 224, 64, 7, stride=2, floor=60),
    Layer(2048, 7, 512, 1),
    Layer(512, 28, 1024, 1, stride=2),
    Layer(3, 224, 32, 3, stride=2),
    Layer(24, 56, 144, 1),
    Layer(144, 56, 144, 3, groups=144),
    Layer(576, 14, 576, 3, groups=576),
    Layer(96, 112, 96, 3, stride=2, groups=96),
    Layer(256, 28, 256, 3, groups=32),
    Layer(512, 14, 512, 3, groups=32),
    Layer(35, 35, 50, 5),
    Layer(128, 17, 128, 7),
    Layer(512, 8, 256, 4, stride=2, transposed=True, floor=80),
    Layer(256, 16, 128, 4, stride=2, transposed=True, floor=80),
    Layer(128, 32, 64, 4, stride=2, transposed=True, floor=80),
    Layer(64, 64, 3, 4, stride=2, transposed=True, floor=70),
    Layer(256, 28, 128, 2, stride=2, transposed=True, floor=80),
    Layer(64, 64, 32, 3, stride=2, transposed=True, floor=80),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured layer."""

    layer: str
    kernel: str
    microseconds: float
    predicted_us: float
    gflops: float
    percent_of_peak: float
    floor: int


def parts(model: CompiledModel) -> list[KernelRow]:
    """The convolution's kernels, without reorders: the phases of a transposed one may be split."""
    return [k for k in model.report().kernels if re.fullmatch(r"conv(\.\d\d)?", k.name)]


def kernel_seconds(model: CompiledModel, layer: Layer, repeats: int) -> float:
    """Median seconds in the convolution's kernels."""
    x = np.random.default_rng(1).standard_normal((1, layer.sources, layer.size, layer.size))
    times = model.profile({"x": x.astype(np.float32)}, repeats)
    return sum(times[kernel.name] for kernel in parts(model))


def measure(rounds: int, repeats: int) -> Iterator[Row]:
    """Every layer, exact and as chosen."""
    models = [
        (layer, cnnc.compile(layer.graph(), threads=1, exact=exact))
        for layer in LAYERS
        for exact in (True, False)
    ]
    times: list[list[float]] = [[] for _ in models]
    peaks = []
    for _ in range(rounds):
        measure_peak.cache_clear()
        peaks.append(measure_peak())
        for samples, (layer, model) in zip(times, models, strict=True):
            samples.append(kernel_seconds(model, layer, repeats))
    peak = median(peaks)
    seen = set()
    for samples, (layer, model) in zip(times, models, strict=True):
        reports = parts(model)
        kernel = reports[0].kernel
        if (layer, kernel) in seen:
            continue
        seen.add((layer, kernel))
        seconds = median(samples)
        gflops = sum(report.flops for report in reports) / seconds / 1e9
        exact = "winograd" not in kernel
        yield Row(
            str(layer),
            kernel,
            round(1e6 * seconds, 1),
            round(sum(report.predicted_us for report in reports), 2),
            round(gflops, 1),
            round(100 * gflops / peak, 1),
            layer.floor if exact else 0,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    rows = list(measure(args.rounds, args.repeats))
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"one thread, FMA peak {measure_peak():.0f} GFLOP/s")
    head = ("layer", "kernel", "us", "predicted", "GFLOP/s", "% of peak", "floor")
    print("\n".join(table(head, [tuple(asdict(row).values()) for row in rows])))


if __name__ == "__main__":
    main()
