"""`cnnc run`: a model on given inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.settings import (
    Settings,
    compiler_options,
    input_batch_option,
    json_option,
    quiet_option,
)
from cnnc.cli.terminal import progress, show_json

if TYPE_CHECKING:
    from cnnc.ir.op import Array
    from cnnc.ir.types import TensorType
    from cnnc.model import CompiledModel


@click.command()
@compiler_options
@click.option(
    "--input", "specs", multiple=True, metavar="[NAME=]WHAT", required=True, help="See above."
)
@click.option(
    "--tap",
    "taps",
    multiple=True,
    metavar="NAME",
    help="A value inside the model to show as well; repeatable, takes * and ?.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all outputs to this .npz file.",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes shown.")
@input_batch_option
@click.option("--no-cache", is_flag=True, help="Neither look for the compiled model nor keep it.")
@json_option
@quiet_option
def run(
    model: str,
    settings: Settings,
    specs: tuple[str, ...],
    taps: tuple[str, ...],
    output: Path | None,
    top: int,
    batch: int | None,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL on inputs and show its outputs.

    MODEL may also be a file that `cnnc compile --output` wrote. Other models are compiled when they
    are first run, and then taken from the cache (see `cnnc cache`).

    An input is `random` (seeded), `zeros`, a .npy or .npz file, or an image (.png, .jpg, ...).
    NAME= says which input it is for, where there are several; an .npz without NAME= holds them all
    by name. An image is resized to the input's height and width, converted to its number of
    channels (1 grey, 3 RGB, 4 RGBA) and scaled to 0..1; nothing else happens to it.

    --tap and --outputs name values inside the model, by what `cnnc inspect` calls them or the model
    file does. --tap shows them beside the outputs, --outputs instead of those.

    Of an output [N, K] the largest classes are shown, of others shape, minimum and maximum.

    \b
    Example:
      cnnc run resnet18 --input cat.png --top 3
      cnnc run resnet18 --input cat.png --tap "stage[0]*relu*" --output inside.npz
      cnnc run unet --size H=256 --size W=256 --input image=random --output mask.npz
    """
    from cnnc.cli.arrays import read_inputs, write_outputs
    from cnnc.runtime.inputs import check_inputs

    if taps:
        settings["taps"] = taps
    settings["cache"] = not no_cache
    if output is not None:
        _check_output(output, specs)
    with progress(quiet) as say:
        compiled = _compiled(model, settings)
        if compiled is None:
            compiled, inputs = _compile(model, settings, specs, batch, say)
        else:
            inputs = read_inputs(specs, _types(compiled, batch or 1))
            if batch is not None:
                check_inputs(_types(compiled, batch), inputs)
        outputs = compiled.run(inputs)
    if output is not None:
        write_outputs(output, outputs)
    rows = {name: _summary(array, top) for name, array in outputs.items()}
    if as_json:
        show_json(rows)
    else:
        for name, row in rows.items():
            _show(name, row)


def _check_output(output: Path, specs: Sequence[str]) -> None:
    """Raises `CnncError` if outputs cannot go to this file; `specs` are what `--input` says."""
    from cnnc.cli.outputs import check_output
    from cnnc.ir.location import Diagnostic, InputError

    if output.suffix != ".npz":
        what = f"outputs are written as .npz, not to `{output}`"
        raise InputError(Diagnostic(what, help=f"say --output {output.with_suffix('.npz')}"))
    check_output(output, *(part for spec in specs for part in (spec, spec.partition("=")[2])))


def _compiled(model: str, settings: Settings) -> CompiledModel | None:
    """The model if it has been compiled already: from its file, or from the cache."""
    from cnnc.cache import find
    from cnnc.ir.location import OptionError
    from cnnc.link import load_compiled
    from cnnc.runtime.artifact import SUFFIX

    if Path(model).suffix != SUFFIX:
        return find(model, **settings)
    late = [name for name in settings if name not in ("threads", "cache") and settings[name]]
    if late:
        raise OptionError(f"`{model}` is compiled already, it is too late for: {', '.join(late)}")
    return load_compiled(model, settings.get("threads"))


def _compile(
    model: str,
    settings: Settings,
    specs: Sequence[str],
    batch: int | None,
    say: Callable[[str], None],
) -> tuple[CompiledModel, dict[str, Array]]:
    """The model and its inputs, which are read and checked first: compiling is the long part."""
    from cnnc.cache import compile
    from cnnc.cli.arrays import read_inputs
    from cnnc.cli.graphs import input_types, load_bound
    from cnnc.options import Options
    from cnnc.runtime.inputs import check_inputs

    options = Options.of(**settings)
    say("parsing")
    graph, _ = load_bound(model, options)
    inputs = read_inputs(specs, input_types(graph, batch or 1))
    check_inputs(input_types(graph, batch), inputs)
    return compile(model, progress=say, **settings), inputs


def _types(model: CompiledModel, batch: int) -> dict[str, TensorType]:
    """What the model takes, for `batch` images."""
    from cnnc.cli.arrays import put_batch

    types = {tensor.name: tensor.type for tensor in model.artifact.manifest.inputs}
    symbols = {d.name for t in types.values() for d in t.shape if not isinstance(d, int)}
    return put_batch(types, symbols, batch)


def _summary(array: Array, top: int) -> dict[str, Any]:
    """Shape and range of an output, and its largest classes for each image if it has any."""
    summary: dict[str, Any] = {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": array.min().item() if array.size else None,
        "max": array.max().item() if array.size else None,
    }
    if array.ndim == 2:
        order = (-array.astype("float64")).argsort(axis=1, kind="stable")[:, :top]
        summary["top"] = [
            [{"class": int(k), "value": image[k].item()} for k in best]
            for best, image in zip(order, array, strict=True)
        ]
    return summary


def _show(name: str, row: dict[str, Any]) -> None:
    shape = ", ".join(map(str, row["shape"]))
    extent = "" if row["min"] is None else f"  min {row['min']:.6g}  max {row['max']:.6g}"
    click.echo(click.style(name, bold=True) + f": {row['dtype']}[{shape}]{extent}")
    for i, image in enumerate(row.get("top", ())):
        if len(row["top"]) > 1:
            click.echo(f"  image {i}")
        for entry in image:
            click.echo(f"  class {entry['class']:<5} {entry['value']:.6g}")
