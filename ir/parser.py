"""Reading the text form of graphs that `cnnc.ir.printer` writes.

Everything in the text is checked while it is read: names, attributes, and the result types, which
must be what the ops infer. Laws: `parse_graph(print_graph(g), g.constants) == g`, and for canonical
text `print_graph(parse_graph(t)) == t`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from lark import Token, Tree

from cnnc.ir.attributes import read_fields
from cnnc.ir.graph import Builder, Graph, Level, Place, Region
from cnnc.ir.kernel import Kernel
from cnnc.ir.location import CnncError, Location, ParseError, ShapeError, suggest
from cnnc.ir.op import Array
from cnnc.ir.ops import OPS
from cnnc.ir.printer import read_element
from cnnc.ir.syntax import Source, Syntax
from cnnc.ir.types import Dim, DType, Layout, Sym, TensorType

_DIM = re.compile(
    r"(?:(?P<scale>-?\d+)\*)?(?P<name>[A-Za-z_]\w*)(?:/(?P<by>\d+))?"
    r"(?P<offset>[+-]\d+)?(?:%(?P<divisor>\d+))?",
    re.ASCII,
)
_LAYOUT = re.compile(r"\{(?:c(?P<block>\d+))? ?(?:halo=(?P<halo>\d+x\d+x\d+x\d+))?\}", re.ASCII)
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
            self._declare(declared)
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

    def _declare(self, tree: Tree[Token]) -> None:
        """`%x: f32[N,3,8,8] @input+0`."""
        name = self._new(_token(tree, 0))
        self.builder.input(name, self._typed(_tree(tree, "typed"), name))

    def _constant(self, tree: Tree[Token]) -> None:
        """`%w = constant [1.0,2.0] : f32[2]`, or without elements."""
        name = self._new(_token(tree, 0))
        typed = _tree(tree, "typed")
        type = self._typed(typed, name)
        elements = next((t for t in _trees(tree) if t.data == "list"), None)
        if elements is not None:
            array = self._elements(elements, type)
        elif name in self.arrays:
            array = self.arrays[name]
        else:
            help = "pass the arrays that go with the text"
            raise self.source.fail(f"no array is given for the constant `{name}`", tree, help)
        if (array.shape, array.dtype) != (type.shape, type.dtype.numpy):
            found = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
            raise self.source.fail(f"`{name}` is declared {type}, its array is {found}", typed)
        self.builder.constant(name, array)
        self.builder.types[name] = type

    def _elements(self, tree: Tree[Token], type: TensorType) -> Array:
        texts = [_word_or_number(child) for child in tree.children]
        try:
            values = [read_element(text, type.dtype.numpy) for text in texts]
            return np.array(values, type.dtype.numpy).reshape(type.dims)
        except (ValueError, OverflowError, ShapeError) as error:
            raise self.source.fail(f"these elements do not make a {type}: {error}", tree) from None

    def _node(self, tree: Tree[Token]) -> None:
        """`%h = conv2d(%x, %w) {pad=[2,2,2,2]} kernel=general_conv{...} : f32[N,6,28,28]`."""
        first, word = _tokens(tree)
        more = _find(tree, "more")
        if word not in OPS:
            raise self.source.fail(f"unknown op `{word}`", word, suggest(word, OPS))
        op = read_fields(OPS[word], _find(tree, "fields"), word, self.source)
        operands = [self._known(token) for token in _tokens(_tree(tree, "operands"))]
        results = [self._new(token) for token in (first, *(_tokens(more) if more else ()))]
        places = _find(tree, "locations")
        locations = [self._location(at) for at in _trees(places)] if places is not None else []
        kernel = self._kernel(_find(tree, "kernel"))
        try:
            self.builder.add(op, operands, results, locations, kernel)
        except CnncError as error:
            origin = [f"from {locations[0]}"] if locations else []
            message = error.diagnostics[0].message
            raise self.source.fail(message, word, error.diagnostics[0].help, origin) from None
        types = _trees(_tree(tree, "types"))
        if len(types) != len(results):
            raise self.source.fail(f"{len(results)} results, but {len(types)} types", word)
        for name, typed in zip(results, types, strict=True):
            given, inferred = self._typed(typed, name), self.builder.types[name]
            if (given.shape, given.dtype) != (inferred.shape, inferred.dtype):
                raise self.source.fail(f"`{name}` is {inferred}, the text says {given}", typed)
            self.builder.types[name] = given

    def _kernel(self, tree: Tree[Token] | None) -> Kernel | None:
        if tree is None:
            return None
        word = _token(tree, 0)
        if word not in self.kernels:
            help = suggest(word, self.kernels) or "reading this text needs the table of kernels"
            raise self.source.fail(f"unknown kernel `{word}`", word, help)
        return read_fields(self.kernels[word], _find(tree, "fields"), word, self.source)

    def _output(self, tree: Tree[Token]) -> None:
        """`prob: %y`."""
        public, value = _tokens(tree)
        name = self.source.string(public) if public.type == "STRING" else str(public)
        try:
            self.builder.output(name, self._known(value))
        except CnncError as error:
            if isinstance(error, ParseError):
                raise
            raise self.source.fail(error.diagnostics[0].message, public) from None

    def _typed(self, tree: Tree[Token], name: str) -> TensorType:
        """The type; the value's place, if there is one, is noted."""
        tokens = _tokens(tree)
        if len(tokens) > 1:
            region, numbers = tokens[1][1:].split("+")
            known = {r.value: r for r in Region}
            if region not in known:
                help = suggest(region, known)
                raise self.source.fail(f"unknown region `{region}`", tokens[1], help)
            self.places[name] = Place(known[region], *map(int, numbers.split("*")))
        try:
            return parse_type(tokens[0])
        except ShapeError as error:
            problem = error.diagnostics[0]
            raise self.source.fail(problem.message, tokens[0], problem.help) from None

    def _location(self, tree: Tree[Token]) -> Location:
        """`"lenet.cnn":3:8-20 "conv1"`."""
        span = _find(tree, "span")
        numbers = [int(t) for t in _tokens(span)] if span is not None else []
        line, column, end = (*numbers, 0, 0, 0)[:3]
        file, *name = (self.source.string(t) for t in tree.children if isinstance(t, Token))
        return Location(file, line, column, end, name[0] if name else "")

    def _new(self, token: Token) -> str:
        name = self.source.name(token)
        if name in self.builder.types:
            raise self.source.fail(f"two values are called `{name}`", token)
        return name

    def _known(self, token: Token) -> str:
        name = self.source.name(token)
        if name not in self.builder.types:
            help = suggest(name, self.builder.types)
            raise self.source.fail(f"`{name}` is not defined before its use", token, help)
        return name


def _tokens(tree: Tree[Token]) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token)]


def _token(tree: Tree[Token], index: int) -> Token:
    return _tokens(tree)[index]


def _trees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]


def _find(tree: Tree[Token], rule: str) -> Tree[Token] | None:
    return next((child for child in _trees(tree) if child.data == rule), None)


def _tree(tree: Tree[Token], rule: str) -> Tree[Token]:
    found = _find(tree, rule)
    assert found is not None, f"the grammar gives every {tree.data} its {rule}"
    return found


def _word_or_number(tree: Syntax) -> str:
    """The text of a list's element, a number or a plain word; anything else is no element."""
    if isinstance(tree, Tree):
        return str(tree.children[0]) if tree.data == "word" and len(tree.children) == 1 else "?"
    return str(tree)
