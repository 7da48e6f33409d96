"""Reading the text form of graphs that `cnnc.ir.printer` writes.

Everything in the text is checked while it is read: names, attributes, and the result types, which
must be what the ops infer. Laws: `parse_graph(print_graph(g), g.constants) == g`, and for canonical
text `print_graph(parse_graph(t)) == t`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from lark import Token, Tree

from cnnc.ir.attributes import read_fields
from cnnc.ir.graph import Builder, Graph, Level, Place, Region
from cnnc.ir.kernel import Kernel
from cnnc.ir.location import CnncError, Location, ParseError, ShapeError
from cnnc.ir.op import Array
from cnnc.ir.ops import OPS
from cnnc.ir.printer import read_element
from cnnc.ir.syntax import Source, Syntax, suggest
from cnnc.ir.types import Dim, DType, Layout, Sym, TensorType

_DIM = re.compile(
    r"(?:(?P<scale>-?\d+)\*)?(?P<name>[A-Za-z_]\w*)(?:/(?P<by>\d+))?"
    r"(?P<offset>[+-]\d+)?(?:%(?P<divisor>\d+))?"
)
_LAYOUT = re.compile(r"\{(?:c(?P<block>\d+))? ?(?:halo=(?P<halo>\d+x\d+x\d+x\d+))?\}")
_TYPE = re.compile(r"(?P<dtype>\w+)\[(?P<dims>[^\]]*)\](?P<layout>\{.*\})?")


def parse_graph(
    text: str,
    constants: Mapping[str, Array] | None = None,
    kernels: Mapping[str, type[Kernel]] | None = None,
    filename: str = "<text>",
) -> Graph:
    """The graph that `text` describes.

    Args:
        text: the text form.
        constants: the arrays of constants that the text only names.
        kernels: the kernel classes that a planned graph may name.
        filename: what errors call the text.
    Raises:
        ParseError: located; the text cannot be read, or does not describe a legal graph.
    """
    return _Reader(Source(text, filename), constants or {}, kernels or {}).graph()


def load_graph(path: str | Path, kernels: Mapping[str, type[Kernel]] | None = None) -> Graph:
    """The graph that `cnnc.ir.printer.save_graph` wrote. Raises `ParseError`."""
    path = Path(path)
    arrays: dict[str, Array] = {}
    beside = path.with_suffix(".npz")
    if beside.exists():
        with np.load(beside, allow_pickle=False) as archive:
            names = [Token("STRING", text) for text in archive["names"].tolist()]
            source = Source("", str(beside))
            arrays = {source.string(n): archive[f"array{i}"] for i, n in enumerate(names)}
    return parse_graph(path.read_text(encoding="utf-8"), arrays, kernels, str(path))


def parse_type(text: str) -> TensorType:
    """`"f32[N,64,56,56]{c16}"` as a type. Raises `ShapeError`."""
    match = _TYPE.fullmatch(text)
    if not match:
        raise ShapeError(f"`{text}` is no type; write it like f32[N,3,8,8]")
    dims = [d.strip() for d in match["dims"].split(",")] if match["dims"].strip() else []
    shape = tuple(parse_dim(dim) for dim in dims)
    layout = _parse_layout(match["layout"]) if match["layout"] else Layout()
    return TensorType(shape, DType.parse(match["dtype"]), layout)


def parse_dim(text: str) -> Dim:
    """A size as `Sym` prints it: `28`, `N`, `H%16`, `3*H/4+1%16`. Raises `ShapeError`."""
    if text.isascii() and text.isdigit():
        return int(text)
    match = _DIM.fullmatch(text)
    if not match:
        raise ShapeError(f"`{text}` is no size; write 28, N, H%16 or 3*H/4+1%16")
    divisor = int(match["divisor"] or 1)
    offset = int(match["offset"] or 0)
    if match["scale"] is None and match["by"] is None:
        return Sym(match["name"], divisor, divisor, offset)
    scale, by = int(match["scale"] or 1), int(match["by"] or 1)
    if by == 0 or scale == 0 or divisor * scale % by:
        raise ShapeError(f"the size `{text}` is not whole: write the divisor, as in H/2%16")
    return Sym(match["name"], divisor, divisor * scale // by, offset)


def _parse_layout(text: str) -> Layout:
    match = _LAYOUT.fullmatch(text)
    if not match:
        raise ShapeError(f"`{text}` is no layout; write it like {{c16 halo=1x1x1x1}}")
    top, left, bottom, right = map(int, (match["halo"] or "0x0x0x0").split("x"))
    return Layout(int(match["block"] or 1), (top, left, bottom, right))


class _Reader:
    """One reading: the graph so far and the maps to look names up in."""

    def __init__(
        self, source: Source, arrays: Mapping[str, Array], kernels: Mapping[str, type[Kernel]]
    ) -> None:
        self.source = source
        self.arrays = arrays
        self.kernels = kernels
        self.builder = Builder("")
        self.places: dict[str, Place] = {}

    def graph(self) -> Graph:
        tree = self.source.tree("graph")
        parts = {part.data: part for part in tree.children if isinstance(part, Tree)}
        self.builder = Builder(self.source.name(_token(tree, 0)), self._level(parts["level"]))
        for declared in _trees(parts["inputs"]):
            self._declare(declared, lambda name, type: self.builder.input(name, type))
        for statement in _trees(tree):
            if statement.data == "constant":
                self._constant(statement)
            elif statement.data == "node":
                self._node(statement)
        for output in _trees(parts["outputs"]):
            self._output(output)
        arena = int(_token(parts["arena"], 0)) if "arena" in parts else 0
        return replace(self.builder.finish(), places=self.places, arena_bytes=arena)

    def _level(self, tree: Tree[Token]) -> Level:
        word = _token(tree, 0)
        known = {level.value: level for level in Level}
        if word not in known:
            raise self.source.fail(f"`{word}` is no level", word, suggest(word, known))
        return known[str(word)]
