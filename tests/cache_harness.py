"""A model of four files, and what tests ask of the cache of compiled models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

import cnnc
from cnnc.frontends import load
from cnnc.model import CompiledModel
from cnnc.runtime.artifact import SUFFIX

BLOCKS = """\
const width = 6
block layer(c) = conv(c, 3, pad=1) -> relu
"""

MODEL = """\
import "parts/blocks.cnn" (layer, width)
model small(classes=4) {
  input image: f32[N, 1, H%2, 8]
  output prob = image -> layer(width) -> gap -> dense(classes) -> softmax
  weights "small.safetensors" map "names.txt"
}
"""

SIZES = {"H": 8}


def write_small(folder: Path) -> Path:
    """Writes the model with its blocks, weights and their names; the file to compile."""
    path = folder / "small.cnn"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "blocks.cnn").write_text(BLOCKS)
    path.write_text(MODEL.replace('weights "small.safetensors" map "names.txt"', "init he(seed=1)"))
    graph = load(path)
    weights = {name.upper(): array for name, array in graph.constants.items()}
    save_file(weights, folder / "small.safetensors")
    (folder / "names.txt").write_text("".join(f"{n} = {n.upper()}\n" for n in graph.constants))
    path.write_text(MODEL)
    return path


def compiled(source: Path | str, **options: Any) -> CompiledModel:
    chosen: dict[str, Any] = {"sizes": SIZES, "threads": 1} | options
    return cnnc.compile(source, **chosen)


def is_cached(source: Path | str, **options: Any) -> bool:
    return compiled(source, **options).report().cached


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))
