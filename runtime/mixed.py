"""Running a model of which a part has no native code: those nodes run in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Graph, Node, Region
from cnnc.ir.op import Array
from cnnc.runtime.artifact import Manifest
from cnnc.runtime.executable import GROUPS, ROUND, Executable, Prepare, Workspace


class MixedExecutable(Executable):
    """An `Executable` that goes image by image through native steps and nodes in NumPy.

    Args:
        manifest, weights, threads, prepare: as for `Executable`.
        graph: the planned graph with its memory plan; of its constants only those that nodes in
            NumPy read are needed.
        steps: in order, the addresses of native functions and the nodes between them.
    """

    can_copy: ClassVar[bool] = False

    def __init__(
        self,
        manifest: Manifest,
        weights: Array,
        graph: Graph,
        steps: Sequence[int | Node],
        threads: int,
        prepare: Prepare,
    ) -> None:
        super().__init__(
            manifest, weights, [s for s in steps if isinstance(s, int)], threads, prepare
        )
        self._graph = graph.bind({symbol: 1 for symbol in graph.symbols})
        self._mixed = tuple(steps)
        self._batched = [
            bool(tensor.shape) and not isinstance(tensor.shape[0], int)
            for tensor in (*manifest.inputs, *manifest.outputs)
        ]

    def _execute(
        self, space: Workspace, images: int, inputs: list[Array], outputs: list[Array]
    ) -> None:
        for image in range(images):
            arrays = [
                array[image : image + 1] if batched else array
                for array, batched in zip(inputs + outputs, self._batched, strict=True)
            ]
            space.point(1, arrays)
            free: dict[str, Array] = {}
            native = iter(space.steps)
            for step in self._mixed:
                if isinstance(step, int):
                    next(native)()
                else:
                    self._evaluate(step, space, arrays, free)
            for i, (_, value) in enumerate(self._graph.outputs):
                if value in free:
                    outputs[i] = free[value].copy()
            space.context[ROUND] += 1
            space.context[GROUPS] += 1

    def _evaluate(
        self, node: Node, space: Workspace, arrays: list[Array], free: dict[str, Array]
    ) -> None:
        """Runs a node in NumPy. Results without a place, whose size it tells, go to `free`."""
        operands = [
            free[name] if name in free else self._view(name, space, arrays)
            for name in node.operands
        ]
        with np.errstate(all="ignore"):
            values = node.op.evaluate(*operands)
        values = values if isinstance(values, tuple) else (values,)
        for name, value in zip(node.results, values, strict=True):
            if name in self._graph.places:
                self._view(name, space, arrays)[...] = value
            else:
                free[name] = np.asarray(value)

    def _view(self, name: str, space: Workspace, arrays: list[Array]) -> Array:
        if name in self._graph.constants:
            return self._graph.constants[name]
        place, type = self._graph.places[name], self._graph.types[name]
        if place.region is Region.ARENA:
            count = type.elements * type.dtype.bytes
            part = space.memory[place.offset : place.offset + count]
            return part.view(type.dtype.numpy).reshape(type.dims)
        index = place.offset
        if place.region is Region.OUTPUT:
            index += len(self._graph.inputs)
        return arrays[index].reshape(type.dims)
