"""ONNX's own cases with nonsense in them: a graph, or an error that is meant for people."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_conformance.suite import load_cases
from onnx_mutations import mutate, survives

_MOST_BYTES = 20_000  # of a model that is worth the time
_SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))]
_ROUNDS = 120  # of one seed


@pytest.fixture(scope="module")
def models() -> list[tuple[ModelProto, list[Any]]]:
    """The models of single nodes, each with inputs."""
    cases = [case for case in load_cases("node") if case.test.data_sets]
    small = [case for case in cases if case.model.ByteSize() < _MOST_BYTES]
    return [(case.model, list(case.test.data_sets[0][0])) for case in small]


def fixed(rng: random.Random, model: ModelProto, inputs: list[Any]) -> ModelProto:
    """A copy in which some inputs are initializers, so that more is computed at import."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for info, value in zip(model.graph.input, inputs, strict=False):
        if rng.random() < 0.6 and isinstance(value, np.ndarray | TensorProto):
            tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(value)
            copy.graph.initializer.add().CopyFrom(tensor)
            copy.graph.initializer[-1].name = info.name
    return copy


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, where cases compute NaN
@pytest.mark.parametrize("seed", _SEEDS)
def test_hostile_nodes(models: list[tuple[ModelProto, list[Any]]], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(_ROUNDS):
        proto = fixed(rng, *rng.choice(models))
        mutate(rng, proto)
        survives(proto.SerializeToString())
