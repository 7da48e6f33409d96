"""The text of a compilation's stages, whole or for the kernels of some name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from cnnc.codegen.llvm import assembly
from cnnc.driver import Build
from cnnc.ir.graph import Graph, Node
from cnnc.ir.location import Diagnostic, OptionError, suggest
from cnnc.ir.loops import print_program
from cnnc.passes import PASSES, PIPELINES, Pipeline


def passes_until(text: str, name: str) -> str:
    """The pipeline up to the last use of the pass `name`.

    Raises:
        OptionError: the pipeline does not have it.
    """
    passes = Pipeline.parse(text, PASSES, PIPELINES).passes
    places = [i for i, step in enumerate(passes) if name in (step.name, str(step))]
    if not places:
        raise OptionError(
            Diagnostic(
                f"the pipeline `{text}` has no pass `{name}`",
                help=suggest(name, {step.name for step in passes}),
            )
        )
    return str(Pipeline(passes[: places[-1] + 1]))


def node_lines(graph: Graph, wanted: str, *, missing_ok: bool = False) -> list[str]:
    """The lines of the graph's text that hold the nodes with `wanted` in a name.

    Raises:
        OptionError: there are none, unless `missing_ok`.
    """
    lines = str(graph).splitlines()[-1 - len(graph.nodes) : -1]
    found = [
        line
        for node, line in zip(graph.nodes, lines, strict=True)
        if _matches(wanted, _names(node))
    ]
    if not found and not missing_ok:
        raise _unknown(wanted, (name for node in graph.nodes for name in _names(node)))
    return found


def graph_diff(before: Graph, after: Graph, wanted: str | None) -> str:
    """What differs between the texts of two graphs, as a unified diff without file names."""
    old, new = (
        str(graph).splitlines() if wanted is None else node_lines(graph, wanted, missing_ok=True)
        for graph in (before, after)
    )
    rows = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
    return "".join(f"{row}\n" for row in rows if not row.startswith("@@"))


def code_text(built: Build, stage: str, wanted: str | None) -> str:
    """Loop programs, LLVM text or assembly.

    Args:
        built: the compilation.
        stage: `loops`, `llvm` or `asm`.
        wanted: only functions that have this in their name, or in that of a node they serve.

    Raises:
        OptionError: no function has.
    """
    served: dict[str, list[Node]] = {symbol: [] for symbol in built.module.programs}
    for node in built.planned.nodes:
        if node.name in built.module.symbols:
            served[built.module.symbols[node.name]].append(node)
    names = {s: (s, *(name for node in served[s] for name in _names(node))) for s in served}
    symbols = [s for s in served if wanted is None or _matches(wanted, names[s])]
    if not symbols and wanted is not None:
        raise _unknown(wanted, (name for all_of_one in names.values() for name in all_of_one))
    if stage == "loops":
        return "\n".join(
            f"// {symbol}: {', '.join(node.title for node in served[symbol])}\n"
            + print_program(built.module.programs[symbol])
            for symbol in symbols
        )
    text = built.module.text
    if wanted is not None:
        text = only_functions(text, symbols)
    return text if stage == "llvm" else assembly(text, built.target)


def only_functions(llvm_text: str, symbols: Iterable[str]) -> str:
    """The module with none but these functions, visible from outside so that they are kept."""
    names = "|".join(map(re.escape, symbols))
    wanted = re.compile(rf"define .*@({names})\(")
    parts = re.split(r"^(define .*\n(?:.*\n)*?}\n)", llvm_text, flags=re.MULTILINE)
    kept = [
        part.replace("define hidden ", "define ", 1)
        for part in parts
        if not part.startswith("define ") or wanted.match(part)
    ]
    return re.sub(r"\n{3,}", "\n\n", "".join(kept))


def _names(node: Node) -> tuple[str, ...]:
    """What a node may be asked for by: its names, those of its sources, its op and kernel."""
    sources = (at.name for at in node.locations if at.name)
    kernel = (node.kernel.name,) if node.kernel else ()
    return (node.name, *sources, node.op.name, *kernel)


def _matches(wanted: str, names: Iterable[str]) -> bool:
    return any(wanted.lower() in name.lower() for name in names)


def _unknown(wanted: str, names: Iterable[str]) -> OptionError:
    return OptionError(
        Diagnostic(f"nothing has `{wanted}` in its name", help=suggest(wanted, set(names)))
    )
