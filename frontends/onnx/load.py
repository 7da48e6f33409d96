"""ONNX file, bytes or `ModelProto` -> portable graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnnc.frontends.onnx.convert import convert
from cnnc.frontends.onnx.proto import read_source
from cnnc.frontends.onnx.shapes import bound_values, input_types
from cnnc.frontends.onnx.tensors import data_files, outside, text
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError, Diagnostic, Location, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from onnx import ModelProto


def load_onnx(
    source: str | Path | bytes | ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sizes: Mapping[str, int] | None = None,
    values: Mapping[str, ArrayLike] | None = None,
) -> Graph:
    """The portable graph of an ONNX model, opset 7 or later.

    Sizes without a number become symbols: under the name that the model gives them, `N` for a batch
    without name, `<input>_<axis>` for others; `?` is no name. Only the batch may stay symbolic when
    it is compiled.

    Args:
        source: a path, the bytes of a model, or an `onnx.ModelProto`. Weights in data files need a
            path: they are looked for in the model's folder, and nowhere else.
        shapes: input name -> all its sizes, to put numbers for symbols.
        sizes: symbol -> number; the same by name.
        values: input name -> its elements, which are compiled in; the graph does not take these
            inputs. Needed of those that decide on shapes, such as Reshape's second.

    Raises:
        ValuesNeeded: a `ParseError`: nodes need the values of inputs that `values` does not give.
        ParseError: damaged, or not supported; all nodes that cannot be converted are listed, with
            the reason and what to do.
        OptionError: `shapes`, `sizes` or `values` do not fit the model.
    """
    read = read_source(source)
    graph = read.model.graph
    initializers = {text(tensor.name) for tensor in graph.initializer}
    inputs = [info for info in graph.input if text(info.name) not in initializers]
    bound = bound_values(inputs, read.file, values or {})
    given = {name: array.shape for name, array in bound.items()}
    for name, shape in (shapes or {}).items():
        if name in given and tuple(shape) != given[name]:
            what = f"`{name}` has values of shape {list(given[name])}, and the shape {list(shape)}"
            raise OptionError(Diagnostic(what, Location(read.file, name=name), help="give one"))
    free = input_types(inputs, read.file, {**given, **(shapes or {})})
    symbols = {d.name for type in free.values() for d in type.shape if not isinstance(d, int)}
    unknown = sorted(set(sizes or ()) - symbols)
    if unknown:
        known = ", ".join(sorted(symbols)) or "none"
        raise OptionError(f"the model has no size `{unknown[0]}`; its symbolic sizes: {known}")
    types = {name: type.bind(sizes or {}) for name, type in free.items()}
    return convert(read, types, bound)


def model_files(path: Path) -> list[Path]:
    """All files that loading the model reads: its own, and its data files."""
    try:
        read = read_source(path)
    except CnncError:
        return [path]  # loading will say what is wrong
    names = sorted(set(data_files(read.model)))
    folder = read.folder or path.parent
    return [path, *(folder / name for name in names if not outside(folder, name))]
