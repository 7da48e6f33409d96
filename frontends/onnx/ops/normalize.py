"""Normalisation by mean and variance, or by a norm, of the elements themselves."""

from __future__ import annotations

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.ir.op import Step
from cnnc.ir.ops import Add, Div, Expand, How, Max, Mul, Normalize, Reduction, Sqrt, Sub
from cnnc.ir.types import known

SCALED = (Step(Mul()), Step(Add()))  # an epilogue of scale and shift


def per_channel(call: Call, index: int, x: str) -> str:
    """An input with a number for each channel of x, as what broadcasts to x."""
    value, type = call.operand(index), call.type(x)
    if type.rank < 2 or call.type(value).shape != type.shape[1:2]:
        raise Unsupported(f"input {index} is {call.type(value)}, one number a channel of {type}")
    return call.add(call.reshape(value, (*type.shape[1:2], *(1,) * (type.rank - 2))), value)


def instance_normalization(call: Call) -> None:
    """InstanceNormalization: each map by itself."""
    x = call.operand(0)
    axes = tuple(range(2, call.type(x).rank))
    op = Normalize(axes=axes, epsilon=call.real("epsilon", 1e-5), epilogue=SCALED)
    call.ignore("consumed_inputs")
    call.result(op, x, *(per_channel(call, index, x) for index in (1, 2)))


def group_normalization(call: Call) -> None:
    """GroupNormalization: scale and shift for each channel, before opset 21 for each group."""
    call.ignore("stash_type")
    x = call.operand(0)
    rank, groups = call.type(x).rank, call.whole("num_groups")
    axes = tuple(range(1, rank))
    op = Normalize(axes=axes, epsilon=call.real("epsilon", 1e-5), groups=groups, epilogue=SCALED)
    each = per_channel if call.opset >= 21 else _per_group
    call.result(op, x, *(each(call, index, x) for index in (1, 2)))


def _per_group(call: Call, index: int, x: str) -> str:
    """An input with a number for each group of x's channels, as what broadcasts to x."""
    value, type, groups = call.operand(index), call.type(x), call.whole("num_groups")
    channels = known(type.shape[1]) if type.rank > 1 else None
    if call.type(value).shape != (groups,) or not channels or not groups:
        raise Unsupported(f"input {index} is {call.type(value)}, one number a group of {type}")
    value = call.add(call.reshape(value, (groups, 1)), value)
    value = call.add(Expand(shape=(groups, channels // groups)), value)
    return call.add(call.reshape(value, (channels, *(1,) * (type.rank - 2))), value)


def layer_normalization(call: Call) -> None:
    """LayerNormalization over the last axes, and the statistics that it used."""
    call.ignore("stash_type")
    x, axes, epsilon = *_last_axes(call), call.real("epsilon", 1e-5)
    given = call.given(2)
    op = Normalize(axes=axes, epsilon=epsilon, epilogue=SCALED if given else SCALED[:1])
    call.result(op, x, *(call.operand(index) for index in range(1, 3 if given else 2)))
    if not any(call.outputs[1:]):
        return
    mean = call.add(Reduction(how=How.MEAN, axes=axes, keep=True), x)
    off = call.add(Sub(), x, mean)
    variance = call.add(Reduction(how=How.MEAN, axes=axes, keep=True), call.add(Mul(), off, off))
    root = call.add(Sqrt(), call.add(Add(), variance, call.scalar("epsilon", epsilon, x)))
    for index, name in enumerate(call.outputs[1:], 1):
        if name and index == 1:
            call.alias(mean, output=1)
        elif name:
            call.result(Div(), call.scalar("one", 1.0, x), root, output=index)


def rms_normalization(call: Call) -> None:
    """RMSNormalization over the last axes."""
    call.ignore("stash_type")
    x, axes = _last_axes(call)
    epsilon = call.real("epsilon", 1e-5)
    op = Normalize(axes=axes, epsilon=epsilon, centred=False, epilogue=SCALED[:1])
    call.result(op, x, call.operand(1))


def _last_axes(call: Call) -> tuple[str, tuple[int, ...]]:
    """(the operand, its axes from `axis` on)."""
    x = call.operand(0)
    rank, axis = call.type(x).rank, call.whole("axis", -1)
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of {call.type(x)}")
    return x, tuple(range(axis % rank, rank))


def mean_variance_normalization(call: Call) -> None:
    """MeanVarianceNormalization, whose definition adds 1e-9 to the root of the variance."""
    axes = call.wholes("axes", (0, 2, 3))
    call.result(Normalize(axes=axes, epsilon=1e-18), call.operand(0))


def lp_normalization(call: Call) -> None:
    """LpNormalization: nothing but zeros stays so."""
    how = {1: How.L1, 2: How.L2}.get(call.whole("p", 2))
    if how is None:
        raise Unsupported(f"p={call.whole('p')}, only 1 and 2")
    x = call.operand(0)
    norm = call.add(Reduction(how=how, axes=(call.whole("axis", -1),), keep=True), x)
    least = call.scalar("least", float(np.finfo(np.float32).tiny), x)
    call.result(Div(), x, call.add(Max(), norm, least))
