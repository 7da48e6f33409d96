"""Numbers for symbolic sizes: by the name of the size, or as the whole shape of an input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cnnc.ir.graph import Graph
from cnnc.ir.location import Diagnostic, Location, OptionError
from cnnc.ir.types import Shape, Sym, TensorType


def put_sizes(
    graph: Graph, sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """The graph with numbers for symbolic sizes.

    Args:
        graph: a portable graph.
        sizes: size -> number.
        shapes: input -> all its sizes, as numbers.

    Raises:
        OptionError: it has no such size or input, or they contradict each other.
        ShapeError: an op does not fit these sizes.
    """
    unknown = [name for name in sizes if name not in graph.symbols]
    if unknown:
        known = ", ".join(sorted(graph.symbols)) or "none"
        raise OptionError(f"the model has no size `{unknown[0]}`; its symbolic sizes: {known}")
    types = {name: graph.types[name].bind(sizes) for name in graph.inputs}
    return graph.bind({**sizes, **sizes_of(types, shapes or {}, f"@{graph.name}")})


def sizes_of(
    types: Mapping[str, TensorType], shapes: Mapping[str, Sequence[int]], model: str
) -> dict[str, int]:
    """Size -> number, for inputs whose shapes are given.

    Args:
        types: what the model takes.
        shapes: input -> all its sizes, as numbers.
        model: what messages call the model.

    Raises:
        OptionError: there is no such input, or the numbers contradict its type or each other.
    """
    check_names(shapes, types, model)
    fixed: dict[str, int] = {}
    for name, shape in shapes.items():
        for symbol, size in _solve(name, types[name], shape):
            if fixed.setdefault(symbol, size) != size:
                what = f"size {symbol} would be both {fixed[symbol]} and {size}"
                raise OptionError(Diagnostic(what, Location(model, name=name)))
    return fixed


def check_names(given: Iterable[str], inputs: Iterable[str], model: str) -> None:
    """Raises `OptionError` unless all the given names are inputs of the model."""
    unknown = sorted(set(given) - set(inputs))
    if unknown:
        known = ", ".join(f"`{name}`" for name in inputs) or "none"
        message = f"there is no input `{unknown[0]}`"
        raise OptionError(Diagnostic(message, Location(model), help=f"the inputs are {known}"))


def _solve(name: str, type: TensorType, shape: Sequence[int]) -> Iterator[tuple[str, int]]:
    """(symbol, number) for each symbol of an input whose sizes are given."""
    wrong = any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape)
    unfit = [] if wrong else [*_unfit(type.shape, shape)]
    if wrong or unfit or len(shape) != type.rank:
        what = f"shapes: `{name}` is {type}, which cannot be {list(shape)}"
        help = "; ".join(unfit) or f"give a number for each of its {type.rank} sizes"
        raise OptionError(Diagnostic(what, help=help))
    for dim, size in zip(type.shape, shape, strict=True):
        if isinstance(dim, Sym):
            yield dim.name, size


def _unfit(declared: Shape, given: Sequence[int]) -> Iterator[str]:
    """What each number that contradicts its declared size must be; nothing where ranks differ."""
    if len(declared) != len(given):
        return
    for axis, (dim, size) in enumerate(zip(declared, given, strict=True)):
        if isinstance(dim, int):
            if dim != size:
                yield f"size {axis} is {dim}"
        elif size % dim.divisor:
            yield f"size {axis} must be a multiple of {dim.divisor}"
