"""`cnnc inspect`: any stage of the compiler, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cnnc.cli.settings import Settings, compiler_options

if TYPE_CHECKING:
    from cnnc.driver import Build
    from cnnc.ir.graph import Graph
    from cnnc.options import Options

GRAPHS = ("graph", "planned")
STAGES = (*GRAPHS, "loops", "llvm", "asm")


@click.command()
@compiler_options
@click.option("--stage", type=click.Choice(STAGES), help="Default: graph.")
@click.option("--after", metavar="PASS", help="The graph after that pass.")
@click.option("--after-all", is_flag=True, help="The graph after each pass.")
@click.option("--changed", is_flag=True, help="The same, where a pass changed something.")
@click.option("--diff", is_flag=True, help="With these two: only what differs, as a unified diff.")
@click.option("--kernel", "wanted", metavar="NAME", help="Only what has NAME in its name.")
@click.option("--dot", is_flag=True, help="The graph for Graphviz.")
def inspect(
    model: str,
    settings: Settings,
    stage: str | None,
    after: str | None,
    after_all: bool,
    changed: bool,
    diff: bool,
    wanted: str | None,
    dot: bool,
) -> None:
    """Print what MODEL is at any stage of the compiler.

    \b
    Stages:
      graph    as the model file says it
      planned  after all passes: kernels, layouts, memory
      loops    the loop program of each distinct kernel
      llvm     what is emitted for them
      asm      the machine code

    \b
    Example:
      cnnc inspect resnet18 --after fuse-epilogue
      cnnc inspect resnet18 --changed --diff
      cnnc inspect resnet18 --stage asm --kernel dense --target x86-64-v3
      cnnc inspect resnet18 --stage planned --dot | dot -Tsvg > resnet18.svg
    """
    from cnnc.options import Options

    options = Options.of(**settings)
    each = after_all or changed
    if sum([stage is not None, after is not None, after_all, changed]) > 1:
        raise click.UsageError("--stage, --after, --after-all and --changed exclude each other")
    if diff and not each:
        raise click.UsageError("--diff goes with --after-all or --changed")
    if dot and (each or wanted or (stage or "graph") not in GRAPHS):
        raise click.UsageError("--dot draws one whole graph: --stage graph or planned, or --after")
    if each:
        _print_passes(model, options, wanted, changed, diff)
    elif stage in (None, *GRAPHS):
        _print_graph(_graph(model, options, stage, after), wanted, dot)
    else:
        from cnnc.driver import build

        _print_code(build(model, options), stage or "", wanted)


def _graph(model: str, options: Options, stage: str | None, after: str | None) -> Graph:
    from cnnc.cli.stages import passes_until
    from cnnc.driver import load_graph, optimise, resolve_target

    if after is None and stage != "planned":
        return load_graph(model, options)
    if after is not None:
        options = options.model_copy(update={"passes": passes_until(options.passes, after)})
    graph = load_graph(model, options)
    return optimise(graph, options, resolve_target(options.target))[0]


def _print_graph(graph: Graph, wanted: str | None, dot: bool) -> None:
    from cnnc.cli.dot import graph_dot
    from cnnc.cli.stages import node_lines

    if dot:
        click.echo(graph_dot(graph), nl=False)
    elif wanted is None:
        click.echo(str(graph), nl=False)
    else:
        click.echo("\n".join(node_lines(graph, wanted)))


def _print_passes(
    model: str, options: Options, wanted: str | None, changed: bool, diff: bool
) -> None:
    """Each pass with a header line, which the graph's text form takes as a comment."""
    from cnnc.cli.stages import graph_diff, node_lines
    from cnnc.driver import load_graph, optimise, resolve_target
    from cnnc.passes.base import Pass, PassRecord

    place = 0

    def show(step: Pass, before: Graph, after: Graph, record: PassRecord) -> None:
        nonlocal place
        place += 1
        if changed and not record.changes:
            return
        click.secho(
            f"// {place}. {step}: {record.changes} changes, "
            f"{record.nodes_before} -> {record.nodes_after} nodes, {1e3 * record.seconds:.1f} ms",
            bold=True,
        )
        if diff:
            click.echo(graph_diff(before, after, wanted), nl=False)
        elif wanted is None:
            click.echo(str(after), nl=False)
        else:
            click.echo("\n".join(node_lines(after, wanted, missing_ok=True)))

    optimise(load_graph(model, options), options, resolve_target(options.target), [show])


def _print_code(built: Build, stage: str, wanted: str | None) -> None:
    from cnnc.cli.stages import code_text

    click.echo(code_text(built, stage, wanted), nl=False)
