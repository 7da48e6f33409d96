"""`cnnc compile`: what the optimiser makes of a model."""

from __future__ import annotations

import click

from cnnc.cli.settings import Settings, compiler_options, json_option, quiet_option
from cnnc.cli.terminal import progress, show_json


@click.command()
@compiler_options
@json_option
@quiet_option
def compile(model: str, settings: Settings, as_json: bool, quiet: bool) -> None:
    """Compile MODEL and tell what the compiler did.

    Shows the passes with the number of their changes, the kernels with what is fused into each, its
    algorithm, schedule and predicted time on one thread, the work, the weights, the peak memory and
    the time it took. A model for another target is compiled, too, though it cannot run here.

    \b
    Example:
      cnnc compile resnet50
      cnnc compile unet --size H=256 --size W=256 --json
    """
    from cnnc.codegen.host import can_run, compile_object
    from cnnc.driver import build, finish
    from cnnc.options import Options

    with progress(quiet) as say:
        built = build(model, Options.of(**settings), say)
        if can_run(built.target):
            report = finish(built, say).report()
        else:
            say("native code")
            compile_object(built.module.text, built.target)
            report = built.report
    if as_json:
        show_json(report.json())
    else:
        click.echo(str(report))
