"""`cnnc compare`: whether a compiled model gives what others give."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import (
    Positive,
    Settings,
    compiler_options,
    input_batch_option,
    json_option,
    quiet_option,
)
from cnnc.cli.terminal import progress, show_json, show_table

if TYPE_CHECKING:
    from cnnc.cli.measure import Outputs
    from cnnc.ir.graph import Graph
    from cnnc.ir.op import Array
    from cnnc.options import Options

TOLERANCE = 1e-3  # of an output's range


@click.command()
@compiler_options
@click.option(
    "--against",
    type=click.Choice(["reference", "onnxruntime"]),
    default="reference",
    show_default=True,
    help="The NumPy meaning of the model, or ONNX Runtime on the same ONNX file.",
)
@click.option("--input", "specs", multiple=True, metavar="[NAME=]WHAT", help="As for `cnnc run`.")
@click.option("--layers", is_flag=True, help="Compare what every kernel gives, in order.")
@click.option(
    "--tolerance",
    type=Positive(),
    metavar="FLOAT",
    default=TOLERANCE,
    show_default=True,
    help="Of an output's range.",
)
@input_batch_option
@json_option
@quiet_option
@click.pass_context
def compare(
    context: click.Context,
    model: str,
    settings: Settings,
    against: str,
    specs: tuple[str, ...],
    layers: bool,
    tolerance: float,
    batch: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL and something else on the same inputs, and compare.

    Shows how far their outputs differ. Inputs are seeded random numbers, unless --input says
    otherwise. Exit code 1 if an output differs by more than the tolerance, or one side is not
    finite where the other is.

    With --layers the results of all kernels are compared, and the first one beyond the tolerance is
    marked. What is fused into a kernel is not seen apart: -fuse-epilogue in --passes shows it.

    \b
    Example:
      cnnc compare mine.onnx --against onnxruntime --layers
      cnnc compare resnet18 --input cat.png
    """
    from cnnc.cli.arrays import read_inputs
    from cnnc.cli.graphs import input_types, load_bound
    from cnnc.driver import build, finish, workers
    from cnnc.options import Options
    from cnnc.runtime.inputs import check_inputs, random_inputs
    from cnnc.runtime.reference import evaluate

    with progress(quiet) as say:
        say("parsing")
        graph, options = load_bound(model, Options.of(**settings))
        types = input_types(graph, batch or 1)
        given = read_inputs(specs, types) if specs else random_inputs(types)
        check_inputs(input_types(graph, batch), given)  # before the long part
        if layers:
            graph = _with_layers(graph, options)
        if against == "reference":
            say("reference")
            wanted = evaluate(graph, given)
        else:
            say("ONNX Runtime")
            wanted = _onnxruntime(model, graph, given)
        with workers() as pool:
            compiled = finish(build(graph, options, say, pool, lean=True), say)
        found = compiled.run(given)
    rows = [_row(name, array, found[name], tolerance) for name, array in wanted.items()]
    ok = all(row["ok"] for row in rows)
    if as_json:
        show_json({"ok": ok, "against": against, "outputs": rows})
    else:
        _show(rows, against)
    context.exit(0 if ok else 1)


def _with_layers(graph: Graph, options: Options) -> Graph:
    """The graph with the results of all its kernels as outputs, and then its own.

    Passes keep the meaning of a value's name, so that a value which is left after them can be
    compared with the one of the graph as it was written.
    """
    from cnnc.driver import optimise, resolve_target
    from cnnc.taps import put_outputs

    planned, _ = optimise(graph, options, resolve_target(options.target))
    results = [result for node in planned.nodes for result in node.results]
    inside = [r for r in results if r in graph.types and r not in graph.output_values]
    tapped = put_outputs(graph, (), inside)
    count = len(graph.outputs)
    return replace(tapped, outputs=(*tapped.outputs[count:], *tapped.outputs[:count]))


def _row(name: str, wanted: Array, found: Array, tolerance: float) -> dict[str, Any]:
    from cnnc.cli.measure import errors

    if wanted.shape != found.shape:
        return {"output": name, "max_abs": nan, "max_rel": nan, "ok": False}
    absolute, relative = errors({name: wanted}, {name: found})
    ok = relative <= tolerance  # false for NaN
    return {"output": name, "max_abs": absolute, "max_rel": relative, "ok": ok}


def _show(rows: list[dict[str, Any]], against: str) -> None:
    from cnnc.report import table

    first = next((row for row in rows if not row["ok"]), None)
    verdicts = ["fine" if r["ok"] else "DIFFERS FIRST" if r is first else "DIFFERS" for r in rows]
    shown = [
        (row["output"], f"{row['max_abs']:.3g}", f"{row['max_rel']:.3g}", verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    show_table(table(("output", f"largest error to {against}", "of the range", ""), shown))


def _onnxruntime(model: str, graph: Graph, inputs: Outputs) -> Outputs:
    """The outputs of ONNX Runtime: of the model's own file if that is ONNX, else of an export."""
    from cnnc.ir.location import CnncError, Diagnostic

    try:
        import onnxruntime
    except ImportError:
        what = "comparing needs the `onnxruntime` package"
        raise CnncError(Diagnostic(what, help='pip install "cnnc[bench]"')) from None
    source = _with_outputs(model, graph) if Path(model).suffix == ".onnx" else _exported(graph)
    try:
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # its exceptions have no common base
        help = "compare with the NumPy meaning instead: --against reference"
        what = f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}"
        raise CnncError(Diagnostic(what, help=help)) from None


def _exported(graph: Graph) -> bytes:
    from cnnc.frontends.onnx import export_onnx

    return bytes(export_onnx(graph).SerializeToString())


def _with_outputs(model: str, graph: Graph) -> str | bytes:
    """The model's file; or its bytes, if it shall give more than its own outputs."""
    import onnx

    read = onnx.load(model, load_external_data=False)
    own = {output.name for output in read.graph.output}
    wanted = [name for name, _ in graph.outputs]
    if own == set(wanted):
        return model
    onnx.load_external_data_for_model(read, str(Path(model).parent))
    computed = {name for node in read.graph.node for name in node.output}
    del read.graph.output[:]
    read.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n in own | computed)
    return bytes(read.SerializeToString())
