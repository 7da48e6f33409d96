"""ONNX tensors -> arrays: from the model's own bytes, or from data files beside it.

What a tensor says of its size is never believed before the bytes are there: a damaged or hostile
model makes no more memory than it has bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from cnnc.frontends.onnx.raw import Place
from cnnc.ir.location import Diagnostic, Location, ParseError
from cnnc.ir.op import Array

# TensorProto.DataType -> (NumPy type, typed field, type of that field's numbers)
_TYPES: dict[int, tuple[str, str, str]] = {
    1: ("float32", "float_data", "float32"),
    2: ("uint8", "int32_data", "int32"),
    3: ("int8", "int32_data", "int32"),
    4: ("uint16", "int32_data", "int32"),
    5: ("int16", "int32_data", "int32"),
    6: ("int32", "int32_data", "int32"),
    7: ("int64", "int64_data", "int64"),
    9: ("bool", "int32_data", "int32"),
    10: ("float16", "int32_data", "uint16"),
    11: ("float64", "double_data", "float64"),
    12: ("uint32", "uint64_data", "uint64"),
    13: ("uint64", "uint64_data", "uint64"),
}
_NAMES = {8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16"}
_EXTERNAL = 1  # TensorProto.EXTERNAL
_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 48
# A pipe would block when opened, were it not for O_NONBLOCK.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def element_type(number: int) -> np.dtype[Any] | None:
    """The NumPy type of a `TensorProto.DataType`; None for those that NumPy lacks."""
    return np.dtype(_TYPES[number][0]) if number in _TYPES else None


def type_called(name: str) -> int:
    """The `TensorProto.DataType` of that name, as in `FLOAT`; 0 for one that is not known."""
    from onnx import TensorProto

    return int(dict(TensorProto.DataType.items()).get(name, 0))


def element_name(number: int) -> str:
    """What to call a `TensorProto.DataType` in messages."""
    return _TYPES[number][0] if number in _TYPES else _NAMES.get(number, f"number {number}")


def text(value: str | bytes) -> str:
    """A string of a model; bytes that are no UTF-8 come as bytes and keep a readable form."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


class TensorReader:
    """Reads the tensors of one model. Data files are read once for all tensors that share a part.

    Args:
        file: what messages call the model.
        folder: where its data files lie; None if it does not come from a file.
    """

    def __init__(self, file: str, folder: Path | None) -> None:
        self.file = file
        self.folder = folder
        self._parts: dict[tuple[Path, int, int, str], Array] = {}
        self._read: dict[Path, int] = {}  # bytes of each data file that were read

    def array(self, tensor: Any, name: str = "", place: Place | None = None) -> Array:
        """The tensor as an array that owns its bytes or shares those of the model.

        Its data is at a `place` in the model's file if it was left out of the message.

        Raises:
            ParseError: its type has no NumPy form, its size is not that of its data, or its data
                file is not a file in the model's folder.
        """
        name = name or text(tensor.name)
        known = _TYPES.get(tensor.data_type)
        if known is None:
            kind = element_name(tensor.data_type)
            raise self._fail(
                name, f"has element type {kind}, which is not supported", "store it as float32"
            )
        dims = tuple(tensor.dims)
        large = prod(d or 1 for d in dims) > _MAX_ELEMENTS  # NumPy has a limit for empty ones, too
        if len(dims) > _MAX_RANK or min(dims, default=0) < 0 or large:
            raise self._fail(name, f"has the impossible shape {_shown(dims)}")
        count, dtype = prod(dims), np.dtype(known[0])
        if tensor.data_location == _EXTERNAL:
            return self._external(tensor, name, dtype, count).reshape(dims)
        if place is not None:
            self._check_size(name, dims, count * dtype.itemsize, place.length)
            return self._part(name, Path(self.file), place.offset, count, dtype).reshape(dims)
        raw = tensor.raw_data
        if raw or not count:
            self._check_size(name, dims, count * dtype.itemsize, len(raw))
            return _native(np.frombuffer(raw, _stored(dtype), count), dtype).reshape(dims)
        return self._typed(tensor, name, known, count).reshape(dims)

    def _typed(self, tensor: Any, name: str, known: tuple[str, str, str], count: int) -> Array:
        kind, field, stored = known
        numbers = getattr(tensor, field)
        if len(numbers) != count:
            shape = _shown(tuple(tensor.dims))
            raise self._fail(name, f"holds {len(numbers)} numbers, its shape {shape} wants {count}")
        try:
            array = np.array(numbers, stored)
        except OverflowError:
            raise self._fail(name, f"holds a number that is no {stored}") from None
        if kind == "float16":
            return array.view(np.float16)
        return array.astype(kind, copy=False)

    def _check_size(self, name: str, dims: tuple[int, ...], wanted: int, found: int) -> None:
        if wanted != found:
            raise self._fail(
                name, f"has {found} bytes of data, its shape {_shown(dims)} wants {wanted}"
            )

    # -- data files ------------------------------------------------------------------------------

    def _external(self, tensor: Any, name: str, dtype: np.dtype[Any], count: int) -> Array:
        entries = {text(e.key): text(e.value) for e in tensor.external_data}
        if self.folder is None:
            raise self._fail(
                name,
                f"lies in the data file `{entries.get('location', '')}`, but the model is not "
                "from a file",
                "give the model's path, so that its folder is known",
            )
        path = self._contained(name, entries.get("location", ""))
        offset = self._number(name, "offset", entries.get("offset", "0"))
        length = self._number(name, "length", entries.get("length", str(count * dtype.itemsize)))
        self._check_size(name, tuple(tensor.dims), count * dtype.itemsize, length)
        key = (path, offset, length, dtype.name)
        if key not in self._parts:
            self._parts[key] = self._part(name, path, offset, count, dtype)
        return self._parts[key]

    def _part(self, name: str, path: Path, offset: int, count: int, dtype: np.dtype[Any]) -> Array:
        length = count * dtype.itemsize
        try:
            with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise self._fail(name, f"lies in `{path.name}`, which is no regular file")
                if offset + length > status.st_size:
                    raise self._fail(
                        name,
                        f"ends at byte {offset + length} of `{path.name}`, which has "
                        f"{status.st_size}",
                        "the data file is truncated, or belongs to another model",
                    )
                self._read[path] = self._read.get(path, 0) + length
                if self._read[path] > status.st_size:
                    raise self._fail(name, f"overlaps with others in `{path.name}`")
                array = np.fromfile(file, _stored(dtype), count, offset=offset)
        except OSError as error:
            raise self._fail(
                name,
                f"lies in `{path.name}`: {error.strerror or error}",
                "the data file belongs beside the model",
            ) from None
        self._check_size(name, (count,), length, array.nbytes)  # it may have shrunk meanwhile
        return _native(array, dtype)

    def _contained(self, name: str, location: str) -> Path:
        """The file's real path, which is inside the model's folder."""
        assert self.folder is not None
        problem = outside(self.folder, location)
        if problem:
            raise self._fail(
                name,
                f"lies in the data file `{location}`, {problem}",
                "data files must lie in the model's own folder",
            )
        return (self.folder / location).resolve()

    def _number(self, name: str, what: str, given: str) -> int:
        if not (given.isascii() and given.isdigit() and len(given) < 19):
            raise self._fail(name, f"has the impossible {what} `{given[:40]}` in its data file")
        return int(given)

    def _fail(self, name: str, message: str, help: str = "") -> ParseError:
        at = Location(self.file, name=name)
        return ParseError(Diagnostic(f"tensor `{name}` {message}", at, help=help))


def outside(folder: Path, location: str) -> str:
    """Why a data file's name does not stand for a file in `folder`; empty if it does."""
    if not location or "\0" in location:
        return "which is no name"
    kinds = (PurePosixPath(location), PureWindowsPath(location))
    if any(path.is_absolute() or path.drive or path.root for path in kinds):
        return "an absolute path"
    if any(".." in path.parts for path in kinds):
        return "a path that leaves the folder"
    try:
        inside = (folder / location).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # such as a loop of links
        return f"which cannot be followed: {error}"
    return "" if inside else "a link that leaves the folder"


def data_files(model: Any) -> Iterator[str]:
    """The names of the data files that the initializers of a model lie in."""
    for tensor in model.graph.initializer:
        if tensor.data_location == _EXTERNAL:
            yield from (text(e.value) for e in tensor.external_data if text(e.key) == "location")


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type as it lies in a file: little endian; truth values as bytes."""
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("<")


def _native(array: Array, dtype: np.dtype[Any]) -> Array:
    """What was stored as this machine has it; the same bytes wherever they can stay."""
    return array.astype(dtype, copy=False)


def _shown(dims: Iterable[int]) -> str:
    shown = [str(d) for d in dims]
    return f"[{','.join(shown[:8])}{',...' if len(shown) > 8 else ''}]"
