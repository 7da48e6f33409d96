"""`cnnc tune`: which candidate kernels are fastest here, measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import Settings, compiler_options, json_option, quiet_option
from cnnc.cli.terminal import progress, show_json, show_table

if TYPE_CHECKING:
    from cnnc.model import CompiledModel
    from cnnc.tune import Trial

_SECONDS = 60.0  # to spend, unless --tune says otherwise
_RUNS = 15  # of each model in a turn
_TURNS = 5


@click.command()
@compiler_options
@json_option
@quiet_option
def tune(model: str, settings: Settings, as_json: bool, quiet: bool) -> None:
    """Measure candidate kernels of MODEL, and remember their times.

    For each distinct layer the few candidates that the cost model likes best are timed on one
    thread, in the model itself, for up to --tune seconds (60 if not given). The times are kept in a
    file, by processor and layer; `--tune` lets a compilation choose by them. The cost model is
    good, so this helps by a few percent. Times that the file has are not measured again:
    `cnnc bench resnet50 --tune 1` after the first example uses what is there.

    \b
    Example:
      cnnc tune resnet50
      cnnc tune resnet50 --tune 20 --threads 2
    """
    from dataclasses import asdict

    from cnnc import driver
    from cnnc.codegen.host import native_target
    from cnnc.options import Options
    from cnnc.record import record_path
    from cnnc.tune import tune as measure

    settings.setdefault("tune", _SECONDS)
    options = Options.of(**settings)
    with progress(quiet) as say:
        trials = measure(model, options, say)
        plain = driver.compile(model, progress=say, **{**settings, "tune": 0.0})
        tuned = driver.compile(model, progress=say, **settings)
        say("comparing")
        before, after = _compare(plain, tuned)
    path = str(record_path(native_target()))
    error = _median_error(trials)
    if as_json:
        show_json(
            {
                "record": path,
                "seconds": {"untuned": before, "tuned": after},
                "median_error_of_predictions": error,
                "trials": [asdict(trial) for trial in trials],
            }
        )
        return
    _show(trials)
    click.echo(f"predictions are off by {error:.1%} (median of {len(trials)} kernels)")
    click.echo(f"untuned {1e3 * before:.3f} ms, tuned {1e3 * after:.3f} ms: {before / after:.3f} x")
    click.echo(f"remembered in {path}; --tune lets a compilation use it")


def _compare(plain: CompiledModel, tuned: CompiledModel) -> tuple[float, float]:
    """Median seconds of a call of both, taking turns."""
    from time import perf_counter

    from cnnc.runtime.inputs import random_inputs

    types = {tensor.name: tensor.type for tensor in plain.artifact.manifest.inputs}
    symbols = {d.name for type in types.values() for d in type.shape if not isinstance(d, int)}
    inputs = random_inputs({n: t.bind(dict.fromkeys(symbols, 1)) for n, t in types.items()})
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_TURNS):
        for which, model in ((False, plain), (True, tuned)):
            model.run(inputs)
            for _ in range(_RUNS):
                start = perf_counter()
                model.run(inputs)
                times[which].append(perf_counter() - start)
    return median(times[False]), median(times[True])


def _median_error(trials: Sequence[Trial]) -> float:
    """How far predictions are from measurements, as a part of those."""
    errors = [abs(t.predicted_us - t.measured_us) / t.measured_us for t in trials]
    return median(errors) if errors else 0.0


def _show(trials: Sequence[Trial]) -> None:
    from cnnc.report import table

    rows: list[tuple[Any, ...]] = []
    best = {t.layer: min(o.measured_us for o in trials if o.layer == t.layer) for t in trials}
    for trial in trials:
        marks = [
            "model" if trial.chosen else "",
            "tuned" if trial.measured_us == best[trial.layer] else "",
        ]
        rows.append(
            (
                f"{trial.node} x{trial.count}" if trial.chosen else "",
                trial.kernel,
                f"{trial.predicted_us:.1f}",
                f"{trial.measured_us:.1f}",
                " + ".join(filter(None, marks)),
            )
        )
    show_table(table(("layer", "kernel", "predicted us", "measured", "chosen by"), rows))
