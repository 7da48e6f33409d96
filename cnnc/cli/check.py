"""`cnnc check`: whether a model is right, without compiling it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import Settings, compiler_options, json_option
from cnnc.cli.terminal import show_json

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph, Node
    from cnnc.options import Options


@click.command()
@compiler_options
@json_option
@click.pass_context
def check(context: click.Context, model: str, settings: Settings, as_json: bool) -> None:
    """Read and verify MODEL, and report every problem at once.

    A model that is right shows its inputs, outputs, parameters and work, and what would run in
    NumPy for lack of a native kernel; under --strict that is a problem, too. Weights that look
    wrong are named: NaN, infinities, denormal numbers, and weights that are all zero.

    \b
    Example:
      cnnc check mine.onnx --shape image=1,3,224,224
      cnnc check mine.cnn --strict --json
    """
    from cnnc.driver import check_native, load_graph, not_native
    from cnnc.ir.location import CnncError
    from cnnc.ir.verify import check as verify
    from cnnc.options import Options

    options = Options.of(**settings)
    try:
        graph = load_graph(model, options)
        verify(graph)
        planned = _planned(graph, options)
        if options.strict and planned:
            check_native(planned)
    except CnncError as error:
        if not as_json:
            raise
        show_json({"ok": False, "problems": [asdict(d) for d in error.diagnostics]})
        context.exit(1)
    summary = _summary(graph, not_native(planned) if planned else [])
    if as_json:
        show_json(summary)
    else:
        _show(summary)


def _planned(graph: Graph, options: Options) -> Graph | None:
    """The graph with kernels; None while sizes are open."""
    from cnnc.cli.graphs import open_sizes
    from cnnc.driver import optimise, resolve_target

    if open_sizes(graph):
        return None
    planned, _ = optimise(graph, options, resolve_target(options.target))
    return planned


def _summary(graph: Graph, slow: list[Node]) -> dict[str, Any]:
    from cnnc.cli.graphs import flops_of, input_types, open_sizes, output_types, tensor_data
    from cnnc.cli.weights import suspicious_weights
    from cnnc.frontends.weights import trainable

    return {
        "ok": True,
        "model": graph.name,
        "inputs": tensor_data(input_types(graph)),
        "outputs": tensor_data(output_types(graph)),
        "parameters": trainable(graph),
        "nodes": len(graph.nodes),
        "flops": flops_of(graph),
        "open_sizes": sorted(open_sizes(graph)),
        "suspicious": [asdict(finding) for finding in suspicious_weights(graph)],
        "not_native": [{"name": node.title, "op": node.op.name} for node in slow],
    }


def _show(summary: dict[str, Any]) -> None:
    click.secho(f"{summary['model']}: fine", bold=True)
    for kind in ("inputs", "outputs"):
        for tensor in summary[kind]:
            shape = ", ".join(map(str, tensor["shape"]))
            click.echo(f"  {kind[:-1]:<11}{tensor['name']}: {tensor['dtype']}[{shape}]")
    click.echo(f"  {'nodes':<11}{summary['nodes']}")
    click.echo(f"  {'parameters':<11}{summary['parameters']:,}")
    if summary["open_sizes"]:
        sizes = " ".join(f"--size {name}=..." for name in summary["open_sizes"])
        click.echo(f"  {'open sizes':<11}{', '.join(summary['open_sizes'])}: compile with {sizes}")
    else:
        click.echo(f"  {'work':<11}{summary['flops'] / 1e9:.3f} GFLOP for one image")
    for found in summary["suspicious"]:
        what = f"{found['what']} in `{found['weight']}` ({found['count']:,} of {found['size']:,})"
        click.echo(f"  suspicious {what}: {found['help']}")
    for node in summary["not_native"]:
        click.echo(f"  in NumPy   {node['op']} `{node['name']}` has no native kernel (slow)")
