"""`cnnc bench`: native code against the NumPy reference, for speed and for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import (
    Settings,
    batch_option,
    compiler_options,
    json_option,
    quiet_option,
)
from cnnc.cli.terminal import progress, show_error, show_json, show_table, show_warning

if TYPE_CHECKING:
    from cnnc.cli.measure import Layer, Result
    from cnnc.report import Report


@click.command()
@compiler_options
@batch_option
@click.option(
    "--repeats", type=click.IntRange(1), default=20, show_default=True, help="Native runs."
)
@click.option("--layers", is_flag=True, help="Also the time of each kernel.")
@json_option
@quiet_option
@click.pass_context
def bench(
    context: click.Context,
    model: str,
    settings: Settings,
    batch: int,
    repeats: int,
    layers: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compile MODEL, then compare native code with the NumPy reference.

    Both run on the same seeded input, the reference with as many threads as NumPy's BLAS takes,
    whatever --threads says. Times are medians, native and reference runs taking turns. The peak of
    the processor's multiply-adds is measured in the same run, and (on Linux) what other processes
    take during the runs: threads that wait for each other suffer much from one busy
    neighbour. The exit code is 1 if the largest error exceeds a thousandth of the output's range.

    GFLOP/s count the operations of the definition: Winograd does with fewer, so that a layer may
    pass 100 % of the peak. Predicted times assume that the threads share the work evenly.

    \b
    Example:
      cnnc bench resnet50
      cnnc bench mobilenet_v2 --threads 1 --layers
    """
    from cnnc.cli.graphs import load_bound
    from cnnc.cli.measure import TOLERANCE, measure, profile
    from cnnc.driver import build, finish, workers
    from cnnc.options import Options

    options = Options.of(**settings)
    with progress(quiet) as say:
        say("parsing")
        graph, options = load_bound(model, options)
        with workers() as pool:
            compiled = finish(build(graph, options, say, pool, lean=True), say)
        say("measuring")
        result = measure(graph, compiled, batch, repeats)
        rows = profile(graph, compiled, result) if layers else ()
    report = compiled.report()
    if as_json:
        show_json(_data(report, result, rows))
    else:
        _show(report, result, rows)
    if result.is_disturbed:
        show_warning(
            f"other processes took {result.foreign_cores:.2f} cores during the runs: "
            "these times say little about the machine or the model"
        )
    if not result.is_right:
        show_error(f"error: the answers differ by more than {TOLERANCE:g} of the output's range")
        context.exit(1)


def _data(report: Report, result: Result, layers: tuple[Layer, ...]) -> dict[str, Any]:
    from dataclasses import asdict

    derived = {
        "speed_up": result.speed_up,
        "gflops": result.gflops,
        "peak_fraction": result.peak_fraction,
        "batch_ratio": result.batch_ratio,
        "is_right": result.is_right,
        "is_disturbed": result.is_disturbed,
    }
    data = {"compile": report.json(), "result": {**asdict(result), **derived}}
    return data | ({"layers": [asdict(layer) for layer in layers]} if layers else {})


def _show(report: Report, result: Result, layers: tuple[Layer, ...]) -> None:
    for line in report.summary():
        click.echo(line)
    done = [(row.changes, row.description) for row in report.passes if row.changes]
    for changes, description in done:
        click.echo(f"  {changes:>5} changes  {description}")
    click.echo()
    images, threads = _count(result.batch, "image"), _count(result.threads, "thread")
    for name, seconds, best, runs, what in (
        (
            "reference",
            result.reference_seconds,
            result.reference_best,
            result.reference_runs,
            "NumPy",
        ),
        ("native", result.native_seconds, result.native_best, result.native_runs, threads),
    ):
        click.echo(
            f"{name:<10}{1e3 * seconds:>10.3f} ms  best {1e3 * best:.3f} ms of "
            f"{_count(runs, 'run')}: {images}, {what}"
        )
    click.secho(f"speed-up  {result.speed_up:>10.1f} x", bold=True)
    click.echo(
        f"rate      {result.gflops:>10.1f} GFLOP/s, {100 * result.peak_fraction:.0f} % of the "
        f"{result.peak_gflops:.0f} GFLOP/s that {_count(result.threads, 'core')} can reach"
    )
    if result.batch_ratio is not None:
        click.echo(
            f"batch     {result.batch_ratio:>10.2f} of the time of {result.batch} calls with one "
            "image, which took turns"
        )
    click.echo(
        f"error     {result.max_abs_error:>10.1e} absolute, "
        f"{result.max_rel_error:.1e} of the output's range"
    )
    if layers:
        click.echo()
        _show_layers(layers)


def _show_layers(layers: tuple[Layer, ...]) -> None:
    from cnnc.report import table

    head = ("kernel", "op", "us", "% of time", "predicted us", "GFLOP/s", "% of peak", "algorithm")
    total = sum(layer.seconds for layer in layers) or 1.0
    rows = [
        (
            layer.name,
            layer.op,
            f"{1e6 * layer.seconds:.1f}",
            f"{100 * layer.seconds / total:.1f}",
            f"{1e6 * layer.predicted_seconds:.1f}",
            f"{layer.gflops:.1f}",
            f"{100 * layer.peak_fraction:.0f}",
            layer.kernel,
        )
        for layer in layers
    ]
    show_table(table(head, rows))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
