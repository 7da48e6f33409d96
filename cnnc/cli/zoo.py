"""`cnnc zoo`: the models that come with cnnc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnc.cli.settings import color_option, json_option
from cnnc.cli.terminal import show_json, show_table


@click.command()
@click.argument("name", required=False)
@json_option
@color_option
def zoo(name: str | None, as_json: bool) -> None:
    """List the models that come with cnnc, or print the source of one.

    \b
    Example:
      cnnc zoo
      cnnc zoo resnet18 > mine.cnn
    """
    if name is not None:
        _print_source(name, as_json)
        return
    from cnnc.report import table
    from cnnc.sources import zoo_models

    rows = [_row(name, path) for name, path in zoo_models().items()]
    if as_json:
        show_json(rows)
        return
    shown = [
        (
            row["name"],
            ", ".join(row["inputs"]),
            f"{row['parameters'] / 1e6:.2f}",
            "" if row["flops"] is None else f"{row['flops'] / 1e9:.3f}",
        )
        for row in rows
    ]
    show_table(table(("name", "inputs", "million parameters", "GFLOP"), shown))


def _print_source(name: str, as_json: bool) -> None:
    from cnnc.ir.location import Diagnostic, OptionError, suggest
    from cnnc.sources import zoo_models

    models = zoo_models()
    if name not in models:
        what = f"the zoo has no model `{name}`"
        raise OptionError(Diagnostic(what, help=suggest(name, models)))
    source = models[name].read_text(encoding="utf-8")
    if as_json:
        show_json({"name": name, "source": source})
    else:
        click.echo(source, nl=False)


def _row(name: str, path: Path) -> dict[str, Any]:
    from cnnc.cli.graphs import flops_of
    from cnnc.frontends.dsl.load import load_file
    from cnnc.frontends.weights import trainable

    graph = load_file(path, init="zeros")  # which takes no memory
    return {
        "name": name,
        "inputs": [f"{value}: {graph.types[value]}" for value in graph.inputs],
        "parameters": trainable(graph),
        "flops": flops_of(graph),
    }
