"""Reading an ONNX model's protobuf, and what must hold of it before anything is converted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnc.frontends.onnx.raw import Parts, Place, split_model
from cnnc.frontends.onnx.tensors import text
from cnnc.ir.location import CnncError, Diagnostic, Location, ParseError

OLDEST = 1
DOMAINS = ("", "ai.onnx")
MICROSOFT = "com.microsoft"  # of ONNX Runtime's own operators
MAX_BYTES = (1 << 31) - 1  # of a protobuf message


@dataclass(frozen=True)
class Source:
    """An ONNX model and where it comes from."""

    model: Any  # onnx.ModelProto
    file: str  # what messages call it
    folder: Path | None  # where its data files lie
    name: str  # of the graph
    places: Sequence[Place | None] = ()  # in the file, of the data that the model lacks


def read_source(source: Any) -> Source:
    """The model of a path, of bytes or of a `ModelProto`.

    Raises:
        CnncError: the `onnx` package is missing.
        ParseError: there is no such file, or it is no ONNX model.
    """
    try:
        from onnx import ModelProto
    except ImportError:
        raise CnncError(
            Diagnostic("reading ONNX needs the `onnx` package", help='pip install "cnnc[onnx]"')
        ) from None
    if isinstance(source, ModelProto):
        return Source(source, "<model>", None, text(source.graph.name) or "model")
    if isinstance(source, str | Path):
        path = Path(source)
        message, places = _parts(path)
        model = _parse(message, str(path))
        return Source(model, str(path), path.resolve().parent, path.stem, places)
    if not isinstance(source, bytes | bytearray | memoryview):
        found = type(source).__name__
        raise ParseError(f"a model is a path, or ONNX as bytes or a ModelProto, not `{found}`")
    model = _parse(bytes(source), "<bytes>")
    return Source(model, "<bytes>", None, text(model.graph.name) or "model")


def _parts(path: Path) -> Parts:
    try:
        if not path.is_file():
            raise ParseError(Diagnostic(f"there is no file `{path}`", Location(str(path))))
        if path.stat().st_size > MAX_BYTES:
            raise ParseError(
                Diagnostic(
                    "the file is larger than a protobuf can be (2 GiB)",
                    Location(str(path)),
                    help="save the model with external data",
                )
            )
        with path.open("rb") as file:
            return split_model(file, path.stat().st_size)
    except OSError as error:
        what = f"cannot read `{path}`: {error.strerror or error}"
        raise ParseError(Diagnostic(what, Location(str(path)))) from None


def _parse(data: bytes, file: str) -> Any:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise _damaged("this is no ONNX model, or it is damaged or truncated", file) from None
    if not model.HasField("graph"):
        raise _damaged("this is no ONNX model: it has no graph", file)
    return model


def _damaged(message: str, file: str) -> ParseError:
    return ParseError(Diagnostic(message, Location(file), help="`onnx.checker` says more"))


def newest_opset() -> int:
    """The newest version of the standard operators that is known."""
    from onnx.defs import onnx_opset_version

    return int(onnx_opset_version())


def opset_of(model: Any, file: str) -> int:
    """The version of the standard operators that the model uses.

    Raises:
        ParseError: it says none, several, one before `OLDEST` or one that `onnx` does not know.
    """
    newest = newest_opset()
    versions = {o.version for o in model.opset_import if text(o.domain) in DOMAINS}
    at = Location(file)
    if len(versions) != 1:
        said = " and ".join(map(str, sorted(versions))) or "none"
        raise ParseError(Diagnostic(f"a model has one opset version, this one has {said}", at))
    (version,) = versions
    if version > newest:
        message = f"opset {version} is newer than {newest}, the newest that is known"
        raise ParseError(Diagnostic(message, at, help="a newer `onnx` package may know it"))
    if version < OLDEST:
        message = f"opset {version} is older than {OLDEST}, the oldest that there is"
        raise ParseError(Diagnostic(message, at))
    return int(version)
