"""A compiled model: call it with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc.ir.location import Diagnostic, InputError, OptionError
from cnnc.runtime.artifact import Artifact, Tensor, save
from cnnc.runtime.executable import Executable

if TYPE_CHECKING:
    from cnnc.ir.op import Array
    from cnnc.report import Memory, Report


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as the caller sees it; a symbolic size is its name."""

    name: str
    dtype: str  # NumPy's name, e.g. "float32"
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class CompiledModel:
    """A model in native code, made by `cnnc.compile`.

    Safe to call from several Python threads. `model(x)` takes the only input and gives the only
    output; `model.run({...})` works with names. `model.artifact` is the model as a value.
    """

    def __init__(
        self,
        artifact: Artifact,
        executable: Executable,
        threads: int,
        report: Callable[[], Report],
        code: object,
    ) -> None:
        self.artifact = artifact
        self._threads = threads
        self._executable = executable
        self._make_report = report
        self._report: Report | None = None
        self._code = code  # keeps the native code loaded
        self.inputs = tuple(_info(tensor) for tensor in artifact.manifest.inputs)
        self.outputs = tuple(_info(tensor) for tensor in artifact.manifest.outputs)
        self.tapped: Callable[[tuple[str, ...]], CompiledModel] | None = None
        self._taps: dict[tuple[str, ...], CompiledModel] = {}

    def __call__(self, *args: Array, out: Array | None = None, **named: Array) -> Any:
        """Runs the model: `m(x)`, `m(x, y)` in the order of `m.inputs`, or `m(image=x)`.

        Returns the output's array, or a tuple of them where the model has several.

        Raises:
            InputError: names, shapes or element types that do not fit.
        """
        if named or len(args) != len(self.inputs):
            args = self._in_order(args, named)
        if out is not None and len(self.outputs) > 1:
            raise InputError(
                Diagnostic(
                    f"`out=` takes one array, the model has {len(self.outputs)} outputs",
                    help="use model.run(inputs, out={name: array, ...})",
                )
            )
        results = self._executable.call(args, None if out is None else (out,))
        return results[0] if len(results) == 1 else tuple(results)

    def _in_order(self, args: Sequence[Array], named: Mapping[str, Array]) -> tuple[Array, ...]:
        if len(args) > len(self.inputs):
            raise InputError(f"the model has {len(self.inputs)} inputs, got {len(args)}")
        names = [info.name for info in self.inputs]
        given = dict(zip(names, args, strict=False))
        twice = given.keys() & named.keys()
        if twice:
            raise InputError(f"input `{min(twice)}` is given twice")
        given |= named
        self._executable.check_names(given)
        return tuple(given[name] for name in names)

    def run(
        self,
        inputs: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        taps: Sequence[str] = (),
    ) -> dict[str, Array]:
        """Output name -> array, for inputs by name.

        Args:
            inputs: input name -> array; shapes and element types as in `model.inputs`.
            out: output name -> C-contiguous array to write into; then nothing is allocated.
            taps: names of values inside the model to give as well, with `*` and `?` as wildcards.
                The model is compiled once more for them, when they are first asked for.
        Raises:
            InputError: names, shapes or element types that do not fit; all are listed.
            OptionError: a tap stands for nothing, or the model was not compiled from a file.
        """
        if type(taps) is not tuple:
            if isinstance(taps, str) or not isinstance(taps, Iterable):
                raise OptionError(Diagnostic("`taps` is a list of names", help=f'say ["{taps}"]'))
            taps = tuple(taps)
        model = self._with_taps(taps) if taps else self
        return model._executable.run(inputs, out)

    def _with_taps(self, taps: tuple[str, ...]) -> CompiledModel:
        if taps not in self._taps:
            if self.tapped is None:
                raise OptionError(
                    Diagnostic(
                        "this model cannot be compiled again: its source is not a file",
                        help="name the values when you compile it: "
                        f"cnnc.compile(..., taps={list(taps)})",
                    )
                )
            self._taps[taps] = self.tapped(taps)
        return self._taps[taps]

    def profile(self, inputs: Mapping[str, Array], repeats: int = 10) -> dict[str, float]:
        """Kernel name -> median seconds in it, over `repeats` runs of the whole model.

        Raises:
            InputError: names, shapes or element types that do not fit, or no repeats.
        """
        from time import perf_counter

        if not isinstance(repeats, int) or repeats < 1:
            raise InputError(f"`repeats` must be a whole number of at least 1, got {repeats!r}")
        names = self.artifact.manifest.nodes
        self._executable.check_names(inputs)
        arrays = [inputs[info.name] for info in self.inputs]
        samples = np.empty((repeats, len(names)))
        cycles = np.zeros(len(names) + 1, np.uint64)
        for i in range(repeats):
            cycles[:] = 0
            start = perf_counter()
            self._executable.call(arrays, cycles=cycles)
            seconds = perf_counter() - start
            spent = cycles[:-1].astype(np.float64)
            samples[i] = spent / max(spent.sum(), 1.0) * seconds
        return dict(zip(names, np.median(samples, axis=0).tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Writes the compiled model to a file, for `cnnc.load_compiled` on a machine like this.

        The file holds native code for the target and packed weights; loading it needs none of the
        compiler and takes milliseconds. By custom its name ends in `.cnnca`.

        Raises:
            CnncError: the file cannot be written, or a part of the model runs in NumPy.
        """
        save(path, self.artifact)

    @property
    def is_native(self) -> bool:
        """Whether all of it is native code: whether it can be saved."""
        return not self.artifact.manifest.foreign

    @property
    def memory(self) -> Memory:
        """What the model takes: weights, arena, scratch; `memory.peak` in bytes."""
        return self.report().memory

    @property
    def threads(self) -> int:
        """How many threads a call may use; what is too small to share out runs on one."""
        return self._threads

    def report(self) -> Report:
        """What the compiler did: passes, kernels, memory, time. `print` it, or take `.json()`."""
        if self._report is None:
            self._report = self._make_report()
        return self._report

    def __reduce__(self) -> tuple[Any, ...]:
        from cnnc.link import link  # which needs this module

        return link, (self.artifact, self.threads)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return (
            f"<cnnc model {self.artifact.manifest.model}({inputs}) -> ({outputs}); "
            f"{len(self.artifact.manifest.nodes)} kernels, {self.threads} threads, {self.memory}>"
        )


def _info(tensor: Tensor) -> TensorInfo:
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in tensor.shape)
    return TensorInfo(tensor.name, tensor.dtype.value, shape)
