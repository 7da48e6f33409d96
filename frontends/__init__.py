"""Frontends: what can be loaded into a graph. Each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cnnc.ir.location import Diagnostic, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from onnx import ModelProto

    from cnnc.ir.graph import Graph

    Model = str | Path | bytes | ModelProto
    """A file, or an ONNX model in memory."""


@dataclass(frozen=True)
class Request:
    """What is asked of a frontend: values for parameters, a model's name, numbers for sizes (by
    their names, or as shapes of inputs), elements of inputs that are compiled in."""

    parameters: Mapping[str, object] = field(default_factory=dict)
    model: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    values: Mapping[str, ArrayLike] = field(default_factory=dict)


@dataclass(frozen=True)
class Frontend:
    """How models of one kind are loaded.

    Attributes:
        load: gives the graph. It must heed the whole request, or raise `OptionError`.
        files: all files that loading a model reads, so that it can be cached.
    """

    load: Callable[[Model, Request], Graph]
    files: Callable[[Path], list[Path]]


def _cnn(source: Model, request: Request) -> Graph:
    from cnnc.frontends.dsl.load import load_file
    from cnnc.frontends.sizes import put_sizes

    assert isinstance(source, str | Path)
    if request.values:
        raise OptionError("only inputs of ONNX models are given values when they are compiled")
    graph = load_file(source, parameters=request.parameters, model=request.model)
    return put_sizes(graph, request.sizes, request.shapes)


def _cnn_files(source: Path) -> list[Path]:
    from cnnc.frontends.scan import model_files

    return model_files(source)


def _onnx(source: Model, request: Request) -> Graph:
    from cnnc.frontends.onnx.load import load_onnx

    if request.parameters or request.model is not None:
        help = "a size gets a number by `sizes` (on the command line --size)"
        raise OptionError(Diagnostic("an ONNX model has no parameters", help=help))
    return load_onnx(source, sizes=request.sizes, shapes=request.shapes, values=request.values)


def _onnx_files(source: Path) -> list[Path]:
    from cnnc.frontends.onnx.load import model_files

    return model_files(source)


# Suffix of files -> what loads them.
FRONTENDS: dict[str, Frontend] = {
    ".cnn": Frontend(_cnn, _cnn_files),
    ".onnx": Frontend(_onnx, _onnx_files),
}


def load(
    source: Model,
    *,
    parameters: Mapping[str, object] | None = None,
    model: str | None = None,
    sizes: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, ArrayLike] | None = None,
) -> Graph:
    """The portable graph of the model in a file; the suffix says how it is written.

    Args:
        source: Path of the file, as messages will show it; or an ONNX model in memory.
        parameters: Values for the parameters that the model declares.
        model: Which model, if the file holds several.
        sizes: Numbers for symbolic sizes.
        shapes: The same, as all sizes of an input, by its name.
        values: Elements of inputs, by name, which are compiled in.

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
    request = Request(parameters or {}, model, sizes or {}, shapes or {}, values or {})
    return frontend.load(source, request)
