"""ONNX's own test cases for backends, as the `onnx` package brings them along."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import cnnc.onnx_backend as backend
from cnnc.ir.op import Array
from cnnc.model import CompiledModel

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Case:
    """One model with its inputs and the outputs that it must give."""

    name: str
    kind: str
    test: Any  # onnx.backend.test.case.test_case.TestCase

    @property
    def id(self) -> str:
        """What the case is called in `skips.toml`: its name, which other kinds may have, too."""
        return self.name if self.kind == "node" else f"{self.kind}/{self.name}"

    @property
    def path(self) -> Path | None:
        """The model's file; those of single nodes have none."""
        if self.test.url:
            return Path(onnx.__file__).parent.parent / str(self.test.url)
        return Path(self.test.model_dir) / "model.onnx" if self.test.model_dir else None

    @cached_property
    def model(self) -> ModelProto:
        """The model."""
        return onnx.load(str(self.path)) if self.path else self.test.model

    @cached_property
    def operators(self) -> frozenset[str]:
        """The operators of all nodes, those of other domains with these: `ai.onnx.ml.Scaler`."""
        return frozenset(_operator(node) for node in _nodes(self.model.graph.node))

    @cached_property
    def types(self) -> frozenset[str]:
        """The types of what goes in and out and of what is cast to, in lower case."""
        infos = [*self.model.graph.input, *self.model.graph.output]
        casts = {
            _type_name(attribute.i)
            for node in _nodes(self.model.graph.node)
            for attribute in node.attribute
            if attribute.name in ("to", "dtype", "output_dtype")
        }
        return frozenset(casts.union(*(_types(info.type) for info in infos)))

    def data(self) -> Iterator[tuple[Sequence[Any], Sequence[Any]]]:
        """(inputs, wanted outputs), each in the model's order."""
        if self.test.data_sets is not None:
            for inputs, outputs in self.test.data_sets:
                yield list(map(_array, inputs)), list(map(_array, outputs))
        elif self.test.url:
            assert self.path is not None
            graph = self.model.graph
            constants = {tensor.name for tensor in graph.initializer}
            inputs = [i for i in graph.input if i.name not in constants]
            wanted = self.path.with_name(f"{self.path.stem}_output_0.pb")
            yield list(map(Runner.generate_dummy_data, inputs)), [_read(wanted, graph.output[0])]
        else:
            for folder in sorted(Path(self.test.model_dir).glob("test_data_set_*")):
                yield (
                    _read_all(folder, "input", self.model.graph.input),
                    _read_all(folder, "output", self.model.graph.output),
                )


def load_cases(*kinds: str) -> list[Case]:
    """All cases of these kinds, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some compute NaN on purpose
        tests = [(kind, test) for kind in kinds for test in load_model_tests(kind=kind)]
    cases = [Case(test.name, kind, test) for kind, test in tests]
    return sorted(cases, key=lambda case: (KINDS.index(case.kind), case.name))


def run(case: Case) -> CompiledModel:
    """Runs a case and returns the model as it was compiled last.

    Raises:
        CnncError: the model cannot be compiled or does not take the inputs.
        AssertionError: an output is not what it must be.
    """
    prepared = backend.prepare(case.model)
    for inputs, wanted in case.data():
        found = prepared.run(inputs)
        assert len(found) == len(wanted)
        for array, reference in zip(found, wanted, strict=True):
            assert (array.shape, array.dtype) == (reference.shape, reference.dtype)
            np.testing.assert_allclose(array, reference, case.test.rtol, case.test.atol)
    return prepared.compiled(inputs)


def _nodes(nodes: Sequence[Any]) -> Iterator[Any]:
    """Nodes, and those inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _operator(node: Any) -> str:
    return node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"


def _types(type: Any) -> set[str]:
    kind = type.WhichOneof("value") or "nothing"
    if kind in ("sequence_type", "optional_type"):
        return {kind.removesuffix("_type")} | _types(getattr(type, kind).elem_type)
    return {_type_name(type.tensor_type.elem_type) if kind == "tensor_type" else kind}


def _type_name(number: int) -> str:
    return str(TensorProto.DataType.Name(number)).lower()


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _read_all(folder: Path, what: str, infos: Sequence[Any]) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return [_read(folder / f"{what}_{i}.pb", infos[i]) for i in range(count)]


def _read(path: Path, info: Any) -> Array:
    """The value in a file; an empty array for what is no tensor, of which no case is supported."""
    if not TypeProto.HasField(info.type, "tensor_type"):
        return np.zeros(0)
    return np.asarray(numpy_helper.to_array(onnx.load_tensor(str(path))))
