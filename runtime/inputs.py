"""The arrays that a model is called with: checking them, and making some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cnnc.ir.location import Diagnostic, InputError
from cnnc.ir.types import Sym, TensorType

if TYPE_CHECKING:
    from cnnc.ir.op import Array

_SEED = 0


def check_inputs(types: Mapping[str, TensorType], inputs: Mapping[str, Array]) -> dict[str, int]:
    """The symbolic sizes that the arrays give, such as `{"N": 8}`.

    Args:
        types: what the model takes, by input name.
        inputs: the arrays, by input name.

    Raises:
        InputError: an input is missing or unknown, or an array has the wrong element type or
            shape; the error lists every problem.
    """
    sizes: dict[str, int] = {}
    if len(types) == len(inputs):
        for name, type in types.items():
            array = inputs.get(name)
            if not isinstance(array, np.ndarray) or not _fits(type, array, sizes):
                break
        else:
            return sizes
    raise InputError(_problems(types, inputs))


def random_inputs(types: Mapping[str, TensorType]) -> dict[str, Array]:
    """Seeded arrays for inputs whose sizes are numbers; the same at every call."""
    rng = np.random.default_rng(_SEED)
    return {name: _random(rng, type) for name, type in types.items()}


def _random(rng: np.random.Generator, type: TensorType) -> Array:
    """Normal for floats; small counts, which fit every type, for the others."""
    if np.issubdtype(type.dtype.numpy, np.floating):
        return rng.standard_normal(type.dims).astype(type.dtype.numpy)
    return rng.integers(0, 2, type.dims).astype(type.dtype.numpy)


def _fits(type: TensorType, array: Array, sizes: dict[str, int]) -> bool:
    if array.dtype != type.dtype.value or array.ndim != len(type.shape):
        return False
    for dim, size in zip(type.shape, array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                return False
        else:
            value = _solve(dim, size)
            if value is None or sizes.setdefault(dim.name, value) != value:
                return False
    return True


def _solve(dim: Sym, size: int) -> int | None:
    """The value of the named size that makes `dim` equal to `size`."""
    count, rest = divmod(size - dim.offset, dim.scale)
    return None if rest or count < 0 else count * dim.divisor


# -- what to say -----------------------------------------------------------------------------------


def _problems(types: Mapping[str, TensorType], inputs: Mapping[str, Array]) -> list[Diagnostic]:
    found = [
        Diagnostic(f"there is no input `{name}`", help=_advice(name, types))
        for name in inputs
        if name not in types
    ]
    given: dict[str, tuple[int, str]] = {}  # named size -> its value and the input it comes from
    for name, type in types.items():
        if name not in inputs:
            found.append(Diagnostic(f"input `{name}` is missing: it takes {type}"))
            continue
        array = inputs[name]
        if not isinstance(array, np.ndarray):
            found.append(
                Diagnostic(
                    f"input `{name}` is a {array.__class__.__name__}, not a NumPy array",
                    help=f"np.asarray(..., dtype=np.{type.dtype.value})",
                )
            )
            continue
        if array.dtype != type.dtype.numpy:
            found.append(
                Diagnostic(
                    f"input `{name}` holds {array.dtype}, the model takes {type.dtype.value}",
                    help=f"{name}.astype(np.{type.dtype.value})",
                )
            )
        found += _shape_problems(name, type, array, given)
    return found


def _advice(name: str, types: Mapping[str, TensorType]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(str(name), types, n=1)  # a caller may take anything for a name
    if near:
        return f"did you mean `{near[0]}`?"
    return f"the model takes {', '.join(f'`{n}`' for n in types) or 'no inputs'}"


def _shape_problems(
    name: str, type: TensorType, array: Array, given: dict[str, tuple[int, str]]
) -> Iterator[Diagnostic]:
    if array.ndim != type.rank or not _matches(type, array.shape):
        wrong = [
            f"dimension {axis} is {size}, not {dim}"
            for axis, (dim, size) in enumerate(zip(type.shape, array.shape, strict=False))
            if not _matches_dim(dim, size)
        ]
        if array.ndim != type.rank:
            wrong = [f"it has {array.ndim} dimensions, not {type.rank}"]
        shape = ",".join(str(size) for size in array.shape)
        yield Diagnostic(
            f"input `{name}` has shape [{shape}], the model takes {type}: {'; '.join(wrong)}",
            help=_reshaping(name, type, array),
        )
        return
    for dim, size in zip(type.shape, array.shape, strict=True):
        value = None if isinstance(dim, int) else _solve(dim, size)
        if isinstance(dim, int) or value is None:
            continue
        first, where = given.setdefault(dim.name, (value, name))
        if first != value:
            yield Diagnostic(
                f"size {dim.name} is {first} in input `{where}` and {value} in input `{name}`"
            )


def _matches(type: TensorType, shape: tuple[int, ...]) -> bool:
    return len(shape) == type.rank and all(map(_matches_dim, type.shape, shape))


def _matches_dim(dim: int | Sym, size: int) -> bool:
    return dim == size if isinstance(dim, int) else _solve(dim, size) is not None


def _reshaping(name: str, type: TensorType, array: Array) -> str:
    """The usual slips: an image without its batch, channels last."""
    if _matches(type, (1, *array.shape)):
        return f"add the batch: {name}[None]"
    if array.ndim == 4:
        n, h, w, c = array.shape
        if _matches(type, (n, c, h, w)):
            return f"the model takes channels first: {name}.transpose(0, 3, 1, 2)"
    if array.ndim == 3:
        h, w, c = array.shape
        if _matches(type, (1, c, h, w)):
            return f"the model takes a batch, channels first: {name}.transpose(2, 0, 1)[None]"
    return ""
