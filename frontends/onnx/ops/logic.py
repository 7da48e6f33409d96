"""Changes of element type, and operators around truth values."""

from __future__ import annotations

from collections.abc import Callable

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.tensors import element_name, element_type, type_called
from cnnc.ir.op import Op
from cnnc.ir.ops import BitShift, Cast, Direction, IsInf
from cnnc.ir.types import DType

_HELP = "export the model with float32, or with whole numbers that NumPy has"


def cast(call: Call) -> None:
    """Cast between numbers and truth values."""
    number = cast_target(call)
    call.ignore("saturate", "round_mode")  # they are for 8-bit floats, which are refused
    dtype = element_type(number)
    if dtype is None:
        raise Unsupported(f"a cast to {element_name(number)}", _HELP)
    _cast(call, DType(dtype.name))


def cast_target(call: Call) -> int:
    """The type that is cast to, whose name the attribute was before opset 6."""
    if call.opset >= 6:
        return call.whole("to")
    return type_called(call.word("to"))


def cast_like(call: Call) -> None:
    """CastLike: to the type of the second input."""
    call.ignore("saturate", "round_mode")
    _cast(call, call.type(call.operand(1)).dtype)


def _cast(call: Call, to: DType) -> None:
    x = call.operand(0)
    if call.type(x).dtype is to:
        return call.alias(x)
    return call.result(Cast(to=to), x)


def swapped(op: Op) -> Callable[[Call], None]:
    """The op of two inputs the other way round."""
    return lambda call: call.result(op, *reversed(call.pair()))


def is_inf(call: Call) -> None:
    """IsInf, of either sign or both."""
    negative = call.flag("detect_negative", True)
    positive = call.flag("detect_positive", True)
    call.result(IsInf(negative=negative, positive=positive), call.operand(0))


def bit_shift(call: Call) -> None:
    """BitShift, to the left or to the right."""
    direction = call.word("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise Unsupported(f"direction={direction} is not known, only LEFT and RIGHT")
    op = BitShift(direction=Direction[direction])
    call.result(op, call.operand(0), call.operand(1))
