"""The tuner: measures the best candidate kernels of each distinct layer where they will stand.

The model is compiled a few times over, each time with the next candidate in every layer, and its
kernels are timed in whole runs on one thread: with the memory, the layouts and the neighbours that
they have in the model. A candidate takes and leaves the same layouts as the kernel that the cost
model chose, so that nothing around it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from cnnc.driver import context_of, finish, load_graph, realise, resolve_target
from cnnc.ir.graph import Graph, Node
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.location import Diagnostic, PassError
from cnnc.ir.ops import Reorder
from cnnc.ir.types import PLAIN
from cnnc.options import Options
from cnnc.passes import PASSES, PIPELINES
from cnnc.passes.base import Context, Pipeline
from cnnc.passes.choices import candidates, planning
from cnnc.record import Times, add_to_record, read_record
from cnnc.runtime.inputs import random_inputs

if TYPE_CHECKING:
    from cnnc.frontends import Model

_CANDIDATES = 4  # of a layer, at most
_HOPELESS = 1.6  # times the prediction of the best: such a candidate is not measured
_REPEATS = 15  # runs of a model in a turn
_TURNS = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A kernel at a layer; times in microseconds on one thread."""

    layer: str
    node: str  # the first node that is such a layer, as the source calls it
    count: int  # how many nodes are
    kernel: str
    predicted_us: float
    measured_us: float
    chosen: bool  # by the cost model


class Layer(NamedTuple):
    """A distinct layer of a planned graph."""

    text: str
    nodes: tuple[Node, ...]
    candidates: tuple[Kernel, ...]  # the chosen one first


def tune(
    source: Model | Graph, options: Options, progress: Progress | None = None
) -> tuple[Trial, ...]:
    """Measures candidates that the record does not have yet, for up to `options.tune` seconds.

    A round, which compiles and runs the whole model, is not interrupted.

    Returns:
        everything that the record then has of the model's layers.

    Raises:
        CnncError: the model cannot be compiled, or the record not be written.
    """
    say = progress or (lambda words: None)
    start = perf_counter()
    target = resolve_target(options.target)
    context = replace(context_of(options, target), measured={})
    first, rest = _split(options.passes)
    say("planning")
    planned, _ = first.run(load_graph(source, options), context)
    layers = tuple(_layers(planned, planning(planned, context)))
    record = read_record(target)
    rounds = list(_rounds(layers, record))
    for i, picks in enumerate(rounds):
        if perf_counter() - start > options.tune:
            break
        say(f"measuring, round {i + 1} of {len(rounds)}")
        nodes = tuple(replace(n, kernel=picks.get(n.name, n.kernel)) for n in planned.nodes)
        times = _measure(replace(planned, nodes=nodes), rest, context, options)
        add_to_record(target, _by_layer(layers, picks, times))
    return tuple(_trials(layers, read_record(target)))


def _split(passes: str) -> tuple[Pipeline, Pipeline]:
    """The pipeline up to the choice of kernels, and what comes after it."""
    steps = Pipeline.parse(passes, PASSES, PIPELINES).passes
    places = [i for i, step in enumerate(steps) if step.name == "choose-kernels"]
    if not places:
        message = f"the pipeline `{passes}` chooses no kernels, so there is nothing to tune"
        raise PassError(Diagnostic(message, help="end it as `default` does"))
    return Pipeline(steps[: places[-1] + 1]), Pipeline(steps[places[-1] + 1 :])


def _layers(graph: Graph, context: Context) -> Iterator[Layer]:
    """The layers that have more than one candidate."""
    groups: dict[tuple[Site, Kernel], list[Node]] = {}
    for node in graph.nodes:
        site = graph.site(node, context.target)
        if node.kernel is None or isinstance(node.op, Reorder) or node.kernel.idle(site):
            continue
        groups.setdefault((site, replace(node.kernel, error=0.0, saved=0.0)), []).append(node)
    for (site, kernel), nodes in groups.items():
        weight = graph.constants.get(nodes[0].operands[1]) if len(nodes[0].operands) > 1 else None
        others = [
            other
            for other in _alternatives(site, kernel, context)
            if not other.approximate
            or weight is not None
            and other.relative_error(_bare(site), weight) <= context.max_rel_err
        ]
        if kernel.native and others:
            chosen = (kernel, *others[: _CANDIDATES - 1])
            yield Layer(str(_bare(site)), tuple(nodes), chosen)


def _bare(site: Site) -> Site:
    """The site as it was when kernels were chosen: without layouts."""
    return replace(
        site,
        operands=tuple(t.with_layout(PLAIN) for t in site.operands),
        results=tuple(t.with_layout(PLAIN) for t in site.results),
    )


def _alternatives(site: Site, chosen: Kernel, context: Context) -> list[Kernel]:
    """Other kernels that fit the layouts, and their predictions not too bad; the best first."""
    bare = _bare(site)
    limit = _HOPELESS * chosen.cycles(bare)
    return [
        choice.kernel
        for choice in candidates(bare, context)
        if choice.kernel.native and str(choice.kernel) != str(chosen) and choice.cycles <= limit
        if (choice.operands, choice.result) == chosen.blocks(bare) and _fits(choice.kernel, site)
    ]


def _fits(kernel: Kernel, site: Site) -> bool:
    """Whether the borders that the tensors have are right for the kernel."""
    bare = _bare(site)
    for i, type in enumerate(site.operands):
        need, halo = kernel.halo(bare, i), type.layout.halo
        wide = all(n <= h for n, h in zip(need, halo, strict=True))
        if not (wide if kernel.accepts_halo(bare, i) else need == halo):
            return False
    return kernel.writes_halo(bare) or not any(any(t.layout.halo) for t in site.results)


Picks = Mapping[str, Kernel]
"""Node -> the kernel that it has in a round."""


def _rounds(layers: tuple[Layer, ...], record: Times) -> Iterator[Picks]:
    """What to measure together, until the record has every candidate of every layer."""
    missing = {
        layer: [k for k in layer.candidates if str(k) not in record.get(layer.text, {})]
        for layer in layers
    }
    for i in range(max(map(len, missing.values()), default=0)):
        yield {
            node.name: kernels[i] if i < len(kernels) else layer.candidates[0]
            for layer, kernels in missing.items()
            for node in layer.nodes
        }


def _measure(
    planned: Graph, rest: Pipeline, context: Context, options: Options
) -> Mapping[str, float]:
    """Node -> seconds on one thread: the least of the medians of some turns."""
    graph, records = rest.run(planned, context)
    single = options.model_copy(update={"threads": 1})
    model = finish(realise(graph, records, context.target, single))
    types = {name: graph.types[name].bind({s: 1 for s in graph.symbols}) for name in graph.inputs}
    inputs = random_inputs(types)
    turns = [model.profile(inputs, _REPEATS) for _ in range(_TURNS)]
    return {name: min(turn[name] for turn in turns) for name in turns[0]}


def _by_layer(layers: tuple[Layer, ...], picks: Picks, times: Mapping[str, float]) -> Times:
    """What a round says of the layers: the mean of equal ones, which differ by their neighbours."""
    found: Times = {}
    for layer in layers:
        mean = sum(times[node.name] for node in layer.nodes) / len(layer.nodes)
        if mean > 0:
            kernel = str(picks[layer.nodes[0].name])
            found.setdefault(layer.text, {})[kernel] = round(1e6 * mean, 3)
    return found


def _trials(layers: tuple[Layer, ...], record: Times) -> Iterator[Trial]:
    for layer in layers:
        for kernel in layer.candidates:
            time = record.get(layer.text, {}).get(str(kernel))
            if time is not None:
                yield Trial(
                    layer=layer.text,
                    node=layer.nodes[0].title,
                    count=len(layer.nodes),
                    kernel=str(kernel),
                    predicted_us=kernel.microseconds,
                    measured_us=time,
                    chosen=kernel is layer.candidates[0],
                )
