"""Types of tensors: element type, shape with symbolic dimensions, and physical layout.

A dimension is an `int` or a `Sym`, an exact affine expression of one named size. The batch `N` is
the common case; a size declared as `H%16` is known to be a multiple of 16, which keeps a chain of
stride-2 layers exact: with `H%16`, `(H + 2 - 3) // 2 + 1` is `H/2`. Arithmetic that would not be
exact raises `ShapeError` and says which divisor to declare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import gcd, prod

import numpy as np

from cnnc.ir.location import Diagnostic, ShapeError


class DType(Enum):
    """Element types; the value is the NumPy name."""

    F16 = "float16"
    F32 = "float32"
    F64 = "float64"
    I8 = "int8"
    I16 = "int16"
    I32 = "int32"
    I64 = "int64"
    U8 = "uint8"
    U16 = "uint16"
    U32 = "uint32"
    U64 = "uint64"
    BOOL = "bool"

    def __str__(self) -> str:
        return _SHORT[self]

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy element type."""
        return np.dtype(self.value)

    @property
    def bytes(self) -> int:
        """Size of one element, in bytes."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether these are floating-point numbers."""
        return self in (DType.F16, DType.F32, DType.F64)

    @property
    def is_integer(self) -> bool:
        """Whether these are whole numbers, signed or not."""
        return not self.is_float and self is not DType.BOOL

    @staticmethod
    def parse(text: str) -> DType:
        """`"f32"` -> `DType.F32`. Raises `ShapeError` for an unknown name."""
        for dtype, short in _SHORT.items():
            if short == text:
                return dtype
        known = ", ".join(_SHORT.values())
        raise ShapeError(Diagnostic(f"unknown element type `{text}`", help=f"one of {known}"))


_SHORT = {
    DType.F16: "f16",
    DType.F32: "f32",
    DType.F64: "f64",
    DType.I8: "i8",
    DType.I16: "i16",
    DType.I32: "i32",
    DType.I64: "i64",
    DType.U8: "u8",
    DType.U16: "u16",
    DType.U32: "u32",
    DType.U64: "u64",
    DType.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class Sym:
    """The size `scale * (name / divisor) + offset`, where `name` is a multiple of `divisor`."""

    name: str
    divisor: int = 1
    scale: int = 0  # 0 stands for `divisor`: the plain size `name`
    offset: int = 0

    def __post_init__(self) -> None:
        if self.scale == 0:
            object.__setattr__(self, "scale", self.divisor)

    @property
    def is_plain(self) -> bool:
        """Whether this is just the named size."""
        return self.scale == self.divisor and self.offset == 0

    def bind(self, sizes: Mapping[str, int]) -> Dim:
        """The number for `sizes[name]`, or this symbol if the name is not bound."""
        if self.name not in sizes:
            return self
        size = sizes[self.name]
        if size < 0:
            raise ShapeError(f"size {self.name} must be at least 0, got {size}")
        if size % self.divisor:
            raise ShapeError(f"size {self.name} must be a multiple of {self.divisor}, got {size}")
        return self.scale * (size // self.divisor) + self.offset

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return replace(self, offset=self.offset + other)
        if (other.name, other.divisor) != (self.name, self.divisor):
            raise ShapeError(f"cannot add the sizes {self} and {other}")
        scale, offset = self.scale + other.scale, self.offset + other.offset
        return replace(self, scale=scale, offset=offset) if scale else offset

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return self + (-1 * other)

    def __mul__(self, factor: Dim) -> Dim:
        if not isinstance(factor, int):
            raise ShapeError(f"cannot multiply the symbolic sizes {self} and {factor}")
        if factor == 0:
            return 0
        return replace(self, scale=self.scale * factor, offset=self.offset * factor)

    __rmul__ = __mul__

    def __floordiv__(self, by: int) -> Dim:
        if self.scale % by:
            need = self.divisor * by // gcd(self.scale, by)
            raise ShapeError(
                Diagnostic(
                    f"size {self} is not known to be divisible by {by}",
                    help=f"declare the input with a divisible size, e.g. `{self.name}%{need}`, "
                    f"or give {self.name} a number",
                )
            )
        return replace(self, scale=self.scale // by, offset=self.offset // by)

    def __str__(self) -> str:
        if self.is_plain:
            return self.name if self.divisor == 1 else f"{self.name}%{self.divisor}"
        common = gcd(self.scale, self.divisor)
        scale, divisor = self.scale // common, self.divisor // common
        text = self.name if scale == 1 else f"{scale}*{self.name}"
        text += f"/{divisor}" if divisor != 1 else ""
        text += f"{self.offset:+d}" if self.offset else ""
        return text if self.divisor == 1 else f"{text}%{self.divisor}"


Dim = int | Sym
Shape = tuple[Dim, ...]


def known(dim: Dim) -> int | None:
    """The number, or None if the dimension is symbolic."""
    return dim if isinstance(dim, int) else None


def bind_dim(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """`dim` with the named sizes replaced by numbers."""
    return dim if isinstance(dim, int) else dim.bind(sizes)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies in memory.

    `block` = 1 is plain row-major (NCHW for rank 4). `block` = c > 1 is NCHW{c}: rank 4 only,
    stored as [N, ceil(C / c), H, W, c]; the lanes past C hold unspecified values which no kernel
    lets into a result. `halo` = (top, left, bottom, right) elements of zeros around each H x W map
    (rank 4 only), written by whoever writes the tensor.
    """

    block: int = 1
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def is_plain(self) -> bool:
        """Row-major without a border: what NumPy hands over."""
        return self.block == 1 and not any(self.halo)

    def __str__(self) -> str:
        parts = [f"c{self.block}"] if self.block > 1 else []
        if any(self.halo):
            parts.append("halo=" + "x".join(str(h) for h in self.halo))
        return "{" + " ".join(parts) + "}" if parts else ""


PLAIN = Layout()
_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, element type and layout of a tensor; prints as `f32[N,64,56,56]{c16}`."""

    shape: Shape
    dtype: DType = DType.F32
    layout: Layout = PLAIN

    def __post_init__(self) -> None:
        for dim in self.shape:
            if isinstance(dim, int) and dim < 0:
                raise ShapeError(f"negative dimension in [{','.join(map(str, self.shape))}]")
        # As in NumPy, an axis of size 0 does not make the others any smaller.
        if prod(d for d in self.shape if isinstance(d, int) and d) * self.dtype.bytes > _MAX_BYTES:
            raise ShapeError(f"{self} has more bytes than can be addressed: {_MAX_BYTES}")

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def bind(self, sizes: Mapping[str, int]) -> TensorType:
        """This type with the named sizes replaced by numbers."""
        return replace(self, shape=tuple(bind_dim(d, sizes) for d in self.shape))

    @property
    def image(self) -> TensorType:
        """This type for one image, every named size being 1."""
        return self.bind({dim.name: 1 for dim in self.shape if isinstance(dim, Sym)})

    def with_layout(self, layout: Layout) -> TensorType:
        """This type in another layout."""
        return replace(self, layout=layout)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as numbers. Raises `ShapeError` if a dimension is symbolic."""
        if not all(isinstance(d, int) for d in self.shape):
            raise ShapeError(f"{self} has a symbolic size where a number is needed")
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def elements(self) -> int:
        """Number of logical elements; all dimensions must be numbers."""
        return prod(self.dims)

    @property
    def physical(self) -> tuple[int, ...]:
        """The dimensions as they lie in memory: blocked and with the halo."""
        dims = self.dims
        if self.layout.is_plain:
            return dims
        n, c, h, w = dims
        top, left, bottom, right = self.layout.halo
        rows, columns, block = h + top + bottom, w + left + right, self.layout.block
        if block == 1:
            return (n, c, rows, columns)
        return (n, -(-c // block), rows, columns, block)

    @property
    def physical_elements(self) -> int:
        """Number of elements that the tensor takes in memory."""
        return prod(self.physical)

    @property
    def physical_bytes(self) -> int:
        """Memory that the tensor takes."""
        return self.physical_elements * self.dtype.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(d) for d in self.shape)}]{self.layout}"
