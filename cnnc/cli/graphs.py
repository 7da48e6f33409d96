"""What commands ask of a graph."""

from __future__ import annotations

from collections.abc import Mapping

from cnnc.cli.arrays import put_batch
from cnnc.driver import load_graph
from cnnc.ir.graph import Graph
from cnnc.ir.types import Dim, TensorType
from cnnc.options import Options


def load_bound(model: str, options: Options) -> tuple[Graph, Options]:
    """The portable graph with its sizes and outputs put in, and the options left for `build`."""
    empty: tuple[str, ...] = ()
    done: dict[str, object] = {
        **dict.fromkeys(("sizes", "shapes", "values"), {}),
        **dict.fromkeys(("outputs", "taps"), empty),
    }
    return load_graph(model, options), options.model_copy(update=done)


def batch_symbols(graph: Graph) -> frozenset[str]:
    """The names of symbolic sizes that only count images, usually `N`."""
    first = {d for name in graph.inputs for d in graph.types[name].shape[:1]}
    return frozenset(d.name for d in first if not isinstance(d, int)) - open_sizes(graph)


def open_sizes(graph: Graph) -> frozenset[str]:
    """The names of symbolic sizes, the batch apart, which a compilation needs as numbers."""
    dims = (d for name in graph.inputs for d in graph.types[name].shape[1:])
    return frozenset(d.name for d in dims if not isinstance(d, int))


def flops_of(graph: Graph) -> int | None:
    """Floating-point operations for one image; None where a size is open."""
    return None if open_sizes(graph) else graph.flops()


def input_types(graph: Graph, batch: int | None = None) -> dict[str, TensorType]:
    """What the graph takes, by input name; for `batch` images if given.

    Raises:
        InputError: the number of images is fixed.
    """
    types = {name: graph.types[name] for name in graph.inputs}
    return types if batch is None else put_batch(types, batch_symbols(graph), batch)


def output_types(graph: Graph) -> dict[str, TensorType]:
    """What the graph gives, by public name."""
    return {public: graph.types[value] for public, value in graph.outputs}


def tensor_data(types: Mapping[str, TensorType]) -> list[dict[str, object]]:
    """Tensors as plain data; a symbolic size is its name."""
    return [
        {"name": name, "dtype": type.dtype.value, "shape": [_plain(d) for d in type.shape]}
        for name, type in types.items()
    ]


def _plain(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)
