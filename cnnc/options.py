"""What can be set for a compilation, checked where it comes in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnc.ir.location import Diagnostic, OptionError, suggest


class Options(BaseModel):
    """Options of `cnnc.compile`.

    Attributes:
        threads: how many threads run the model; None takes what the process may use.
        target: "native" or a preset such as "x86-64-v3"; others than the host's can be inspected
            but not run.
        passes: the pass pipeline as text, e.g. "default,-fuse-epilogue".
        exact: only algorithms that sum as the definition does.
        max_rel_err: the error that an inexact algorithm may make, relative to the output's range.
        strict: refuse a model of which a part would run in NumPy.
        sizes: numbers for symbolic sizes, e.g. {"H": 256}; the batch may stay symbolic.
        shapes: the same as all sizes of an input, by its name, e.g. {"image": (1, 3, 224, 224)}.
        parameters: values for the model's parameters, e.g. {"classes": 10}.
        tune: seconds to spend on measuring candidate kernels that were not measured on this
            processor before; what was measured then decides. 0 leaves all to the cost model.
        outputs: names of values inside the model that it shall give in place of its outputs; see
            `cnnc.taps` for what names can be.
        taps: names of values that it shall give beside its outputs.
        values: elements of inputs of an ONNX model that are compiled in, as shapes must be, e.g.
            {"shape": [1, -1]}; the compiled model does not take these inputs.
        cache: take a model that was compiled before from the cache, and keep this one there.
        cache_bytes: how large the cache may grow; what was not used for longest goes first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threads: int | None = Field(default=None, ge=1, le=1024)
    target: str = "native"
    passes: str = "default"
    exact: bool = False
    max_rel_err: float = Field(default=1e-4, gt=0)
    strict: bool = False
    sizes: dict[str, int] = Field(default_factory=dict)
    shapes: dict[str, Annotated[tuple[int, ...], Field(strict=False)]] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    tune: float = Field(default=0.0, ge=0, strict=False)
    outputs: tuple[str, ...] = Field(default=(), strict=False)
    taps: tuple[str, ...] = Field(default=(), strict=False)
    values: dict[str, Any] = Field(default_factory=dict)
    cache: bool = True
    cache_bytes: int = Field(default=2 * 10**9, ge=0)

    @staticmethod
    def of(**given: Any) -> Options:
        """Options from keyword arguments. Raises `OptionError` for unknown or unfit ones."""
        try:
            return Options(**given)
        except ValidationError as error:
            raise OptionError([_explain(problem) for problem in error.errors()]) from None


def _explain(problem: Any) -> Diagnostic:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        help = suggest(name, Options.model_fields)
        return Diagnostic(f"there is no option `{name}`", help=help)
    return Diagnostic(f"option `{name}`: {problem['msg']}, got {problem['input']!r}")
