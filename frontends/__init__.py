"""Frontends: what can be loaded into a graph. Each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cnnc.ir.location import Diagnostic, OptionError

if TYPE_CHECKING:
    from onnx import ModelProto

    from cnnc.ir.graph import Graph

    Model = str | Path | bytes | ModelProto
    """A file, or an ONNX model in memory."""


@dataclass(frozen=True)
class Request:
    """What is asked of a frontend: values for parameters, a model's name, numbers for sizes."""

    parameters: Mapping[str, object] = field(default_factory=dict)
    model: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def _cnn(source: Model, request: Request) -> Graph:
    from cnnc.frontends.dsl.load import load_file

    assert isinstance(source, str | Path)
    graph = load_file(source, parameters=request.parameters, model=request.model)
    return put_sizes(graph, request.sizes)


def _onnx(source: Model, request: Request) -> Graph:
    from cnnc.frontends.onnx.load import load_onnx

    if request.parameters or request.model is not None:
        help = "a size gets a number by `sizes` (on the command line --size)"
        raise OptionError(Diagnostic("an ONNX model has no parameters", help=help))
    return load_onnx(source, sizes=request.sizes)


def _onnx_files(source: Path) -> list[Path]:
    from cnnc.frontends.onnx.load import model_files

    return model_files(source)


def _cnn_files(source: Path) -> list[Path]:
    from cnnc.frontends.scan import model_files

    return model_files(source)


Frontend = Callable[["Model", Request], "Graph"]

FRONTENDS: dict[str, Frontend] = {".cnn": _cnn, ".onnx": _onnx}

# Suffix -> all files that loading a model reads. Models of other suffixes are never cached.
FILES: dict[str, Callable[[Path], list[Path]]] = {".cnn": _cnn_files, ".onnx": _onnx_files}


def load(
    source: Model,
    *,
    parameters: Mapping[str, object] | None = None,
    model: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Graph:
    """The portable graph of the model in a file; the suffix says how it is written.

    Args:
        source: Path of the file, as messages will show it; or an ONNX model in memory.
        parameters: Values for the parameters that the model declares.
        model: Which model, if the file holds several.
        sizes: Numbers for symbolic sizes.

    Raises:
        OptionError: no frontend reads files with this suffix, or the model has no such size.
        ParseError: the file does not exist or is no correct model.
    """
    suffix = Path(source).suffix if isinstance(source, str | Path) else ".onnx"
    frontend = FRONTENDS.get(suffix)
    if frontend is None:
        known = ", ".join(f"`{name}`" for name in FRONTENDS)
        message = f"nothing reads `{source!s}`: its suffix is `{suffix}`"
        raise OptionError(Diagnostic(message, help=f"models are files ending in {known}"))
    return frontend(source, Request(parameters or {}, model, sizes or {}))


def put_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with numbers for symbolic sizes.

    Raises:
        OptionError: it has no such size.
        ShapeError: an op does not fit these sizes.
    """
    unknown = [name for name in sizes if name not in graph.symbols]
    if unknown:
        known = ", ".join(sorted(graph.symbols)) or "none"
        raise OptionError(f"the model has no size `{unknown[0]}`; its symbolic sizes: {known}")
    return graph.bind(sizes)
