"""Nonsense for well-formed ONNX models, and what must become of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from cnnc.frontends.onnx import load_onnx
from cnnc.frontends.onnx.ops import CONVERTERS
from cnnc.ir.location import CnncError
from cnnc.ir.verify import check

EXTREME = (0, 1, -1, 2, 3, 100, 65536, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))


def survives(data: bytes) -> None:
    """A graph that keeps the laws, or an error that is meant for people; and soon."""
    start = time.process_time()
    try:
        check(load_onnx(data))
    except CnncError as error:
        assert str(error)
    assert time.process_time() - start < 5


def _attribute(rng: random.Random, proto: Any) -> None:
    attributes = [a for n in proto.graph.node for a in n.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(EXTREME)
    attribute.i, attribute.f = rng.choice(EXTREME), rng.choice([0.0, 1e30, float("nan")])


def _drop(rng: random.Random, proto: Any) -> None:
    some = rng.choice(proto.graph.node)
    for field in (some.attribute, some.input):
        if field and rng.random() < 0.5:
            field.pop()


def _rewire(rng: random.Random, proto: Any) -> None:
    names = [name for n in proto.graph.node for name in (*n.input, *n.output)] + [""]
    readers = [n for n in proto.graph.node if n.input]
    if not readers:
        return
    some = rng.choice(readers)
    some.input[rng.randrange(len(some.input))] = rng.choice(names)


def _kind(rng: random.Random, proto: Any) -> None:
    kinds = [*(n.op_type for n in proto.graph.node), *rng.sample(sorted(CONVERTERS), 5)]
    rng.choice(proto.graph.node).op_type = rng.choice(kinds)


def _tensor(rng: random.Random, proto: Any) -> None:
    if not proto.graph.initializer:
        return
    tensor = rng.choice(proto.graph.initializer)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(EXTREME)
    tensor.data_type = rng.choice([tensor.data_type] * 5 + [0, 7, 8, 16, 99])


def _size(rng: random.Random, proto: Any) -> None:
    dims = [d for info in proto.graph.input for d in info.type.tensor_type.shape.dim]
    if not dims:
        return
    dim = rng.choice(dims)
    if rng.random() < 0.5:
        dim.dim_value = rng.choice(EXTREME)
    else:
        dim.dim_param = rng.choice(["H", "a b", "H%16", "", "ü" * 99])


def _opset(rng: random.Random, proto: Any) -> None:
    proto.opset_import[0].version = rng.choice([0, 1, 6, 7, 9, 11, 13, 18, 23, 9999, -1])


MUTATIONS: tuple[Callable[[random.Random, Any], None], ...] = (
    _attribute,
    _drop,
    _rewire,
    _kind,
    _tensor,
    _size,
    _opset,
)


def mutate(rng: random.Random, proto: Any) -> None:
    """Changes the model in a few places."""
    for mutation in rng.choices(MUTATIONS, k=rng.choice([1, 1, 2, 3])):
        mutation(rng, proto)
