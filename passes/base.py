"""Passes and pipelines: named graph-to-graph steps, run in order and checked after each.

    Pipeline.parse("default,-fuse-epilogue,fold-constants{limit=16}", PASSES, PIPELINES)

A pass is a frozen dataclass; its fields are its options and its text form derives from them. It
gives back a new graph and the number of changes, 0 exactly if the graph is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import ClassVar

from lark import Token, Tree

from cnnc.ir.attributes import read_fields, write_fields
from cnnc.ir.graph import Builder, Graph, Level, Node
from cnnc.ir.kernel import Kernel
from cnnc.ir.location import CnncError, Location, OptionError, ParseError, PassError, suggest
from cnnc.ir.syntax import Source
from cnnc.ir.target import Target
from cnnc.ir.verify import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What passes may know besides the graph.

    Attributes:
        target: the machine to plan for.
        kernels: the kernel classes that a plan may choose from, by name.
        exact: refuse algorithms that change the summation, such as Winograd.
        max_rel_err: the error that an inexact algorithm may make, relative to the output's range.
        measured: site -> kernel -> microseconds on one thread, both by their texts: what decides
            in place of the prediction where it is known.
    """

    target: Target
    kernels: Mapping[str, type[Kernel]] = field(default_factory=dict)
    exact: bool = False
    max_rel_err: float = 1e-4
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """Base of all passes. The first line of a pass's docstring is its description."""

    name: ClassVar[str]
    level: ClassVar[Level] = Level.PORTABLE  # of the graphs that it takes

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        """The new graph and how many changes were made. Raises `PassError`."""

    @classmethod
    def description(cls) -> str:
        """One line on what the pass does."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def __str__(self) -> str:
        return self.name + write_fields(self)


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass of a run did: its changes, wall-clock seconds without checks, node counts."""

    name: str
    changes: int
    seconds: float
    nodes_before: int
    nodes_after: int


Observer = Callable[[Pass, Graph, Graph, PassRecord], None]
"""Called after each pass with the pass, the graphs before and after, and the record."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in order. `str` gives the text that `parse` reads."""

    passes: tuple[Pass, ...]

    @staticmethod
    def parse(
        text: str, passes: Mapping[str, type[Pass]], pipelines: Mapping[str, str] | None = None
    ) -> Pipeline:
        """The pipeline that `text` describes: names of passes and pipelines, separated by commas.

        A pass may have options (`tile{l1=16384}`); `-name` takes out all earlier uses of a pass.

        Raises:
            PassError: located; an unknown name or option, or `-name` of a pass that is not there.
        """
        try:
            return Pipeline(tuple(_read_pipeline(text, passes, pipelines or {})))
        except ParseError as error:
            raise PassError(error.diagnostics, error.sources) from None

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def run(
        self,
        graph: Graph,
        context: Context,
        observers: Iterable[Observer] = (),
        check_changes: bool = False,
    ) -> tuple[Graph, tuple[PassRecord, ...]]:
        """Runs the passes in order and verifies the graph after the first and each that changes it.

        Args:
            graph: what to start from; it is not changed.
            context: target, kernels and options for all passes.
            observers: called after each pass, in order.
            check_changes: also check that each pass counts its changes truly and, run a second
                time, finds nothing more to do. Doubles the time; for tests.
        Raises:
            PassError: naming the pass, its place and those before it; the cause is chained.
            OptionError: the graph needs an option that was not given, such as a size.
        """
        observers = tuple(observers)
        records: list[PassRecord] = []
        for index, step in enumerate(self.passes):
            try:
                after, record = _run_pass(step, graph, context, verified=bool(records))
                if check_changes:
                    _check_changes(step, graph, after, record.changes, context)
            except OptionError:  # what the caller left out is no failure of the pass
                raise
            except Exception as error:
                raise self._failure(index, error) from error
            records.append(record)
            for observer in observers:
                observer(step, graph, after, record)
            graph = after
        return graph, tuple(records)

    def _failure(self, index: int, error: Exception) -> PassError:
        before = ", ".join(map(str, self.passes[:index]))
        where = f"pass {index + 1} `{self.passes[index]}`, after [{before}]"
        if isinstance(error, CnncError):
            problems = [replace(d, message=f"{where}: {d.message}") for d in error.diagnostics]
            return PassError(problems, error.sources)
        return PassError(f"{where}: {type(error).__name__}: {error}")


def _run_pass(
    step: Pass, graph: Graph, context: Context, verified: bool
) -> tuple[Graph, PassRecord]:
    """The graph after a pass; `verified` says that the one before it is known to be in order."""
    if graph.level is not step.level:
        raise PassError(
            f"works on {step.level.value} graphs, `{graph.name}` is {graph.level.value}"
        )
    start = perf_counter()
    after, changes = step.run(graph, context)
    seconds = perf_counter() - start
    if changes or not verified:
        check(after, context.target)
    return after, PassRecord(step.name, changes, seconds, len(graph.nodes), len(after.nodes))


def _check_changes(step: Pass, before: Graph, after: Graph, changes: int, context: Context) -> None:
    if (before != after) != (changes > 0):
        state = "the same" if before == after else "another one"
        raise PassError(f"counts {changes} changes, but the graph is {state}")
    if after.level is step.level:
        again, more = step.run(after, context)
        if more or again != after:
            raise PassError(f"finds {more} more changes in its own result")


def _read_pipeline(
    text: str, passes: Mapping[str, type[Pass]], pipelines: Mapping[str, str]
) -> list[Pass]:
    source = Source(text, "<pipeline>")
    found: list[Pass] = []
    for item in source.tree("pipeline").children:
        assert isinstance(item, Tree)
        *minus, word = (child for child in item.children if isinstance(child, Token))
        options = next((child for child in item.children if isinstance(child, Tree)), None)
        if options is not None and (minus or word not in passes):
            raise source.fail("options belong to a pass that is put in", options)
        if minus:
            if word not in (step.name for step in found):
                help = suggest(word, {step.name for step in found})
                raise source.fail(f"no pass `{word}` to take out here", word, help)
            found = [step for step in found if step.name != word]
        elif word in passes:
            found.append(read_fields(passes[str(word)], options, word, source))
        elif word in pipelines:
            found += _read_pipeline(pipelines[str(word)], passes, pipelines)
        else:
            raise source.fail(f"unknown pass `{word}`", word, suggest(word, [*passes, *pipelines]))
    return found


# -- rewriting -----------------------------------------------------------------------------------

Rule = Callable[[Builder, Node], bool]
"""Rewrites at a node and says whether it did. A rule never makes a graph worse, and its result
never matches a rule of the same pass that would undo it, so applying rules comes to an end."""


def apply_rules(graph: Graph, rules: Iterable[Rule]) -> tuple[Graph, int]:
    """Applies the rules at every node, again and again until none applies: (graph, changes)."""
    rules = tuple(rules)
    builder = Builder.edit(graph)
    limit = 100 + 20 * len(graph.nodes)  # far more than rules that make progress can use
    changes, found = 0, True
    while found:
        found = False
        for node in builder.nodes:
            for rule in rules:
                if builder.holds(node) and rule(builder, node):
                    changes, found = changes + 1, True
                    assert changes <= limit, f"rewriting `{graph.name}` does not end"
    return (builder.finish(), changes) if changes else (graph, 0)


@dataclass(frozen=True, kw_only=True)
class RulePass(Pass):
    """A pass that is a list of rules."""

    rules: ClassVar[tuple[Rule, ...]]

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return apply_rules(graph, self.rules)


def merge_locations(*nodes: Node) -> tuple[Location, ...]:
    """The places that a node made of several stands for: the first node's come first."""
    return tuple(dict.fromkeys(at for node in nodes for at in node.locations))
