"""The types of a model's inputs: declared sizes, symbols, and what the caller says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnc.frontends.onnx.tensors import element_name, element_type, text
from cnnc.frontends.sizes import check_names, sizes_of
from cnnc.ir.location import CnncError, Diagnostic, Location, OptionError, ParseError
from cnnc.ir.op import Array
from cnnc.ir.types import Dim, DType, Sym, TensorType

BATCH = "N"
_MAX_RANK = 32
_MAX_SIZE = (1 << 31) - 1
_PLACEHOLDERS = ("None", "null")
_SYMBOL = re.compile(r"([A-Za-z_]\w*)(?:%([1-9]\d{0,5}))?", re.ASCII)


def input_types(
    inputs: Sequence[Any],
    file: str,
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, TensorType]:
    """What a model takes, by name.

    A size without number is a symbol: of the name that the model gives it, `N` for a batch without
    name, `<input>_<axis>` for others. A symbol that the caller fixes in one input is fixed in all.
    Placeholders such as `?`, which have no letter, are no names. A size of 0, which some exporters
    write for one that is not known, is what the caller says.

    Args:
        inputs: the `ValueInfoProto`s of the inputs.
        file: what messages call the model.
        shapes: input name -> all its sizes, as numbers.

    Raises:
        OptionError: `shapes` names no input, or contradicts the model.
        ParseError: an input is no tensor, or of unknown rank; all are listed.
    """
    declared: dict[str, TensorType] = {}
    problems: list[Diagnostic] = []
    for info in inputs:
        name = text(info.name)
        try:
            declared[name] = _declared(info, name, shapes.get(name))
        except CnncError as error:
            message = error.diagnostics[0].message
            help = error.diagnostics[0].help
            problems.append(Diagnostic(message, Location(file, name=name), help=help))
    if problems:
        raise ParseError(problems)
    fixed = sizes_of(declared, shapes, file)
    return {name: type.bind(fixed) for name, type in declared.items()}


def bound_values(
    inputs: Sequence[Any], file: str, values: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    """The values that the caller gives to inputs, as arrays of the inputs' element types.

    Raises:
        OptionError: there is no such input, or it holds something else.
    """
    kinds = {text(info.name): info.type.tensor_type.elem_type for info in inputs}
    check_names(values, kinds, file)
    arrays: dict[str, Array] = {}
    for name, value in values.items():
        dtype = element_type(kinds[name])
        try:
            array = np.asarray(value)
            if array.size == 0 and not isinstance(value, np.ndarray):
                array = array.astype(np.bool_)  # an empty list is of any type
            arrays[name] = array.astype(dtype, casting="same_kind")
        except (TypeError, ValueError):
            what = f"values: `{name}` holds {element_name(kinds[name])}, not what is given"
            raise OptionError(Diagnostic(what, Location(file, name=name))) from None
    return arrays


def _declared(info: Any, name: str, given: Sequence[int] | None) -> TensorType:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        raise ParseError(f"input `{name}` is no tensor")
    dtype = element_type(tensor.elem_type)
    if dtype is None or dtype.name not in (d.value for d in DType):
        kind = element_name(tensor.elem_type)
        help = "export the model with float32"
        raise ParseError(Diagnostic(f"input `{name}` holds {kind}, not supported", help=help))
    if tensor.HasField("shape"):
        dims = [_dim(dim, name, axis) for axis, dim in enumerate(tensor.shape.dim)]
        if given is not None and len(given) == len(dims):
            dims = [d or (_symbol(name, i) if given[i] else 0) for i, d in enumerate(dims)]
    elif given is not None:
        dims = [_symbol(name, axis) for axis in range(len(given))]
    else:
        help = f'say it: shapes={{"{name}": (1, 3, 224, 224)}}, if that is its shape'
        raise ParseError(Diagnostic(f"input `{name}` has no shape", help=help))
    if len(dims) > _MAX_RANK or any(isinstance(d, int) and d > _MAX_SIZE for d in dims):
        raise ParseError(f"input `{name}` has an absurd shape of rank {len(dims)}")
    return TensorType(tuple(dims), DType(dtype.name))


def _dim(dim: Any, name: str, axis: int) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    given = text(dim.dim_param) if dim.HasField("dim_param") else ""
    if given in _PLACEHOLDERS or not any(letter.isalpha() for letter in given):
        return _symbol(name, axis)
    found = _SYMBOL.fullmatch(given)
    if found:
        return Sym(found[1], int(found[2] or 1))
    return Sym(_word(given))


def _symbol(name: str, axis: int) -> Sym:
    return Sym(f"{_word(name)}_{axis}" if axis else BATCH)


def _word(name: str) -> str:
    """A name that the text form can hold."""
    word = re.sub(r"\W+", "_", name[:64], flags=re.ASCII).strip("_")
    return word if word[:1].isalpha() else f"size_{word}"
