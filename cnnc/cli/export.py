"""`cnnc export`: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from cnnc.cli.settings import Settings, compiler_options, quiet_option
from cnnc.cli.terminal import progress


@click.command()
@compiler_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to; by default NAME.onnx here.",
)
@click.option("--optimised", is_flag=True, help="After the passes that suit every machine.")
@click.option("--planned", is_flag=True, help="After all passes, to look at; nothing can run it.")
@quiet_option
def export(
    model: str,
    settings: Settings,
    output: Path | None,
    optimised: bool,
    planned: bool,
    quiet: bool,
) -> None:
    """Write MODEL as an ONNX file, with its weights.

    Operators are standard ones. A symbolic batch stays symbolic. With --optimised, batch
    normalisation is folded into weights and what changes nothing is gone.

    With --planned every node is an operator of the domain `cnnc`: with what is fused into it, its
    kernel, its layout and its place in memory as attributes. Look at the file in Netron.

    \b
    Example:
      cnnc export resnet18 -o resnet18.onnx
      cnnc export unet --size H=256 --size W=256
      cnnc export resnet18 --planned -o resnet18-planned.onnx
    """
    if optimised and planned:
        raise click.UsageError("--optimised and --planned exclude each other")
    from cnnc.cli.outputs import check_output
    from cnnc.driver import load_graph, optimise, resolve_target
    from cnnc.frontends.onnx import export_onnx, picture
    from cnnc.options import Options
    from cnnc.runtime.files import replacing

    options = Options.of(**settings)
    with progress(quiet) as say:
        say("parsing")
        graph = load_graph(model, options)
        path = output or Path(f"{graph.name}.onnx")
        check_output(path, model)
        if optimised or planned:
            say("passes")
            chosen = options.model_copy(update={"passes": "portable"}) if optimised else options
            graph, _ = optimise(graph, chosen, resolve_target(options.target))
        say("writing")
        data = (picture if planned else export_onnx)(graph).SerializeToString()
        with replacing(path) as file:
            file.write(data)
    click.echo(f"{path}: {len(data) / 1e6:.1f} MB, {len(graph.nodes)} nodes")
