"""Random ONNX networks in native code, against ONNX's own reference and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from onnx.reference import ReferenceEvaluator
from onnx_networks import Network, networks

import cnnc
from cnnc.ir.op import Array


def assert_agrees(network: Network, wanted: Sequence[Array]) -> None:
    """Native code gives these results, up to rounding on the scale of each."""
    model = cnnc.compile(network.proto, threads=2, cache=False)
    found = model.run(network.inputs)
    names = [output.name for output in network.proto.graph.output]
    assert list(found) == names
    for name, array in zip(names, wanted, strict=True):
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
        scale = np.abs(array[np.isfinite(array)]).max(initial=1e-2)
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=5e-4 * scale, err_msg=name)


# Where `onnx.reference` is wrong, and ONNX Runtime is of our opinion: LRN takes the batch for the
# channels, ConvTranspose fails with groups, pools of whole maps with one axis, and other pools take
# the second of `pads` for the bottom. Before opset 14 it trains in BatchNormalization; before opset
# 13 it takes Softmax for that of opset 13, and has not all of Upsample.
MISTAKEN = ("lrn", "conv_transpose", "global_pool", "pool")


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(oldest=14, without=MISTAKEN))
def test_reference(network: Network) -> None:
    found = ReferenceEvaluator(network.proto).run(None, network.inputs)
    assert_agrees(network, list(map(np.asarray, found)))


def by_onnxruntime(network: Network) -> list[Array]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        network.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, network.inputs))


@pytest.mark.parametrize(
    "count", [40, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_onnxruntime(count: int) -> None:
    pytest.importorskip("onnxruntime")

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(networks())
    def check(network: Network) -> None:
        assert_agrees(network, by_onnxruntime(network))

    check()
