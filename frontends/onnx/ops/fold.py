"""Nodes of which every input is known, computed at import.

This is mostly arithmetic with shapes, where sizes may be symbolic: arrays of type `object` hold
`int`s and `Sym`s, and `Sym`'s own operators do the work. What cannot be decided without a number
raises `Unsupported`, as does what would take much more memory than its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.logic import cast_target
from cnnc.frontends.onnx.tensors import element_name, element_type
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array
from cnnc.ir.types import Dim, Sym

Folder = Callable[[Call], Array]

MAX_ELEMENTS = 1 << 24  # of a result that is larger than its operands
_MAX_FILLED = 1 << 28  # of one number repeated, which takes no memory
_WRONG = (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError, MemoryError)


def guarded(compute: Callable[..., Any]) -> Callable[..., Array]:
    """The function, with NumPy's complaints about operands that do not fit as `Unsupported`."""

    def call(*args: Any) -> Array:
        try:
            return np.asarray(compute(*args))
        except ShapeError as error:
            first = error.diagnostics[0]
            raise Unsupported(first.message, first.help) from None
        except _WRONG as error:
            raise Unsupported(f"cannot be computed: {str(error)[:200]}") from None

    return call


def limit(shape: Sequence[int], *operands: Array) -> None:
    """Raises `Unsupported` for a result that is large, and larger than the operands together."""
    if prod(shape) > max(MAX_ELEMENTS, sum(a.size for a in operands)):
        raise Unsupported(f"computes a constant of absurd shape {list(shape)[:8]}")


def size_array(dims: Sequence[Dim]) -> Array:
    """Sizes as a one-dimensional array."""
    array = np.empty(len(dims), object)
    array[:] = dims
    return array


# -- shapes ----------------------------------------------------------------------------------------


def shape(call: Call) -> Array:
    """Shape, with `start` and `end` since opset 15."""
    start, end = call.whole("start", 0), call.whole("end", 1 << 30)
    return size_array(call.shape(0)[start:end])


def size(call: Call) -> Array:
    """Size: the number of elements."""
    dims = call.shape(0)
    symbols = [d for d in dims if isinstance(d, Sym)]
    if len(symbols) > 1:
        raise Unsupported("the product of several symbolic sizes", fix_size(_names(symbols)))
    total: Dim = prod(d for d in dims if isinstance(d, int))
    array = np.empty((), object)
    array[()] = symbols[0] * total if symbols else total
    return array


def constant(call: Call) -> Array:
    """Constant, whose attribute may be one of several."""
    if call.has("value"):
        return call.tensor("value")
    if call.has("value_float"):
        return np.asarray(call.real("value_float"), np.float32)
    if call.has("value_int"):
        return np.asarray(call.wide("value_int"), np.int64)
    if call.has("value_floats"):
        return np.asarray(call.reals("value_floats"), np.float32)
    if call.has("value_ints"):
        return np.asarray(call.wholes("value_ints", bounded=False), np.int64)
    raise Unsupported("its value is no dense tensor of numbers")


def constant_of_shape(call: Call) -> Array:
    """ConstantOfShape: one number, which is not repeated in memory."""
    value = call.tensor("value", np.zeros(1, np.float32))
    dims = call.integers(0)
    if value.size != 1 or min(dims, default=0) < 0 or len(dims) > 32:
        raise Unsupported(f"cannot fill shape {list(dims)[:8]} with {value.size} numbers")
    if prod(dims) > _MAX_FILLED:
        raise Unsupported(f"computes a constant of absurd shape {list(dims)[:8]}")
    return guarded(np.broadcast_to)(value.reshape(()), dims)


def fill_range(call: Call) -> Array:
    """Range."""
    start, end, step = (call.numbers(i) for i in range(3))
    low, high, by = (call.number(i) for i in range(3))
    if not by or not np.isfinite([low, high, by]).all():
        raise Unsupported("a range without end")
    limit([max(ceil((high - low) / by), 0)])
    return guarded(np.arange)(start.reshape(()), end.reshape(()), step.reshape(()), start.dtype)


# -- moving elements -------------------------------------------------------------------------------


def gather(call: Call) -> Array:
    """Gather along one axis."""
    x, indices = call.known(0), call.numbers(1)
    axis = call.whole("axis", 0)
    if not -x.ndim <= axis < x.ndim or not np.issubdtype(indices.dtype, np.integer):
        raise Unsupported(f"axis {axis} of shape {list(x.shape)} with {indices.dtype} indices")
    limit([x.size // max(x.shape[axis], 1), indices.size], x)
    return guarded(np.take)(x, indices, axis)


def slice_(call: Call) -> Array:
    """Slice; starts and the rest are attributes before opset 10."""
    x = call.known(0)
    starts, ends = call.either("starts", 1, 10), call.either("ends", 2, 10)
    axes = call.either("axes", 3, 10)
    steps = call.integers(4) if call.opset >= 10 and call.given(4) else None
    if starts is None or ends is None:
        raise Unsupported("starts and ends are missing")
    places = range(len(starts)) if axes is None else axes
    return guarded(_slice)(x, starts, ends, places, steps or (1,) * len(starts))


def _slice(
    x: Array, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Array:
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return np.asarray(x[tuple(index)])


def concat(call: Call) -> Array:
    """Concat."""
    arrays = [call.known(i) for i in range(len(call.inputs))]
    axis = call.whole("axis")
    return guarded(np.concatenate)(arrays, axis)


def squeeze(call: Call) -> Array:
    """Squeeze; axes are an input since opset 13."""
    axes = call.either("axes", 1, 13)
    return guarded(np.squeeze)(call.known(0), None if axes is None else tuple(axes))


def unsqueeze(call: Call) -> Array:
    """Unsqueeze; axes are an input since opset 13."""
    axes = call.either("axes", 1, 13)
    if axes is None:
        raise Unsupported("axes are missing")
    return guarded(np.expand_dims)(call.known(0), tuple(axes))


def reshape(call: Call) -> Array:
    """Reshape; 0 copies a size, unless `allowzero`."""
    x, dims = call.known(0), list(call.integers(1))
    if not call.flag("allowzero"):
        copied = [x.shape[i] if d == 0 and i < x.ndim else d for i, d in enumerate(dims)]
        dims = copied
    return guarded(np.reshape)(x, tuple(dims))


def transpose(call: Call) -> Array:
    """Transpose."""
    x = call.known(0)
    return guarded(np.transpose)(x, call.wholes("perm", range(x.ndim)[::-1]))


def flatten(call: Call) -> Array:
    """Flatten to two dimensions."""
    x, axis = call.known(0), call.whole("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise Unsupported(f"axis {axis} is not one of {x.ndim}")
    axis += x.ndim if axis < 0 else 0
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def expand(call: Call) -> Array:
    """Expand: the common shape of both under NumPy's rules, without a copy."""
    x, dims = call.known(0), call.integers(1)
    common = guarded(lambda: np.array(np.broadcast_shapes(x.shape, dims), np.int64))()
    if prod(common.tolist()) > _MAX_FILLED:
        raise Unsupported(f"computes a constant of absurd shape {list(dims)[:8]}")
    return guarded(np.broadcast_to)(x, tuple(common.tolist()))


def identity(call: Call) -> Array:
    """The operand."""
    return call.known(0)


def cast(call: Call) -> Array:
    """Cast between numbers; symbolic sizes stay what they are."""
    number = cast_target(call)
    dtype = element_type(number)
    if dtype is None:
        raise Unsupported(f"a cast to {element_name(number)}")
    return _cast(call, dtype)


def cast_like(call: Call) -> Array:
    """CastLike, for which the second input's type is enough."""
    type = call.input_type(1)
    if type is None:
        raise Unsupported("a cast to a type that is not supported")
    return _cast(call, type.dtype.numpy)


def _cast(call: Call, dtype: np.dtype[Any]) -> Array:
    call.ignore("saturate", "round_mode")  # they are for 8-bit floats, which are refused
    x = call.known(0)
    if x.dtype == object:
        if dtype == np.bool_:
            raise Unsupported("a cast of symbolic sizes to truth values")
        return x
    return x.astype(dtype)


# -- arithmetic ------------------------------------------------------------------------------------


def computed(compute: Callable[..., Any], symbolic: bool = False) -> Folder:
    """An elementwise function of all inputs; `symbolic` says that it takes `Sym`s, too."""

    def fold(call: Call) -> Array:
        count = len(call.inputs)
        arrays = [call.known(i) if symbolic else call.numbers(i) for i in range(count)]
        shapes = [a.shape for a in arrays]
        common = guarded(lambda: np.array(np.broadcast_shapes(*shapes), np.int64))()
        limit(common.tolist(), *arrays)
        if any(a.dtype == object for a in arrays):
            arrays = [_exact(a) for a in arrays]
        elif len({a.dtype for a in arrays}) > 1:
            raise Unsupported(f"element types differ: {', '.join(str(a.dtype) for a in arrays)}")
        return guarded(compute)(*arrays)

    return fold


def _exact(array: Array) -> Array:
    """Numbers to compute with `Sym`s: whole ones, whatever their type."""
    if array.dtype == object:
        return array
    whole = guarded(lambda: array.astype(np.int64))()
    if not (whole == array).all():
        raise Unsupported("computes a fraction of a symbolic size")
    return whole.astype(object)


def subtract(a: Array, b: Array) -> Any:
    """a - b, where `int - Sym` is not defined but `Sym * -1` is."""
    return a + b * -1 if object in (a.dtype, b.dtype) else np.subtract(a, b)


def divide(a: Array, b: Array) -> Any:
    """a / b: of whole numbers towards zero, of symbolic sizes exactly."""
    if object in (a.dtype, b.dtype):
        return np.frompyfunc(_divide, 2, 1)(a, b)
    if not np.issubdtype(a.dtype, np.integer):
        return np.divide(a, b)
    if not b.all():
        raise ZeroDivisionError("division by zero")
    quotient = np.abs(a) // np.abs(b)
    return (quotient * np.sign(a) * np.sign(b)).astype(a.dtype)


def _divide(a: Dim, b: Dim) -> Dim:
    if a == b:
        return 1
    if not isinstance(b, int) or (isinstance(a, int) and a % b):
        raise ShapeError(f"{a} / {b} cannot be told exactly")
    return a // b


def modulo(call: Call) -> Array:
    """Mod: the sign is the divisor's, or the dividend's with `fmod`."""
    how = np.fmod if call.flag("fmod") else np.mod
    if np.issubdtype(call.numbers(1).dtype, np.integer) and not call.numbers(1).all():
        raise Unsupported("division by zero")
    return computed(how)(call)


def equal(a: Array, b: Array) -> Any:
    """a == b; a size and a negative number differ, whatever the size."""
    if object in (a.dtype, b.dtype):
        return np.asarray(np.frompyfunc(_equal, 2, 1)(a, b), np.bool_)
    return np.equal(a, b)


def _equal(a: Dim, b: Dim) -> bool:
    if a == b:
        return True
    if isinstance(a, int) and isinstance(b, int):
        return False
    if any(isinstance(d, int) and d < 0 for d in (a, b)):
        return False
    raise ShapeError(f"whether {a} equals {b} depends on the size")


def where(call: Call) -> Array:
    """Where; both sides may hold symbolic sizes."""
    condition, a, b = call.numbers(0), call.known(1), call.known(2)
    if condition.dtype != np.bool_:
        raise Unsupported(f"a condition of {condition.dtype}")
    shapes = (condition.shape, a.shape, b.shape)
    common = guarded(lambda: np.array(np.broadcast_shapes(*shapes), np.int64))()
    limit(common.tolist(), a, b)
    if object in (a.dtype, b.dtype):
        a, b = _exact(a), _exact(b)
    return guarded(np.where)(condition, a, b)


def reduced(compute: Callable[..., Any], since: int, symbolic: bool = False) -> Folder:
    """A reduction along axes, which are an input since that opset."""

    def fold(call: Call) -> Array:
        x = call.known(0) if symbolic else call.numbers(0)
        axes = call.either("axes", 1, since)
        keep = call.flag("keepdims", True)
        if call.flag("noop_with_empty_axes") and not axes:
            return x
        along = tuple(axes) if axes else None
        return guarded(lambda: compute(x, axis=along, keepdims=keep))().astype(x.dtype)

    return fold


def _names(symbols: Sequence[Sym]) -> list[str]:
    return sorted({s.name for s in symbols})
