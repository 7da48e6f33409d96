"""A compiled model as a value, and as a file that runs without the compiler.

    save("net.cnnca", artifact)
    artifact = load("net.cnnca")      # the weights stay in the file, mapped into memory

A file is a header, the manifest as JSON, the model's and the thread team's linked code, and, from a
multiple of 4096 bytes on, the packed weights with a line of zeros behind them. The header has their
sizes and a checksum of everything but the weights, which have a quick one of their own.

The file holds native code: running it is running a program, so load only what you trust.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cnnc.ir.calling import LINE
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.runtime import plain
from cnnc.runtime.files import check_path, replacing
from cnnc.runtime.memory import aligned_empty

if TYPE_CHECKING:
    from cnnc.ir.op import Array

VERSION = 4  # of the file, of `cnnc.ir.calling` and of the thread team
SUFFIX = ".cnnca"

_MAGIC = b"cnnca\r\n\x1a"  # a transfer as text would change the line end
_HEADER = struct.Struct("<8sI4x4QQ32s")  # magic, version, four sizes, sum of the weights, checksum
_DIGEST = 32  # bytes
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output."""

    name: str
    dtype: DType
    shape: tuple[int | Sym, ...]

    @property
    def type(self) -> TensorType:
        """As the rest of cnnc has it."""
        return TensorType(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the code was compiled for, in LLVM's words."""

    name: str
    triple: str
    cpu: str
    features: str
    fingerprint: str  # of the processor that it was made on, if it runs there; else empty


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one must know of a compiled model to run it, and to tell of it."""

    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]  # in the order of the profile
    foreign: tuple[str, ...]  # what the source calls the nodes that run in NumPy
    steps: tuple[str, ...]  # the symbols of the functions to call, in order
    arena_bytes: int  # working memory
    scratch_bytes: int  # private memory of each thread
    group: int  # how many images go through the steps together
    least: int  # how many that are left over do so too; fewer go one by one
    parts: int  # into how many any step is shared out at most: more threads find no work
    machine: Machine
    versions: dict[str, str]  # of what made it, for information
    report: dict[str, Any]  # plain data of `cnnc.report.Report`


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compiled model: manifest, linked code, packed weights."""

    manifest: Manifest
    code: bytes
    team: bytes  # linked code of the thread team
    weights: Array  # uint8, whole cache lines from the start of one, and one to read behind them

    def to_bytes(self) -> bytes:
        """What a file of it holds. Raises `CnncError` if a part of it runs in NumPy."""
        return b"".join(_pieces(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Artifact.from_bytes, (self.to_bytes(),)

    @staticmethod
    def from_bytes(data: bytes) -> Artifact:
        """The way back. Raises `CnncError` as `load` does."""
        memory = aligned_empty(len(data))
        memory[:] = np.frombuffer(data, np.uint8)
        return parse(memory, "the compiled model")


def save(path: str | Path, artifact: Artifact, *, private: bool = False) -> None:
    """Writes the file; it appears as a whole or not at all.

    Args:
        path: where; a file that is there is replaced.
        artifact: what to write.
        private: nobody else may read it.

    Raises:
        CnncError: it cannot be written, or a part of the model runs in NumPy.
    """
    pieces = _pieces(artifact)
    with replacing(path, private=private) as file:
        for piece in pieces:
            file.write(piece)


def load(path: str | Path) -> Artifact:
    """Reads the file; its weights stay mapped and are read when they are needed.

    Raises:
        CnncError: there is no such file, it is damaged, or another version of cnnc wrote it.
    """
    check_path(path)
    try:
        with open(path, "rb") as file:
            return read(file, str(path))
    except OSError as error:
        raise CnncError(f"cannot read `{path}`: {error.strerror or error}") from None


def read(file: BinaryIO, name: str, *, check_weights: bool = True) -> Artifact:
    """The artifact in an open file.

    Args:
        file: open for reading; may be closed afterwards.
        name: what messages call it.
        check_weights: compare the weights with their checksum, which reads them all once.

    Raises:
        CnncError: as for `load`.
    """
    if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
        raise _damaged(name, "it is empty")
    data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return parse(data, name, check_weights=check_weights)


def parse(data: Array, name: str, *, check_weights: bool = True) -> Artifact:
    """The artifact in `data`, uint8, which starts on a cache line; its weights are a part of it.

    Raises:
        CnncError: as for `load`.
    """
    if len(data) < _HEADER.size:
        raise _damaged(name, "it is too short")
    magic, version, *sizes, total, digest = _HEADER.unpack(data[: _HEADER.size].tobytes())
    if magic != _MAGIC:
        raise CnncError(f"`{name}` is no compiled model")
    if version != VERSION:
        raise CnncError(
            Diagnostic(
                f"`{name}` has version {version} of the format, this cnnc reads {VERSION}",
                help="compile the model again",
            )
        )
    begin, end = _weights_at(sizes)
    if len(data) != end + LINE:
        raise _damaged(name, f"it has {len(data)} bytes in place of {end + LINE}")
    head = data[: sum(sizes[:3]) + _HEADER.size].tobytes()
    if digest != _checksum(head[: _HEADER.size - _DIGEST], head[_HEADER.size :]):
        raise _damaged(name, "the checksum differs")
    weights = data[begin:end]
    if check_weights and _sum(weights) != total:
        raise _damaged(name, "the checksum of the weights differs")
    code_at, team_at = _HEADER.size + sizes[0], _HEADER.size + sizes[0] + sizes[1]
    try:
        manifest = plain.read(Manifest, json.loads(head[_HEADER.size : code_at]), "manifest")
    except (ValueError, CnncError) as error:
        raise _damaged(name, str(error)) from None
    return Artifact(manifest, head[code_at:team_at], head[team_at:], weights)


def _pieces(artifact: Artifact) -> list[Any]:
    """What a file consists of, in order."""
    if artifact.manifest.foreign:
        names = ", ".join(f"`{name}`" for name in artifact.manifest.foreign)
        raise CnncError(
            Diagnostic(
                f"`{artifact.manifest.model}` cannot be saved: {names} has no native code",
                help="compile it with `strict` to see where it comes from",
            )
        )
    text = json.dumps(plain.write(artifact.manifest))
    body = [text.encode(), artifact.code, artifact.team]
    sizes = [*map(len, body), artifact.weights.nbytes]
    front = _HEADER.pack(_MAGIC, VERSION, *sizes, _sum(artifact.weights), bytes(_DIGEST))
    front = front[:-_DIGEST]
    gap = bytes(_weights_at(sizes)[0] - _HEADER.size - sum(sizes[:3]))
    weights = np.ascontiguousarray(artifact.weights)
    return [front, _checksum(front, *body), *body, gap, weights.data, bytes(LINE)]


def _weights_at(sizes: list[int]) -> tuple[int, int]:
    begin = -(-(_HEADER.size + sum(sizes[:3])) // _PAGE) * _PAGE
    return begin, begin + sizes[3]


def _checksum(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _sum(weights: Array) -> int:
    """The sum of the 64-bit words: as fast as memory, and no single change leaves it as it was."""
    return int(np.add.reduce(weights.view(np.uint64), dtype=np.uint64))


def _damaged(name: str, why: str) -> CnncError:
    return CnncError(
        Diagnostic(f"`{name}` is damaged: {why}", help="copy or compile the model again")
    )
