"""`cnnc compare`: whether a compiled model gives what others give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import (
    Settings,
    batch_option,
    compiler_options,
    json_option,
    quiet_option,
)
from cnnc.cli.terminal import progress, show_json, show_table

if TYPE_CHECKING:
    from cnnc.cli.measure import Outputs
    from cnnc.ir.graph import Graph

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
@click.option(
    "--tolerance", type=float, default=TOLERANCE, show_default=True, help="Of an output's range."
)
@batch_option
@json_option
@quiet_option
@click.pass_context
def compare(
    context: click.Context,
    model: str,
    settings: Settings,
    against: str,
    specs: tuple[str, ...],
    tolerance: float,
    batch: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL and something else on the same inputs, and show how far their outputs differ.

    Inputs are seeded random numbers, unless --input says otherwise. Exit code 1 if an output
    differs by more than the tolerance, or one side is not finite where the other is.

    \b
    Example:
      cnnc compare mine.onnx --against onnxruntime
      cnnc compare resnet18 --input cat.png
    """
    from cnnc.cli.arrays import random_inputs, read_inputs
    from cnnc.cli.graphs import input_types, load_bound
    from cnnc.cli.measure import errors
    from cnnc.driver import build, finish
    from cnnc.options import Options
    from cnnc.runtime.inputs import check_inputs
    from cnnc.runtime.reference import evaluate

    with progress(quiet) as say:
        say("parsing")
        graph, options = load_bound(model, Options.of(**settings))
        types = input_types(graph, batch)
        given = read_inputs(specs, types) if specs else random_inputs(types)
        check_inputs(input_types(graph), given)  # before the long part
        if against == "reference":
            say("reference")
            wanted = evaluate(graph, given)
        else:
            say("ONNX Runtime")
            wanted = _onnxruntime(model, graph, given)
        found = finish(build(graph, options, say), say).run(given)
    rows = []
    for name, array in wanted.items():
        absolute, relative = errors({name: array}, {name: found[name]})
        fits = array.shape == found[name].shape and relative <= tolerance  # false for NaN
        rows.append({"output": name, "max_abs": absolute, "max_rel": relative, "ok": fits})
    ok = all(row["ok"] for row in rows)
    if as_json:
        show_json({"ok": ok, "against": against, "outputs": rows})
    else:
        _show(rows, against)
    context.exit(0 if ok else 1)


def _show(rows: list[dict[str, Any]], against: str) -> None:
    from cnnc.report import table

    shown = [
        (
            row["output"],
            f"{row['max_abs']:.3g}",
            f"{row['max_rel']:.3g}",
            "fine" if row["ok"] else "DIFFERS",
        )
        for row in rows
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
    if Path(model).suffix == ".onnx":
        source: str | bytes = model
    else:
        from cnnc.frontends.onnx import export_onnx

        source = export_onnx(graph).SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
