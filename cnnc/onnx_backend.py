"""ONNX's own interface to what runs models, `onnx.backend.base`.

    import cnnc.onnx_backend as backend

    outputs = backend.prepare(model).run([x, y])

A model is compiled when it is first run, for the shapes of that run. Inputs that decide on shapes,
such as Reshape's second, are compiled in with their values: no other inputs are. Each combination
of such shapes and values is compiled once; the last `MAX_KEPT` of them are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from cnnc.driver import compile
from cnnc.frontends.onnx import ValuesNeeded, load_onnx
from cnnc.ir.location import CnncError, Diagnostic, InputError, OptionError
from cnnc.ir.op import Array
from cnnc.model import CompiledModel

MAX_KEPT = 16


class Prepared(BackendRep):
    """A model that is compiled for the shapes that come, and for the values that decide on shapes.

    Args:
        model: the ONNX model.
        options: keyword arguments of `cnnc.compile`.
    """

    def __init__(self, model: ModelProto, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        initializers = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [i.name for i in model.graph.input if i.name not in initializers]
        self._outputs = [o.name for o in model.graph.output]
        self._needed: set[str] = set()  # inputs whose values must be compiled in
        self._compiled: OrderedDict[Any, CompiledModel] = OrderedDict()
        self._lock = Lock()

    @property
    def needed(self) -> frozenset[str]:
        """The inputs of which the last run's values were compiled in."""
        return frozenset(self._needed)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in order, as a tuple that also takes their names.

        Args:
            inputs: an array for each input in order, or input name -> array, or the only array.
            **kwargs: ONNX's interface allows others; there are none.

        Raises:
            InputError: the inputs are not those of the model.
            CnncError: the model cannot be compiled for these inputs.
        """
        if kwargs:
            raise OptionError(f"there is no option `{min(kwargs)}`")
        arrays = self._named(inputs)
        model = self._model_for(arrays)
        results = model.run({info.name: arrays[info.name] for info in model.inputs})
        values = [results[name] for name in self._outputs]
        return tuple(namedtupledict("Outputs", self._outputs)(*values))

    def compiled(self, inputs: Any) -> CompiledModel:
        """The model that runs these inputs; arguments and errors as for `run`."""
        return self._model_for(self._named(inputs))

    def _named(self, inputs: Any) -> dict[str, Array]:
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            listed = _listed(inputs)
            if len(listed) != len(self._inputs):
                raise InputError(f"the model has {len(self._inputs)} inputs, got {len(listed)}")
            given = dict(zip(self._inputs, listed, strict=True))
        if given.keys() != set(self._inputs):
            names = ", ".join(f"`{name}`" for name in self._inputs)
            raise InputError(
                Diagnostic("the names are not those of the inputs", help=f"the inputs are {names}")
            )
        try:
            return {name: np.asarray(value) for name, value in given.items()}
        except ValueError:
            raise InputError("an input is no array, which is all that a model can take") from None

    def _model_for(self, arrays: Mapping[str, Array]) -> CompiledModel:
        with self._lock:
            while True:
                bound = {name: arrays[name] for name in self._inputs if name in self._needed}
                key = (
                    tuple((a.shape, a.dtype.str) for a in arrays.values()),
                    tuple((name, a.tobytes()) for name, a in bound.items()),
                )
                if key in self._compiled:
                    self._compiled.move_to_end(key)
                    return self._compiled[key]
                try:
                    self._compiled[key] = self._compile(arrays, bound)
                except ValuesNeeded as error:
                    self._needed |= set(error.inputs)
                while len(self._compiled) > MAX_KEPT:
                    self._compiled.popitem(last=False)

    def _compile(self, arrays: Mapping[str, Array], bound: Mapping[str, Array]) -> CompiledModel:
        shapes = {name: array.shape for name, array in arrays.items()}
        return compile(load_onnx(self._model, shapes=shapes, values=bound), **self._options)


class CnncBackend(Backend):
    """cnnc behind ONNX's interface; see `onnx.backend.base.Backend`."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be compiled, as far as can be told without inputs."""
        try:
            cls.prepare(model, device, **kwargs)
        except CnncError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """The model, ready to run.

        Args:
            model: the ONNX model.
            device: `CPU`, the only one.
            **kwargs: options of `cnnc.compile`.

        Raises:
            OptionError: it is no `ModelProto`, or there is no such device.
            CnncError: the model cannot be compiled, whatever its inputs are.
        """
        if not isinstance(model, ModelProto):
            help = "onnx.load reads a file; cnnc.compile takes its path"
            what = f"a model is a ModelProto here, not `{_kind(model)}`"
            raise OptionError(Diagnostic(what, help=help))
        if not cls.supports_device(device):
            raise OptionError(Diagnostic(f"there is no device `{device}`", help="use `CPU`"))
        try:
            load_onnx(model)
        except ValuesNeeded:
            pass  # the run gives them
        except CnncError:
            if _is_fixed(model):
                raise
        return Prepared(model, kwargs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one node of the standard operators.

        Args:
            node: the node.
            inputs: an array for each input that it has, in order, or the only array.
            device: `CPU`, the only one.
            outputs_info: not needed.
            **kwargs: `opset_version`, else the newest; the rest are options of `cnnc.compile`.

        Raises:
            InputError: there are more or fewer arrays than inputs.
            OptionError: it is no node, or an option is unknown.
        """
        if not isinstance(node, NodeProto):
            help = "make one: onnx.helper.make_node(...)"
            raise OptionError(Diagnostic(f"a node is a NodeProto, not `{_kind(node)}`", help=help))
        opsets = [helper.make_opsetid(node.domain, kwargs.pop("opset_version", _newest()))]
        names = [name for name in dict.fromkeys(node.input) if name]
        listed = _listed(inputs)
        if len(listed) != len(names):
            what = f"{node.op_type} has {len(names)} different inputs here, got {len(listed)}"
            raise InputError(Diagnostic(what, help="give an array for each name, in order"))
        arrays = dict(zip(names, map(np.asarray, listed), strict=True))
        graph = helper.make_graph(
            [node],
            node.name or node.op_type,
            [_value_info(name, array) for name, array in arrays.items()],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=opsets)
        return cls.run_model(model, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is the CPU."""
        return device.split(":")[0] == "CPU"


def _listed(inputs: Any) -> list[Any]:
    """The arrays in order; an array that stands alone is the only one."""
    if isinstance(inputs, np.ndarray):
        return [inputs]
    if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes):
        what = f"`inputs` is a {_kind(inputs)}, not arrays in order"
        raise InputError(Diagnostic(what, help="say [array, ...]"))
    return list(inputs)


def _kind(thing: object) -> str:
    return type(thing).__name__


def _newest() -> int:
    from onnx.defs import onnx_opset_version

    return onnx_opset_version()


def _value_info(name: str, array: Array) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)


def _is_fixed(model: ModelProto) -> bool:
    """Whether the tensors that it takes have shapes of numbers: a run adds nothing to them."""
    types = [info.type for info in model.graph.input]
    tensors = [type.tensor_type for type in types if type.HasField("tensor_type")]
    return all(
        tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
        for tensor in tensors
    )


is_compatible = CnncBackend.is_compatible
prepare = CnncBackend.prepare
run_model = CnncBackend.run_model
run_node = CnncBackend.run_node
supports_device = CnncBackend.supports_device
