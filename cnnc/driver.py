"""The driver joins the rooms: source -> graph -> planned graph -> native code -> model.

`build` gives every stage as a value, for inspection; `compile` keeps only what running needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc._version import __version__
from cnnc.codegen.cores import usable_cores
from cnnc.codegen.elf import link_objects
from cnnc.codegen.host import can_run, named_target, native_target
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.llvm import compile_object
from cnnc.codegen.measure import measure_ghz
from cnnc.codegen.module import NativeModule, Piece, build_module
from cnnc.codegen.team import team_image
from cnnc.frontends import load
from cnnc.frontends.sizes import put_sizes
from cnnc.ir.graph import Graph, Node
from cnnc.ir.location import Diagnostic, Location, OptionError, PassError
from cnnc.ir.op import Array
from cnnc.ir.ops import Reorder
from cnnc.ir.target import Target
from cnnc.ir.types import TensorType
from cnnc.link import Make, link, machine_of
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.passes import PASSES, PIPELINES
from cnnc.passes.base import Context, Observer, PassRecord, Pipeline
from cnnc.record import read_record
from cnnc.report import KernelRow, Memory, PassRow, Report
from cnnc.runtime import plain
from cnnc.runtime.artifact import Artifact, Manifest, Tensor
from cnnc.runtime.executable import Executable, Prepare
from cnnc.runtime.memory import uncollected
from cnnc.runtime.mixed import MixedExecutable
from cnnc.sources import resolve, zoo_models
from cnnc.taps import put_outputs

if TYPE_CHECKING:
    from cnnc.frontends import Model

__all__ = [
    "Build",
    "assemble",
    "build",
    "compile",
    "finish",
    "load_graph",
    "optimise",
    "resolve",
    "resolve_target",
    "workers",
    "zoo_models",
]

Progress = Callable[[str], None]
"""Called with a few words at the start of each phase, pass and kernel."""


@dataclass(frozen=True)
class Build:
    """Every stage of one compilation."""

    planned: Graph
    module: NativeModule
    target: Target
    options: Options
    report: Report
    objects: tuple[Future[bytes], ...] = ()  # of the module's pieces, where threads compile them


def load_graph(source: Model | Graph, options: Options) -> Graph:
    """The portable graph of a zoo name, a file, an ONNX model in memory or a graph.

    Its sizes have the numbers of the options, its outputs are what the options ask for.
    """
    graph = _load(source, options)
    if options.outputs or options.taps:
        graph = put_outputs(graph, options.outputs, options.taps)
    return graph


def _load(source: Model | Graph, options: Options) -> Graph:
    asked = {name: getattr(options, name) for name in ("parameters", "sizes", "shapes", "values")}
    if isinstance(source, Graph):
        if options.values:
            raise OptionError("a graph takes no `values`: give them where it is loaded")
        return put_sizes(source, options.sizes, options.shapes)
    graph = load(resolve(source) if isinstance(source, str | Path) else source, **asked)
    return _as_zoo(graph) if str(source) in zoo_models() else graph


def _as_zoo(graph: Graph) -> Graph:
    """The graph with its source called `zoo/...`, wherever cnnc is installed."""

    def locations(node: Node) -> tuple[Location, ...]:
        return tuple(replace(at, file=f"zoo/{Path(at.file).name}") for at in node.locations)

    nodes = tuple(replace(node, locations=locations(node)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def resolve_target(name: str) -> Target:
    """The target of that name; the host's clock is measured, for predicted times."""
    target = named_target(name)
    return replace(target, ghz=round(measure_ghz(), 2)) if target == native_target() else target


def optimise(
    graph: Graph, options: Options, target: Target, observers: Iterable[Observer] = ()
) -> tuple[Graph, tuple[PassRecord, ...]]:
    """Runs the pass pipeline."""
    pipeline = Pipeline.parse(options.passes, PASSES, PIPELINES)
    return pipeline.run(graph, context_of(options, target), observers)


def context_of(options: Options, target: Target) -> Context:
    """What the passes may know."""
    return Context(
        target=target,
        kernels=KERNELS,
        exact=options.exact,
        max_rel_err=options.max_rel_err,
        measured=read_record(target) if options.tune else {},
    )


def build(
    source: Model | Graph,
    options: Options,
    progress: Progress | None = None,
    pool: Executor | None = None,
    *,
    lean: bool = False,
) -> Build:
    """Everything up to LLVM text and packed weights.

    Args:
        source: what to compile.
        options: what to compile it with.
        progress: called with a few words at the start of each phase, pass and kernel.
        pool: threads that start to compile what is there.
        lean: forget constants when they are packed; the planned graph has stand-ins for them.
    """
    say = progress or (lambda words: None)
    clock = _Clock()
    if not isinstance(source, Graph):
        say("parsing")
    resolved = pool.submit(resolve_target, options.target) if pool else None
    graph = load_graph(source, options)
    clock.lap("parse")
    target = resolved.result() if resolved else resolve_target(options.target)
    if pool:
        pool.submit(team_image, target)  # which remembers it
    passes = Pipeline.parse(options.passes, PASSES, PIPELINES).passes
    names = iter([*(str(p) for p in passes[1:]), ""])
    say(f"pass {passes[0]}" if passes else "no passes")
    planned, records = optimise(
        graph, options, target, [lambda *_: say(f"pass {name}") if (name := next(names)) else None]
    )
    del graph  # the passes made new weights of most of its
    clock.lap("passes")
    constants = None
    if lean:
        constants = dict(planned.constants)
        planned = replace(planned, constants=_stand_ins(planned))
    return realise(planned, records, target, options, say, clock.laps, pool, constants)


def _stand_ins(graph: Graph) -> dict[str, Array]:
    """Constants that take no memory, for those that only native kernels read."""
    read = {o for n in graph.nodes if n.kernel and not n.kernel.native for o in n.operands}
    return {
        name: array if name in read else np.broadcast_to(np.zeros((), array.dtype), array.shape)
        for name, array in graph.constants.items()
    }


def realise(
    planned: Graph,
    records: Sequence[PassRecord],
    target: Target,
    options: Options,
    progress: Progress | None = None,
    seconds: Mapping[str, float] | None = None,
    pool: Executor | None = None,
    constants: dict[str, Array] | None = None,
) -> Build:
    """LLVM text and packed weights of a planned graph.

    Args:
        planned: what all passes made.
        records: what they did.
        target: what it is planned for.
        options: what it is compiled with.
        progress: called with a few words for each kernel.
        seconds: what the phases before took.
        pool: threads that start to compile what is there.
        constants: the graph's, if it has stand-ins for them; they are forgotten when packed.

    Raises:
        PassError: not everything is planned, or not natively where `strict` asks for it.
    """
    say = progress or (lambda words: None)
    _check_planned(planned, options)
    clock = _Clock()
    objects: list[Future[bytes]] = []

    def written(piece: Piece) -> None:
        if pool:
            objects.append(pool.submit(compile_object, piece.module(target), target))

    module = build_module(planned, target, lambda what, done, total: say(what), written, constants)
    clock.lap("kernels")
    threads = options.threads or usable_cores()
    laps = {**(seconds or {}), **clock.laps}
    report = _report(planned, records, module, target, threads, laps)
    return Build(planned, module, target, options, report, tuple(objects))


def compile(
    source: Model | Graph, *, progress: Progress | None = None, **options: Any
) -> CompiledModel:
    """Compiles a model for this machine; see `cnnc.compile`."""
    chosen = Options.of(**options)
    with workers() as pool:
        return finish(build(source, chosen, progress, pool, lean=True), progress)


@contextmanager
def workers() -> Iterator[Executor]:
    """Threads for LLVM, which works without Python's lock. What is left undone is given up."""
    pool = ThreadPoolExecutor(usable_cores())
    try:
        with uncollected():
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def finish(built: Build, progress: Progress | None = None) -> CompiledModel:
    """Native code of a build, loaded and ready to run."""
    if not can_run(built.target):
        raise OptionError(
            Diagnostic(
                f"code for target `{built.target.name}` cannot run on this machine",
                help="inspect it with `cnnc inspect --target`, or compile for `native`",
            )
        )
    return link(assemble(built, progress), built.options.threads, make=_maker(built))


def assemble(built: Build, progress: Progress | None = None) -> Artifact:
    """The compiled model as a value, which need not be able to run here."""
    if progress:
        progress("native code")
    clock = _Clock()
    code = link_objects(_objects(built)).to_bytes()
    clock.lap("native code")
    report = replace(built.report, seconds={**built.report.seconds, **clock.laps})
    manifest = _manifest(built, report)
    return Artifact(manifest, code, team_image(built.target), built.module.weights)


def _objects(built: Build) -> list[bytes]:
    if built.objects:
        return [future.result() for future in built.objects]
    texts = [piece.module(built.target) for piece in built.module.pieces]
    with workers() as pool:
        return list(pool.map(compile_object, texts, repeat(built.target)))


def _manifest(built: Build, report: Report) -> Manifest:
    graph = built.planned
    return Manifest(
        model=graph.name,
        inputs=tuple(_tensor(name, graph.types[name]) for name in graph.inputs),
        outputs=tuple(_tensor(name, graph.types[value]) for name, value in graph.outputs),
        nodes=tuple(node.name for node in graph.nodes),
        foreign=report.reference,
        steps=tuple(s.symbol for s in built.module.segments if s.is_native),
        arena_bytes=graph.arena_bytes,
        scratch_bytes=built.module.scratch_bytes,
        group=graph.group,
        least=built.module.least,
        parts=built.module.parts,
        machine=machine_of(built.target),
        versions=_versions(),
        report=plain.write(report),
    )


def _versions() -> dict[str, str]:
    """Versions of what decides on the code that is made."""
    import llvmlite.binding  # by now it is there; a thread may load it while others work

    return {
        "cnnc": __version__,
        "llvmlite": llvmlite.__version__,
        "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        "numpy": np.__version__,
    }


def _tensor(name: str, type: TensorType) -> Tensor:
    return Tensor(name, type.dtype, type.shape)


def _maker(built: Build) -> Make:
    """What makes the executable: one that runs nodes in NumPy, where the model has such."""
    segments = built.module.segments
    if all(segment.is_native for segment in segments):
        return Executable
    # Only nodes that run in NumPy still read the constants: the others read the packed weights.
    read = {o for s in segments if not s.is_native for o in s.nodes[0].operands}
    constants = {name: a for name, a in built.planned.constants.items() if name in read}
    graph = replace(built.planned, constants=constants)

    def make(
        manifest: Manifest, weights: Array, addresses: Sequence[int], threads: int, prepare: Prepare
    ) -> Executable:
        native = iter(addresses)
        steps = [next(native) if s.is_native else s.nodes[0] for s in segments]
        return MixedExecutable(manifest, weights, graph, steps, threads, prepare)

    return make


class _Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _check_planned(graph: Graph, options: Options) -> None:
    """Raises unless the pipeline planned everything, and natively where `strict` asks for it."""
    if any(node.kernel is None for node in graph.nodes) or graph.nodes and not graph.places:
        raise PassError(
            Diagnostic(
                f"the pipeline `{options.passes}` leaves the graph unplanned",
                help="end it with choose-kernels,plan-memory, as `default` does",
            )
        )
    if options.strict:
        check_native(graph)


def not_native(graph: Graph) -> list[Node]:
    """The nodes of a planned graph that run in NumPy."""
    return [node for node in graph.nodes if node.kernel and not node.kernel.native]


def check_native(graph: Graph) -> None:
    """Raises `PassError` if nodes of a planned graph run in NumPy: what `strict` asks for."""
    problems = [
        Diagnostic(
            f"{node.op.name} `{node.title}` has no native kernel here",
            node.location,
            help="compile without `strict` to run it in NumPy",
        )
        for node in not_native(graph)
    ]
    if problems:
        raise PassError(problems)


def _report(
    graph: Graph,
    records: Sequence[PassRecord],
    module: NativeModule,
    target: Target,
    threads: int,
    seconds: dict[str, float],
) -> Report:
    bound = graph.bind({name: 1 for name in graph.symbols})
    rows = tuple(_kernel_row(bound, node, module) for node in graph.nodes)
    return Report(
        model=graph.name,
        target=f"{target.name} ({target.cpu})" if target.cpu != target.name else target.name,
        threads=threads,
        passes=tuple(
            PassRow(r.name, PASSES[r.name].description(), r.changes, r.seconds, r.nodes_after)
            for r in records
        ),
        kernels=rows,
        flops=sum(row.flops for row in rows),
        parameters=graph.parameters,
        memory=Memory(module.weights.nbytes, graph.arena_bytes, module.scratch_bytes * threads),
        functions=len(module.programs),
        reorders=sum(isinstance(node.op, Reorder) for node in graph.nodes),
        seconds=dict(seconds),
    )


def _kernel_row(graph: Graph, node: Node, module: NativeModule) -> KernelRow:
    assert node.kernel is not None
    return KernelRow(
        name=node.title,
        op="+".join(part.name for part in node.op.parts),
        sources=tuple(f"{at.file}:{at.line}" for at in node.locations if at.line),
        output=str(graph.types[node.name]),
        kernel=str(node.kernel),
        symbol=module.symbols.get(node.name, ""),
        flops=graph.node_flops(node),
        predicted_us=node.kernel.microseconds,
        native=node.kernel.native,
        error=node.kernel.error,
        saved_us=node.kernel.saved,
    )
