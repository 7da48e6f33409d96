"""Operators of the domain com.microsoft that ONNX Runtime fuses when it saves optimised models."""

from __future__ import annotations

from collections.abc import Sequence

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.elementwise import sigmoid_line, swish_of
from cnnc.frontends.onnx.ops.linear import conv, gemm
from cnnc.frontends.onnx.ops.normalize import SCALED
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Add,
    Clip,
    Gelu,
    LeakyRelu,
    MatMul,
    Mul,
    Normalize,
    Relu,
    Sigmoid,
    Tanh,
    Transpose,
)

_PLAIN: dict[str, Op] = {"Relu": Relu(), "Sigmoid": Sigmoid(), "Tanh": Tanh()}


def fused_conv(call: Call) -> None:
    """FusedConv: a convolution, what is added to it, an activation."""
    kind = call.word("activation", "")
    given = call.reals("activation_params") if call.has("activation_params") else ()
    y = call.part(conv, call.inputs[:3])
    if call.given(3):
        y = call.add(Add(), y, call.operand(3))
    call.alias(_activated(call, y, kind, given))


def fused_gemm(call: Call) -> None:
    """FusedGemm: Gemm and an activation."""
    kind = call.word("activation", "")
    names = [f"activation_{greek}" for greek in ("alpha", "beta", "gamma")]
    given = [call.real(name) for name in names if call.has(name)]
    call.alias(_activated(call, call.part(gemm, call.inputs), kind, given))


def _activated(call: Call, x: str, kind: str, given: Sequence[float]) -> str:
    """An activation with its parameters."""
    if not kind:
        return x
    if kind in _PLAIN:
        return call.add(_PLAIN[kind], x)
    if kind == "LeakyRelu" and len(given) >= 1:
        return call.add(LeakyRelu(alpha=given[0]), x)
    if kind == "Clip" and len(given) >= 2:
        return call.add(Clip(low=given[0], high=given[1]), x)
    if kind == "HardSigmoid" and len(given) >= 2:
        return sigmoid_line(call, x, given[0], given[1])
    raise Unsupported(f"activation={kind} with {len(given)} parameters is not supported")


def fused_matmul(call: Call) -> None:
    """FusedMatMul: alpha * A' @ B'; the first axis may come before the batch's."""
    operands = []
    for index, flag in enumerate(("transBatchA", "transBatchB")):
        x, rank = call.operand(index), len(call.shape(index))
        if rank < 2:
            raise Unsupported(f"input {index} has rank {rank}, less than 2")
        if call.flag(flag):
            x = call.add(Transpose(perm=(*range(1, rank - 1), 0, rank - 1)), x)
        operands.append(x)
    op = MatMul(transpose_a=call.flag("transA"), transpose_b=call.flag("transB"))
    alpha, y = call.real("alpha", 1.0), call.add(op, *operands)
    call.alias(y if alpha == 1 else call.add(Mul(), y, call.scalar("alpha", alpha, y)))


def bias_gelu(call: Call) -> None:
    """BiasGelu, and Gelu: exact."""
    call.result(Gelu(), _biased(call))


def fast_gelu(call: Call) -> None:
    """FastGelu: by tanh; its bias may be missing."""
    call.result(Gelu(tanh=True), _biased(call))


def _biased(call: Call) -> str:
    """Input 0, plus input 1 if it is there."""
    x = call.operand(0)
    return call.add(Add(), x, call.operand(1)) if call.given(1) else x


def quick_gelu(call: Call) -> None:
    """QuickGelu: x * sigmoid(alpha * x)."""
    swish_of(call, call.real("alpha", 1.702))


def skip_layer_normalization(call: Call) -> None:
    """SkipLayerNormalization: of x + skip + bias, which is output 3."""
    x = call.add(Add(), call.operand(0), call.operand(1))
    if call.given(4):
        x = call.add(Add(), x, call.operand(4))
    epilogue = SCALED if call.given(3) else SCALED[:1]
    op = Normalize(
        axes=(call.type(x).rank - 1,), epsilon=call.real("epsilon", 1e-5), epilogue=epilogue
    )
    call.result(op, x, *(call.operand(i) for i in (2, 3) if call.given(i)))
    if len(call.outputs) > 3 and call.outputs[3]:
        call.alias(x, output=3)
