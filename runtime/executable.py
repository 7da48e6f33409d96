"""Running compiled code on NumPy arrays: working memory, the call, threads.

An `Executable` may be called by any number of Python threads at once: each call takes a workspace
of its own from a pool. With `out` given, and in the steady state, a call allocates nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cnnc.ir.calling import STEP_LINE, Slot
from cnnc.ir.location import Diagnostic, InputError
from cnnc.ir.types import Sym, TensorType
from cnnc.runtime.artifact import Manifest
from cnnc.runtime.inputs import check_inputs
from cnnc.runtime.memory import address, aligned_empty, packed

if TYPE_CHECKING:
    from cnnc.ir.op import Array

# As plain numbers: a call of a small network takes microseconds, in which members of an enum show.
ARENA, WEIGHTS, SCRATCH, IMAGES, PROFILE, COUNTERS, ROUND, GROUPS, ARRAYS = map(int, Slot)

_FITS = 64  # different shapes that an executable remembers
_COPIED_BYTES = 8192  # of arrays in a call: to copy so much is faster than to ask where it is

Prepare = Callable[[int, int], Callable[[], None]]
"""`prepare(function, context)()` calls the function, given by its address, on all threads."""


_Kind = tuple[tuple[int, ...], np.dtype[np.generic]]  # of an array


@dataclass(frozen=True, slots=True)
class _Fit:
    """What a call with inputs of certain shapes amounts to."""

    images: int
    inputs: tuple[_Kind, ...]
    results: tuple[_Kind, ...]
    copied: bool  # whether the code works on arrays of the workspace, not on the caller's


# All that the checks of inputs look at: of each array its type, its shape and its elements' type.
_Kinds = tuple[type | tuple[int, ...] | np.dtype[np.generic], ...]


class Workspace:
    """Arena, scratch, counters, context and steps of one call at a time.

    While its context is set up for calls of a `fit`, `inputs` and `results` are what they work on.
    """

    def __init__(
        self,
        manifest: Manifest,
        weights: Array,
        threads: int,
        steps: Sequence[int],
        prepare: Prepare,
    ) -> None:
        self.memory = aligned_empty(manifest.arena_bytes)
        self.scratch = aligned_empty(manifest.scratch_bytes * threads)
        self.counters = aligned_empty(len(manifest.nodes) * (threads + 1) * STEP_LINE)
        self.counters[...] = 0
        self.context = (ctypes.c_uint64 * (ARRAYS + len(manifest.inputs) + len(manifest.outputs)))()
        self.context[ARENA] = self.memory.ctypes.data
        self.context[WEIGHTS] = weights.ctypes.data
        self.context[SCRATCH] = self.scratch.ctypes.data
        self.context[COUNTERS] = self.counters.ctypes.data
        where = ctypes.addressof(self.context)
        self.steps = [prepare(step, where) for step in steps]
        self.fit: _Fit | None = None
        self.inputs: list[Array] = []
        self.results: list[Array] = []

    def point(self, images: int, arrays: Iterable[Array]) -> None:
        """Has the next run work on these inputs and outputs."""
        self.fit = None
        context, place = self.context, ARRAYS
        context[IMAGES] = images
        for array in arrays:
            context[place] = address(array)
            place += 1

    def suit(self, fit: _Fit) -> None:
        """Has the next runs work on arrays of its own."""
        self.inputs = [_aligned(*kind) for kind in fit.inputs]
        self.results = [_aligned(*kind) for kind in fit.results]
        self.point(fit.images, self.inputs + self.results)
        self.fit = fit


def _aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """A new array that starts on a cache line."""
    return aligned_empty(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def _no_mapping(what: str, given: object, names: Iterable[str]) -> Diagnostic:
    known = ", ".join(f'"{name}": array' for name in names)
    message = f"`{what}` is a {type(given).__name__}, not arrays by name"
    return Diagnostic(message, help=f"say {{{known}}}")


def _sized(type: TensorType) -> TensorType:
    """The type, sizes that are known at run time only being 0 for now."""
    return type.bind({dim.name: 0 for dim in type.shape if isinstance(dim, Sym)})


class Executable:
    """Loaded code with its weights, ready to run.

    `can_copy` says whether a call runs native steps only, which may work on copies of its arrays.

    Args:
        manifest: what the code expects.
        weights: the packed weights, which the code reads.
        steps: the addresses of the functions to call, in order.
        threads: how many threads `run` uses.
        prepare: gives what calls a function on these threads.
    """

    can_copy: ClassVar[bool] = True

    def __init__(
        self,
        manifest: Manifest,
        weights: Array,
        steps: Sequence[int],
        threads: int,
        prepare: Prepare,
    ) -> None:
        self.manifest, self.weights, self.steps = manifest, weights, tuple(steps)
        self.threads = threads
        self._prepare = prepare
        self._inputs = {tensor.name: tensor.type for tensor in manifest.inputs}
        self._outputs = {tensor.name: tensor.type for tensor in manifest.outputs}
        self._input_names, self._output_names = self._inputs.keys(), tuple(self._outputs)
        known = {d.name for type in self._inputs.values() for d in type.shape if isinstance(d, Sym)}
        self._unsized = {
            name
            for name, type in self._outputs.items()
            if any(isinstance(d, Sym) and d.name not in known for d in type.shape)
        }
        self._fits: dict[_Kinds, _Fit] = {}
        self._pool: list[Workspace] = []

    def run(
        self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Output name -> array.

        Args:
            inputs: input name -> array of the input's shape and element type.
            out: output name -> C-contiguous array that takes the result; others are made.
        Raises:
            InputError: names, shapes or element types that do not fit; all are listed.
        """
        self.check_names(inputs)
        arrays = []
        for name in self._inputs:
            arrays.append(inputs[name])
        results = self.call(arrays, None if out is None else self._given(out))
        if len(results) == 1:
            return {self._output_names[0]: results[0]}
        return dict(zip(self._output_names, results, strict=True))

    def check_names(self, inputs: Mapping[str, Array]) -> None:
        """Raises `InputError`, listing all problems, unless just the model's inputs are given."""
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            raise InputError(_no_mapping("inputs", inputs, self._inputs))
        if inputs.keys() != self._input_names:
            check_inputs(self._inputs, inputs)

    def _given(self, out: Mapping[str, Array]) -> list[Array | None]:
        """For each output the array that the caller has for it."""
        if not isinstance(out, Mapping):
            raise InputError(_no_mapping("out", out, self._outputs))
        unknown = [name for name in out if name not in self._outputs]
        if unknown:
            known = ", ".join(f"`{n}`" for n in self._outputs)
            raise InputError(f"no output is called `{unknown[0]}`; the outputs are {known}")
        return [out.get(name) for name in self._outputs]

    def call(
        self,
        inputs: Sequence[Array],
        out: Sequence[Array | None] | None = None,
        cycles: Array | None = None,
    ) -> list[Array]:
        """The outputs, in the manifest's order.

        Args:
            inputs: the inputs, in the manifest's order.
            out: for each output an array that takes it, or None.
            cycles: uint64[nodes + 1], gets the processor's cycles spent in each node, for all
                images, added to it; the last element is for the code's own use.
        Raises:
            InputError: as for `run`.
        """
        # A small network takes microseconds: what is written here shows in its time. So there are
        # loops, which take half the time of `zip` and comprehensions, and few calls.
        kinds: _Kinds = ()
        try:
            for array in inputs:
                kinds += (type(array), array.shape, array.dtype)
            fit = self._fits.get(kinds) or self._fit(inputs, kinds)
        except AttributeError:  # not an array
            fit = self._fit(inputs, ())
        if not fit.copied or cycles is not None:
            return self._call_in_place(fit, inputs, out, cycles)
        results = [] if out is None else self._results(fit, inputs, out)
        space = self._workspace()
        if space.fit is not fit:
            space.suit(fit)
        mine, i = space.inputs, 0
        for array in inputs:
            mine[i][...] = array
            i += 1
        for step in space.steps:
            step()
        if self.threads > 1:
            self._count(space, fit.images)
        if out is None:
            for array in space.results:
                results.append(array.copy())
        else:
            i = 0
            for array in space.results:
                results[i][...] = array
                i += 1
        self._pool.append(space)
        return results

    def _call_in_place(
        self,
        fit: _Fit,
        inputs: Sequence[Array],
        out: Sequence[Array | None] | None,
        cycles: Array | None,
    ) -> list[Array]:
        """As `call`, on the caller's inputs and on the arrays that he gets."""
        arrays = []
        for array in inputs:
            arrays.append(array if array.flags.carray else packed(array))
        results: list[Array] = []
        if out is None:
            for shape, dtype in fit.results:
                results.append(np.empty(shape, dtype))
        else:
            results = self._results(fit, arrays, out)
        if fit.images:
            space = self._workspace()
            if cycles is not None:
                space.context[PROFILE] = address(cycles)
            self._execute(space, fit.images, arrays, results)
            space.context[PROFILE] = 0
            self._pool.append(space)  # not after an error, which leaves its counters in disorder
        return results

    def _workspace(self) -> Workspace:
        """One that no call uses, no longer in the pool."""
        try:
            return self._pool.pop()
        except IndexError:
            return Workspace(self.manifest, self.weights, self.threads, self.steps, self._prepare)

    def _fit(self, inputs: Sequence[Array], kinds: _Kinds) -> _Fit:
        """Checks the inputs in full, and remembers their shapes."""
        sizes = check_inputs(self._inputs, dict(zip(self._inputs, inputs, strict=True)))
        images = next(iter(sizes.values()), 1)  # the batch is the only symbol left
        types = [_sized(type.bind(sizes)) for type in self._outputs.values()]
        taken = tuple((array.shape, array.dtype) for array in inputs)
        given = tuple((type.dims, type.dtype.numpy) for type in types)
        moved = sum(prod(shape) * dtype.itemsize for shape, dtype in taken + given)
        fit = _Fit(images, taken, given, self.can_copy and 0 < images and moved <= _COPIED_BYTES)
        if len(self._fits) >= _FITS:
            self._fits.clear()
        self._fits[kinds] = fit
        return fit

    def _results(
        self, fit: _Fit, inputs: Sequence[Array], out: Sequence[Array | None]
    ) -> list[Array]:
        """The arrays of `out`, checked, and new ones where it has none."""
        results: list[Array] = []
        for shape, dtype in fit.results:
            given, name = out[len(results)], self._output_names[len(results)]
            if given is None:
                results.append(np.empty(shape, dtype))
                continue
            if name in self._unsized:
                raise InputError(f"out `{name}` has a size that is known after the run only")
            if not isinstance(given, np.ndarray):
                raise InputError(f"out `{name}` is a {given.__class__.__name__}, not a NumPy array")
            if given.shape != shape or given.dtype != dtype:
                raise InputError(
                    f"out `{name}` must be {dtype} of shape {list(shape)}, "
                    f"got {given.dtype} of shape {list(given.shape)}"
                )
            if not given.flags.carray:
                raise InputError(
                    Diagnostic(
                        f"out `{name}` must be C-contiguous, aligned and writable",
                        help=f"make it with np.empty(shape, np.{dtype})",
                    )
                )
            for others in (inputs, results):
                for other in others:
                    if np.may_share_memory(given, other):
                        message = f"out `{name}` shares memory with an input or another output"
                        raise InputError(message)
            results.append(given)
        return results

    def _execute(
        self, space: Workspace, images: int, inputs: list[Array], outputs: list[Array]
    ) -> None:
        space.point(images, inputs + outputs)
        for step in space.steps:
            step()
        if self.threads > 1:
            self._count(space, images)

    def _count(self, space: Workspace, images: int) -> None:
        """Counts a run, where threads share out its steps: see `share` in the schedule."""
        space.context[ROUND] += images
        groups, rest = divmod(images, self.manifest.group)
        space.context[GROUPS] += groups + (rest if rest < self.manifest.least else 1)
