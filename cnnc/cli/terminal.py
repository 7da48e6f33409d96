"""What commands write: data to stdout; progress and errors to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def set_color(mode: str) -> None:
    """Decides on colour for this command: `auto` is for terminals, unless NO_COLOR is set."""
    automatic = False if os.environ.get("NO_COLOR") else None
    click.get_current_context().color = {"always": True, "never": False}.get(mode, automatic)


def show_error(text: str) -> None:
    """Writes an error to stderr, its first word in red."""
    word, colon, rest = text.partition(":")
    click.echo(click.style(word, fg="red", bold=True) + colon + rest, err=True)


def show_warning(text: str) -> None:
    """Writes a warning to stderr."""
    click.echo(click.style("warning", fg="yellow", bold=True) + f": {text}", err=True)


def show_table(lines: list[str]) -> None:
    """Writes the lines of a table, the first of them as its head."""
    click.secho(lines[0], bold=True)
    for line in lines[1:]:
        click.echo(line)


def show_json(data: Any) -> None:
    """Writes plain data as JSON. JSON has no infinity and no NaN: they become null."""
    click.echo(json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells what goes on: one live line on a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console
    from rich.text import Text

    plain = click.get_current_context().color is False
    with Console(stderr=True, no_color=plain or None).status("") as status:
        # As `Text`, because a name such as `stage[1]` is not markup.
        yield lambda words: status.update(Text(words))
