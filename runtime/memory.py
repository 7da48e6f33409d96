"""Memory that native code reads and writes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from cnnc.ir.calling import LINE

if TYPE_CHECKING:
    from cnnc.ir.op import Array


def aligned_empty(size: int) -> Array:
    """`size` bytes, undefined, that start on a cache line, with one line to spare behind them."""
    raw = np.empty(size + 2 * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]


def give_back() -> None:
    """Returns to the system what was freed but is kept for later, where the C library can do it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in glibc
    if trim is not None:
        trim(ctypes.c_size_t(0))


@contextmanager
def uncollected() -> Iterator[None]:
    """Leaves cycles of garbage alone: a compilation makes next to none, among millions of objects
    that the search for them would go through again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def packed(array: Array) -> Array:
    """The array, or a copy of it, as the code reads it: aligned and C-contiguous."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def address(array: Array) -> int:
    """Where the elements of a C-contiguous array begin."""
    try:
        # Four times faster than `array.ctypes`.
        return _address(_from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it is empty or must not be written to
        return int(array.ctypes.data)


_address, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer
