"""cnnc against other runtimes, interleaved in one run on this machine.

    pip install -e ".[bench]"
    python benchmarks/peers.py resnet18 resnet50 --threads 1 2 --json peers.json --svg peers.svg

Every runtime is a process of its own and gets the same network, with the same weights, through
ONNX export before any optimisation (BatchNormalization apart); cnnc reads its own file. An ONNX
file (see `architectures.py`) is given to all of them as it is. Answers are
compared first; a runtime that cannot do a network is left out there. Then the runtimes take turns,
a few runs each, for several rounds; medians and minima are over all runs, the peak of fused
multiply-adds is measured in the same run. ncnn is measured if `ncnn` and `pnnx` are installed; of
pnnx only the program is needed: pip install --no-deps pnnx
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

import cnnc
from cnnc.codegen.measure import measure_peak
from cnnc.frontends.onnx import export_onnx
from cnnc.report import table

WORKER = Path(__file__).parent / "peer_worker.py"
# Runtime -> the packages that it needs.
PEERS = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}
SIZES = {"unet": {"H": 256, "W": 256}, "yolo_body": {"H": 320, "W": 320}}


@dataclass(frozen=True, slots=True)
class Cell:
    """One runtime on one network."""

    network: str
    runtime: str
    threads: int
    batch: int
    median_ms: float
    minimum_ms: float
    percent_of_peak: float
    relative_error: float  # against onnxruntime, of the range
    load_seconds: float
    resident_mb: float  # after the runs


class Worker:
    """A runtime in its process."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.samples: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request. Raises RuntimeError if the process has ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.runtime} ended")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def measure(
    network: str, runtimes: Sequence[str], threads: int, batch: int, rounds: int, folder: Path
) -> list[Cell]:
    """All runtimes on one network."""
    sizes = SIZES.get(network, {})
    graph = cnnc.load(network, sizes=sizes)
    given = Path(network).suffix == ".onnx"
    model = Path(network).resolve() if given else folder / f"{Path(network).stem}.onnx"
    if not model.exists():
        model.write_bytes(export_onnx(graph).SerializeToString())
    flops = graph.flops() * batch
    type = graph.types[graph.inputs[0]].bind(dict.fromkeys(graph.symbols, batch))
    x = np.random.default_rng(0).standard_normal(type.dims).astype(np.float32)
    np.save(folder / "x.npy", x)
    del graph
    workers = [Worker(runtime) for runtime in runtimes]
    try:
        request = {"model": str(model), "source": network, "sizes": sizes, "threads": threads}
        loads = {}
        for w in list(workers):
            told = w.ask(do="load", runtime=w.runtime, input=str(folder / "x.npy"), **request)
            loads[w.runtime] = told["load_seconds"]
            if "refused" in told:
                print(f"{network}, batch {batch}: {w.runtime} refuses: {told['refused'][:200]}")
                workers.remove(w)
                w.close()
        answers = []
        for w in workers:
            w.ask(do="answer", file=str(folder / "y.npy"))
            answers.append(np.load(folder / "y.npy"))
        peaks = [_take_turns(workers, threads) for _ in range(rounds)]
        memory = [w.ask(do="memory")["resident_mb"] for w in workers]
    finally:
        for w in workers:
            w.close()
    names = [w.runtime for w in workers]
    wanted = answers[names.index("onnxruntime") if "onnxruntime" in names else 0]
    span = float(np.abs(wanted).max()) or 1.0
    return [
        Cell(
            Path(network).stem,
            w.runtime,
            threads,
            batch,
            round(1e3 * median(w.samples), 3),
            round(1e3 * min(w.samples), 3),
            round(flops / median(w.samples) / 1e7 / (median(peaks) * threads), 1),
            float(f"{np.abs(y - wanted).max() / span:.1e}"),
            round(loads[w.runtime], 2),
            round(resident),
        )
        for w, y, resident in zip(workers, answers, memory, strict=True)
    ]


def _take_turns(workers: Sequence[Worker], threads: int) -> float:
    """A few runs of every runtime, about a tenth of a second each; the peak in between."""
    for w in workers:
        once = w.ask(do="run", count=2)["seconds"][-1]
        count = max(2, min(200, int(0.1 / max(once, 1e-6))))
        w.samples += w.ask(do="run", count=count)["seconds"]
    measure_peak.cache_clear()
    return measure_peak()


def best_peer(cells: Sequence[Cell], ours: Cell) -> Cell | None:
    """The fastest other runtime in the same cell of the table."""
    same = [
        c
        for c in cells
        if (c.network, c.threads, c.batch) == (ours.network, ours.threads, ours.batch)
        and c.runtime != "cnnc"
    ]
    return min(same, key=lambda c: c.median_ms, default=None)


def print_table(cells: Sequence[Cell]) -> None:
    """Every cell, and the ratios."""
    head = (
        "network",
        "threads",
        "batch",
        "runtime",
        "ms",
        "min ms",
        "% peak",
        "error",
        "load s",
        "MB",
    )
    rows = [
        (
            c.network,
            c.threads,
            c.batch,
            c.runtime,
            c.median_ms,
            c.minimum_ms,
            c.percent_of_peak,
            f"{c.relative_error:.0e}",
            c.load_seconds,
            c.resident_mb,
        )
        for c in cells
    ]
    print("\n".join(table(head, rows)), end="\n\n")
    ratios = []
    for ours in (c for c in cells if c.runtime == "cnnc"):
        other = best_peer(cells, ours)
        if other:
            ratio = other.median_ms / ours.median_ms
            ratios.append(ratio)
            print(
                f"{ours.network}, {ours.threads} thread(s), batch {ours.batch}: "
                f"{ratio:.2f} times the speed of {other.runtime}"
            )
    if ratios:
        print(f"geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}")


def markdown(cells: Sequence[Cell]) -> str:
    """The medians as a table for a page; bold where cnnc is not the fastest.

    The last column is the ratio of minima, which others on the machine disturb less.
    """
    runtimes = list(dict.fromkeys(c.runtime for c in cells))
    head = ["network", "threads", "batch", *(f"{r}, ms" for r in runtimes), "% of peak", "ratio"]
    head.append("by minima")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for ours in (c for c in cells if c.runtime == "cnnc"):
        same = {
            c.runtime: c
            for c in cells
            if (c.network, c.threads, c.batch) == (ours.network, ours.threads, ours.batch)
        }
        other = best_peer(cells, ours)
        ratio = other.median_ms / ours.median_ms if other else float("nan")
        row = [ours.network, str(ours.threads), str(ours.batch)]
        row += [f"{same[r].median_ms:g}" if r in same else "-" for r in runtimes]
        row += [f"{ours.percent_of_peak:g}", f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"]
        least = min((c.minimum_ms for r, c in same.items() if r != "cnnc"), default=float("nan"))
        row.append(f"{least / ours.minimum_ms:.2f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def chart(cells: Sequence[Cell]) -> str:
    """The ratios as an SVG bar chart; 1 is the best other runtime."""
    bars = []
    for ours in (c for c in cells if c.runtime == "cnnc"):
        other = best_peer(cells, ours)
        if other:
            label = f"{ours.network}, {ours.threads} thread{'s' * (ours.threads > 1)}"
            label += f", batch {ours.batch}" if ours.batch > 1 else ""
            bars.append((label, other.median_ms / ours.median_ms, other.runtime))
    scale, left, row = 150, 210, 24
    width = left + int(scale * max([b[1] for b in bars], default=1)) + 170
    height = row * len(bars) + 50
    one = left + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="8" y="18">speed of cnnc as a multiple of the fastest other runtime</text>',
    ]
    for i, (label, ratio, peer) in enumerate(bars):
        y = 30 + i * row
        color = "#2a7" if ratio >= 1 else "#c54"
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{label}</text>',
            f'<rect x="{left}" y="{y + 3}" width="{scale * ratio:.0f}" height="16" '
            f'fill="{color}"/>',
            f'<text x="{left + scale * ratio + 6:.0f}" y="{y + 15}">{ratio:.2f} ({peer})</text>',
        ]
    parts += [
        f'<line x1="{one}" y1="26" x2="{one}" y2="{height - 20}" stroke="#333" '
        'stroke-dasharray="4 3"/>',
        f'<text x="{one}" y="{height - 6}" text-anchor="middle">1</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", help="zoo names, .cnn or .onnx files")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    installed = [peer for peer, needs in PEERS.items() if all(map(find_spec, needs))]
    parser.add_argument("--peers", nargs="*", default=installed, choices=PEERS)
    parser.add_argument("--json", type=Path, help="write the cells to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--svg", type=Path, help="write the chart to this file")
    args = parser.parse_args()
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            for threads in args.threads:
                for batch in args.batch:
                    runtimes = ["cnnc", *args.peers]
                    found = measure(network, runtimes, threads, batch, args.rounds, Path(folder))
                    print(*found, sep="\n", file=sys.stderr)
                    cells += found
    print_table(cells)
    if args.json:
        args.json.write_text(json.dumps([asdict(c) for c in cells], indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(cells))
    if args.svg:
        args.svg.write_text(chart(cells))


if __name__ == "__main__":
    main()
