"""Running compiled code on NumPy arrays: working memory, the call, threads.

An `Executable` may be called by any number of Python threads at once: each call takes a workspace
of its own from a pool. With `out` given, and in the steady state, a call allocates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnnc.ir.graph import Graph, Node, Place, Region
from cnnc.ir.location import Diagnostic, InputError
from cnnc.ir.op import Array
from cnnc.ir.types import TensorType
from cnnc.runtime.inputs import check_inputs

LINE = 64  # bytes; arena, weights and scratch start on a cache line
HEADER = 7  # words of the context before the arrays' addresses
STEP_LINE = 128  # bytes of a step's counter and of each thread's share


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of the schedule: native code at an address, or one node in NumPy."""

    address: int = 0
    node: Node | None = None


class _Workspace:
    """Arena, scratch, counters and context of one call at a time."""

    def __init__(
        self, arena_bytes: int, scratch_bytes: int, counter_bytes: int, words: int
    ) -> None:
        self.memory = aligned_empty(arena_bytes)
        self.scratch = aligned_empty(scratch_bytes)
        self.counters = aligned_empty(counter_bytes)
        self.counters[...] = 0
        self.context = np.zeros(words, np.uint64)
        self.address = int(self.context.ctypes.data)


def aligned_empty(size: int) -> Array:
    """`size` bytes, undefined, that start on a cache line, with one line to spare behind them."""
    raw = np.empty(size + 2 * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]


class Executable:
    """A planned graph with its code and weights, ready to run.

    Args:
        graph: the planned graph with its memory plan; of its constants only those that nodes in
            NumPy read are needed.
        steps: the schedule.
        weights: the packed weights, which the code reads.
        scratch_bytes: private memory of each thread.
        threads: how many threads `run` uses.
        run: `run(function, context)` calls the function on all threads (see `codegen.team`).
    """

    def __init__(
        self,
        graph: Graph,
        steps: Sequence[Step],
        weights: Array,
        scratch_bytes: int,
        threads: int,
        run: Callable[[int, int], None],
    ) -> None:
        self.graph, self.steps, self.weights = graph, tuple(steps), weights
        self.scratch_bytes, self.threads = scratch_bytes * threads, threads
        self._run = run
        self._inputs = {name: graph.types[name] for name in graph.inputs}
        self._outputs = {public: graph.types[value] for public, value in graph.outputs}
        self._native = all(step.node is None for step in self.steps)
        self._pool: list[_Workspace] = []
        self._words = HEADER + len(self._inputs) + len(self._outputs)

    def run(
        self,
        inputs: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        cycles: Array | None = None,
    ) -> dict[str, Array]:
        """Output name -> array.

        Args:
            inputs: input name -> array of the input's shape and element type.
            out: output name -> C-contiguous array that takes the result; others are made.
            cycles: uint64[nodes + 1], takes the processor's cycle count after each node and, last,
                at the start (of the last image).
        Raises:
            InputError: names, shapes or element types that do not fit; all are listed.
        """
        sizes = check_inputs(self._inputs, inputs)
        arrays = [np.ascontiguousarray(inputs[name]) for name in self._inputs]
        results = {name: self._result(name, sizes, out) for name in self._outputs}
        if out:
            self._check_out(out, arrays)
        images = next(iter(sizes.values()), 1)  # the batch is the only symbol left
        if images:
            space = self._pool.pop() if self._pool else self._workspace()
            try:
                self._execute(space, images, arrays, list(results.values()), cycles)
            finally:
                self._pool.append(space)
        return results

    def _workspace(self) -> _Workspace:
        counters = len(self.graph.nodes) * (self.threads + 1) * STEP_LINE
        return _Workspace(self.graph.arena_bytes, self.scratch_bytes, counters, self._words)

    def _result(
        self, name: str, sizes: Mapping[str, int], out: Mapping[str, Array] | None
    ) -> Array:
        type = self._outputs[name].bind(sizes)
        if out is None or name not in out:
            return np.empty(type.dims, type.dtype.numpy)
        given = out[name]
        if given.shape != type.dims or given.dtype != type.dtype.numpy:
            raise InputError(
                f"out `{name}` must be {type}, got {given.dtype} of shape {list(given.shape)}"
            )
        if not given.flags.c_contiguous or not given.flags.writeable:
            raise InputError(
                Diagnostic(
                    f"out `{name}` must be C-contiguous and writable",
                    help="make it with np.empty(shape, np.float32)",
                )
            )
        return given

    def _check_out(self, out: Mapping[str, Array], arrays: Sequence[Array]) -> None:
        unknown = [name for name in out if name not in self._outputs]
        if unknown:
            known = ", ".join(f"`{n}`" for n in self._outputs)
            raise InputError(f"no output is called `{unknown[0]}`; the outputs are {known}")
        taken = [*arrays]
        for name, array in out.items():
            if any(np.may_share_memory(array, other) for other in taken):
                raise InputError(f"out `{name}` shares memory with an input or another output")
            taken.append(array)

    def _execute(
        self,
        space: _Workspace,
        images: int,
        inputs: list[Array],
        outputs: list[Array],
        cycles: Array | None,
    ) -> None:
        context = space.context
        context[0] = space.memory.ctypes.data
        context[1] = self.weights.ctypes.data
        context[2] = space.scratch.ctypes.data
        context[4] = 0 if cycles is None else cycles.ctypes.data
        context[5] = space.counters.ctypes.data
        if self._native:
            context[3] = images
            for i, array in enumerate((*inputs, *outputs)):
                context[HEADER + i] = array.ctypes.data
            for step in self.steps:
                self._run(step.address, space.address)
            context[6] += np.uint64(images)
            return
        for image in range(images):
            self._one_image(space, image, inputs, outputs)

    def _one_image(
        self, space: _Workspace, image: int, inputs: list[Array], outputs: list[Array]
    ) -> None:
        context = space.context
        context[3] = 1
        names = [*self.graph.inputs, *(value for _, value in self.graph.outputs)]
        slices = [
            array if self._is_fixed(name) else array[image : image + 1]
            for name, array in zip(names, (*inputs, *outputs), strict=True)
        ]
        for i, array in enumerate(slices):
            context[HEADER + i] = array.ctypes.data
        for step in self.steps:
            if step.node is None:
                self._run(step.address, space.address)
            else:
                self._evaluate(step.node, space, slices)
        context[6] += np.uint64(1)

    def _is_fixed(self, name: str) -> bool:
        shape = self.graph.types[name].shape
        return not shape or isinstance(shape[0], int)

    def _evaluate(self, node: Node, space: _Workspace, arrays: list[Array]) -> None:
        operands = [self._view(name, space, arrays) for name in node.operands]
        values = node.op.evaluate(*operands)
        values = values if isinstance(values, tuple) else (values,)
        for name, value in zip(node.results, values, strict=True):
            self._view(name, space, arrays)[...] = value

    def _view(self, name: str, space: _Workspace, arrays: list[Array]) -> Array:
        if name in self.graph.constants:
            return self.graph.constants[name]
        place: Place = self.graph.places[name]
        type: TensorType = self.graph.types[name].bind({s: 1 for s in self.graph.symbols})
        if place.region is Region.ARENA:
            count = type.elements * type.dtype.bytes
            part = space.memory[place.offset : place.offset + count]
            return part.view(type.dtype.numpy).reshape(type.dims)
        index = place.offset
        if place.region is Region.OUTPUT:
            index += len(self.graph.inputs)
        return arrays[index].reshape(type.dims)
