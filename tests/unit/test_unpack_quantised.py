"""What is quantised and dequantised at once has the same bits as floats."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.ir.graph import Builder
from cnnc.ir.ops import Dequantize, Quantize
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.runtime.reference import evaluate

TYPES = (DType.U8, DType.I8, DType.U16, DType.I16)
SCALES = st.floats(2.0**-20, 2.0**20, width=32)


@settings(max_examples=25)
@given(st.data(), st.sampled_from(TYPES), SCALES, SCALES)
def test_the_same_bits(data: st.DataObject, to: DType, scale: float, other: float) -> None:
    bounds = np.iinfo(to.value)
    zero = data.draw(st.sampled_from([0, bounds.min, bounds.max, bounds.max // 3]))
    builder = Builder("q")
    x = builder.input("x", TensorType((Sym("N"), 40)))
    point = builder.constant("zero", np.asarray(zero, to.numpy))
    first, second = (
        builder.constant(name, np.asarray(value, np.float32))
        for name, value in (("s", scale), ("t", other))
    )
    made = builder.add(Quantize(to=to), [x, first, point])
    builder.output("y", builder.add(Dequantize(), [made, second, point]))
    graph = builder.finish()
    rng = np.random.default_rng(int(scale))
    span = data.draw(st.sampled_from([0.1, 3.0, 1.0 * bounds.max]))
    array = (span * scale * rng.standard_normal((2, 40))).astype(np.float32)
    halves = np.arange(-2, 3, dtype=np.float32) + np.float32(0.5)  # ties
    array[0, :7] = [*(halves * np.float32(scale)), np.inf, -np.inf]
    model = cnnc.compile(graph, cache=False)
    assert model.is_native
    wanted = evaluate(graph, {"x": array})["y"]
    np.testing.assert_array_equal(model.run({"x": array})["y"], wanted)
