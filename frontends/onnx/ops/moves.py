"""Operators that move elements: shapes, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.maps import border, finish_maps, maps
from cnnc.frontends.onnx.tensors import element_name, element_type
from cnnc.ir.op import product
from cnnc.ir.ops import Concat, Flatten, Pad, Reshape
from cnnc.ir.types import Dim


def identity(call: Call) -> None:
    """The operand itself."""
    call.alias(call.operand(0))


def cast(call: Call) -> None:
    """Cast to the type that the operand has."""
    x, number = call.operand(0), call.whole("to")
    call.ignore("saturate", "round_mode")  # they are for 8-bit floats, which are refused
    if element_type(number) != call.type(x).dtype.numpy:
        raise Unsupported(f"{call.type(x).dtype} to {element_name(number)}")
    call.alias(x)


def reshape(call: Call) -> None:
    """Reshape to a known shape, whose sizes may be symbolic."""
    x, dims = call.operand(0), call.sizes(1)
    type = call.type(x)
    if call.flag("allowzero") and 0 in dims:
        return call.result(call.reshape(x, dims), x)
    if all(isinstance(d, int) for d in dims):
        return call.result(Reshape(shape=tuple(d for d in dims if isinstance(d, int))), x)
    whole: list[Dim] = []
    for i, dim in enumerate(dims):
        if dim == 0 and i >= type.rank:
            raise Unsupported(f"0 at place {i} copies a size that {type} does not have")
        whole.append(type.shape[i] if dim == 0 else dim)
    if -1 in whole:
        # Sizes that stay in their places cancel, so that no symbols need be multiplied.
        rest, given = list(type.shape), [d for d in whole if d != -1]
        for dim in [d for d in given if d in rest]:
            if dim in rest and dim in given:
                rest.remove(dim)
                given.remove(dim)
        total, fixed = product(rest), product(given)
        if not isinstance(fixed, int) or not fixed:
            raise Unsupported(f"cannot tell how {type} is reshaped to {_shown(dims)}")
        whole[whole.index(-1)] = total // fixed
    return call.result(call.reshape(x, whole), x)


def flatten(call: Call) -> None:
    """Flatten at an axis."""
    x, axis = call.operand(0), call.whole("axis", 1)
    type = call.type(x)
    if not -type.rank <= axis <= type.rank:
        raise Unsupported(f"axis {axis} of {type}")
    axis += type.rank if axis < 0 else 0
    if axis == 1:
        return call.result(Flatten(), x)
    dims = (product(type.shape[:axis]), product(type.shape[axis:]))
    return call.result(call.reshape(x, dims), x)


def squeeze(call: Call) -> None:
    """Squeeze; axes are an input since opset 13."""
    x = call.operand(0)
    shape = call.type(x).shape
    axes = call.either("axes", 1, 13)
    if axes is None:
        gone = {i for i, dim in enumerate(shape) if dim == 1}
    else:
        gone = set(normalised(axes, len(shape)))
    if any(shape[i] != 1 for i in gone):
        raise Unsupported(f"axes {sorted(gone)} of {call.type(x)}, which are not all 1")
    dims = [dim for i, dim in enumerate(shape) if i not in gone]
    call.result(call.reshape(x, dims), x)


def unsqueeze(call: Call) -> None:
    """Unsqueeze; axes are an input since opset 13."""
    x = call.operand(0)
    axes = call.either("axes", 1, 13)
    if axes is None:
        raise Unsupported("axes are missing")
    rank = call.type(x).rank + len(axes)
    new, rest = set(normalised(axes, rank)), iter(call.type(x).shape)
    call.result(call.reshape(x, [1 if i in new else next(rest) for i in range(rank)]), x)


def normalised(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from 0. Raises `Unsupported` for one that is not there, or there twice."""
    found = [axis + rank if axis < 0 else axis for axis in axes]
    if len(set(found)) < len(found) or not all(0 <= axis < rank for axis in found):
        raise Unsupported(f"axes {list(axes)} of rank {rank}")
    return found


def transpose(call: Call) -> None:
    """Transpose where only axes of size 1 change places: the elements stay in order."""
    x = call.operand(0)
    shape = call.type(x).shape
    perm = call.wholes("perm", range(len(shape))[::-1])
    if sorted(perm) != list(range(len(shape))):
        raise Unsupported(f"perm={list(perm)} for rank {len(shape)}")
    moving = [axis for axis in perm if shape[axis] != 1]
    if moving != sorted(moving):
        raise Unsupported(f"perm={list(perm)} of {call.type(x)}")
    if list(perm) == sorted(perm):
        return call.alias(x)
    return call.result(call.reshape(x, [shape[axis] for axis in perm]), x)


def concat(call: Call) -> None:
    """Concat."""
    operands = call.operands()
    axis, rank = call.whole("axis"), call.type(operands[0]).rank
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of {call.type(operands[0])}")
    call.result(Concat(axis=axis + rank if axis < 0 else axis), *operands)


def pad(call: Call) -> None:
    """Pad of maps with a constant; pads are an input since opset 11."""
    call.want("mode", "constant", "only constant borders are supported")
    pads = call.either("pads", 1, 11)
    if call.opset >= 11:
        value = call.number(2) if call.given(2) else 0.0
    else:
        value = call.real("value", 0.0)
    rank = len(call.shape(0))
    if call.given(3):
        axes = normalised(call.integers(3), rank)
        full = [0] * (2 * rank)
        if pads is None or len(pads) != 2 * len(axes):
            raise Unsupported(f"{len(pads or ())} pads for the axes {axes}")
        for i, axis in enumerate(axes):
            full[axis], full[axis + rank] = pads[i], pads[i + len(axes)]
        pads = tuple(full)
    if pads is None or len(pads) != 2 * rank:
        raise Unsupported(f"pads={list(pads or ())} for rank {rank}")
    if not any(pads):
        return call.alias(call.operand(0))
    if any(pads[:2]) or any(pads[rank : rank + 2]):
        raise Unsupported(f"pads={list(pads)}", "only height and width are padded")
    x, rank = maps(call, 0)
    op = Pad(pad=border((*pads[2:rank], *pads[rank + 2 :]), rank), value=value)
    return finish_maps(call, rank, op, x)


def _shown(dims: Sequence[Dim]) -> str:
    return f"[{','.join(map(str, dims))}]"
