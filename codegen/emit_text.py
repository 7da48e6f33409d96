"""Types and constants as LLVM writes them."""

from __future__ import annotations

import struct
from functools import cache

from cnnc.ir.types import DType

ALIGN = {"float": 4, "i8": 1, "i32": 4, "i64": 8}
SUFFIX = {"float": "f32", "i8": "i8", "i32": "i32", "i64": "i64"}
# What else than float32 can be in memory: its LLVM type, and what makes float32 of it.
ELEMENTS = {
    DType.BOOL: ("i8", "uitofp"),
    DType.U8: ("i8", "uitofp"),
    DType.I8: ("i8", "sitofp"),
    DType.I32: ("i32", "sitofp"),
    DType.I64: ("i64", "sitofp"),
}


@cache
def vector_type(lanes: int) -> str:
    """The LLVM type of a value."""
    return memory_type("float", lanes)


@cache
def memory_type(element: str, lanes: int) -> str:
    """The LLVM type of `lanes` elements."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def float_text(number: float) -> str:
    """A float32 constant as LLVM reads it exactly."""
    try:
        rounded = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        rounded = float("inf") if number > 0 else float("-inf")
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


def zero_text(lanes: int) -> str:
    """The value that is zero in all lanes."""
    return "0.0" if lanes == 1 else "zeroinitializer"


def mask_text(count: int, lanes: int) -> str:
    """The mask of the first `count` lanes."""
    return "<" + ", ".join("i1 true" if i < count else "i1 false" for i in range(lanes)) + ">"
