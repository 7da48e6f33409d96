"""Places of extremes, the largest elements, running sums."""

from __future__ import annotations

from cnnc.frontends.onnx.call import Call
from cnnc.ir.ops import ArgMax, ArgMin, CumSum, TopK


def arg_max(call: Call) -> None:
    """ArgMax."""
    _arg_extreme(call, ArgMax)


def arg_min(call: Call) -> None:
    """ArgMin."""
    _arg_extreme(call, ArgMin)


def _arg_extreme(call: Call, kind: type[ArgMax | ArgMin]) -> None:
    op = kind(
        axis=call.whole("axis", 0),
        keep=call.flag("keepdims", True),
        last=call.flag("select_last_index"),
    )
    call.result(op, call.operand(0))


def cum_sum(call: Call) -> None:
    """CumSum."""
    op = CumSum(
        axis=int(call.number(1)), exclusive=call.flag("exclusive"), reverse=call.flag("reverse")
    )
    call.result(op, call.operand(0))


def top_k(call: Call) -> None:
    """TopK: k is an input since opset 10. What need not be sorted may be so."""
    call.ignore("sorted")
    k = int(call.number(1)) if call.opset >= 10 else call.whole("k")
    op = TopK(axis=call.whole("axis", -1), k=k, least=not call.flag("largest", True))
    call.results(op, call.operand(0))
