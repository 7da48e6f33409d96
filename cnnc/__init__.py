"""cnnc: a compiler for convolutional networks on CPUs.

    import cnnc
    model = cnnc.compile("resnet50")          # a zoo name, a file, or a Graph
    y = model(x)                              # NumPy in, NumPy out
    print(model.report())
    model.save("resnet50.cnnca")              # cnnc.load_compiled("resnet50.cnnca")

Importing this module imports none of the compiler; the first use does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnc._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from cnnc.frontends import Model
    from cnnc.ir.graph import Graph
    from cnnc.ir.location import CnncError
    from cnnc.model import CompiledModel
    from cnnc.session import InferenceSession

__all__ = ["CnncError", "InferenceSession", "__version__", "compile", "load", "load_compiled"]

_LATER = {"CnncError": "cnnc.ir.location", "InferenceSession": "cnnc.session"}  # on first use


def compile(
    source: Model | Graph,
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> CompiledModel:
    """Compiles a model to native code for this machine, or takes it from the cache.

    What is compiled from a file is kept under `$XDG_CACHE_HOME/cnnc` (`~/.cache/cnnc`) and used
    again as long as the model, its weights, the options, the processor and cnnc are the same.

    Args:
        source: the name of a zoo model ("resnet50"), a model file, the bytes of an ONNX model or
            its `ModelProto`, or a `Graph`.
        progress: called with a few words at the start of each phase.
        **options: `threads`, `target`, `passes`, `exact`, `max_rel_err`, `strict`, `sizes`,
            `shapes`, `parameters`, `values`, `tune`, `outputs`, `taps`, `cache`, `cache_bytes`;
            see `cnnc.options.Options`.

    Returns:
        A `CompiledModel`: call it with arrays.

    Raises:
        CnncError: (all from `cnnc.ir.location`) the source cannot be read, an option is unknown,
            a size is missing; the message names the place, the reason and the fix.
    """
    from cnnc.cache import compile

    return compile(source, progress=progress, **options)


def load(source: Model, **options: Any) -> Graph:
    """The portable graph of a model, without compiling it; options as for `compile`."""
    from cnnc.driver import load_graph
    from cnnc.options import Options

    return load_graph(source, Options.of(**options))


def load_compiled(path: str | Path, *, threads: int | None = None) -> CompiledModel:
    """A model that `CompiledModel.save` wrote, ready to run; needs none of the compiler.

    The file holds native code, so load only what you trust. Its weights are mapped into memory:
    processes that load the same file share them.

    Args:
        path: the file; a change in place while it is in use would be seen by the model.
        threads: how many threads run it; None takes what the process may use.

    Raises:
        CnncError: there is no such file, it is damaged, or it is for another processor or version.
    """
    from cnnc.link import load_compiled

    return load_compiled(path, threads)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module `cnnc` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
