"""`cnnc compile`: what the optimiser makes of a model."""

from __future__ import annotations

from pathlib import Path

import click

from cnnc.cli.settings import Settings, compiler_options, json_option, quiet_option
from cnnc.cli.terminal import progress, show_json


@click.command()
@compiler_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the compiled model to this file, by custom .cnnca.",
)
@json_option
@quiet_option
def compile(
    model: str, settings: Settings, output: Path | None, as_json: bool, quiet: bool
) -> None:
    """Compile MODEL and tell what the compiler did.

    Shows the passes with the number of their changes, the kernels with what is fused into each, its
    algorithm, schedule and predicted time on one thread, the work, the weights, the peak memory and
    the time it took. A model for another target is compiled, too, though it cannot run here.

    A saved model runs without the compiler: `cnnc run FILE`, or `cnnc.load_compiled` in Python.

    \b
    Example:
      cnnc compile resnet50
      cnnc compile unet --size H=256 --size W=256 --json
      cnnc compile resnet50 --target x86-64-v3 --output resnet50.cnnca
    """
    from cnnc.cli.outputs import check_output
    from cnnc.driver import assemble, build, workers
    from cnnc.link import report_of
    from cnnc.options import Options
    from cnnc.runtime.artifact import save

    if output is not None:
        check_output(output, model)
    with progress(quiet) as say:
        with workers() as pool:
            built = build(model, Options.of(**settings), say, pool, lean=True)
            artifact = assemble(built, say)
        if output is not None:
            say("saving")
            save(output, artifact)
    report = report_of(artifact)
    if as_json:
        show_json(report.json())
    else:
        click.echo(str(report))
