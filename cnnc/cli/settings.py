"""Options that several commands share."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import click

from cnnc.cli.terminal import set_color

Command = Callable[..., None]
Settings = dict[str, Any]
"""Keyword arguments for `cnnc.options.Options`, as far as they were given."""

_DIGITS = 1000  # of a size; Python does not read very many


def _assignments(
    read: Callable[[str], Any],
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]:
    """A callback that turns `("H=256", ...)` into `{"H": read("256"), ...}`."""

    def callback(
        context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or not name or not value:
                raise click.BadParameter(f"`{text}` is not of the form NAME=VALUE")
            if name in found:
                raise click.BadParameter(f"`{name}` is given twice")
            found[name] = read(value)
        return found

    return callback


def _size(text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS or int(text) < 1:
        raise click.BadParameter(f"a size is a whole number of at least 1, got `{_shown(text)}`")
    return int(text)


def _value(text: str) -> Any:
    """A parameter's value as the model language writes it; a bare word is a string."""
    if text in ("yes", "no"):
        return text == "yes"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:  # too many digits or brackets
        raise click.BadParameter(f"`{_shown(text)}` cannot be read: {error}") from None


def _elements(text: str) -> Any:
    """Elements of a tensor as JSON: a number or truth value, or lists of them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or too many digits or brackets
        found = None
    if not isinstance(found, list | int | float):
        what = "elements are a number or a list such as [1,-1]"
        raise click.BadParameter(f"{what}, got `{_shown(text)}`")
    return found


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


class Positive(click.FloatRange):
    """A number of at least 0; NaN, which is not below it either, is none."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


_COLOR = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colours; `auto` means on a terminal, unless NO_COLOR is set.",
    expose_value=False,
    is_eager=True,
    callback=lambda context, parameter, mode: set_color(mode),
)

_COMPILER = (
    click.option("--target", metavar="NAME", help="`native` or a preset such as x86-64-v3."),
    click.option("--threads", type=click.IntRange(1, 1024), help="Default: all of this process's."),
    click.option("--passes", metavar="TEXT", help="The pipeline, e.g. `default,-fuse-epilogue`."),
    click.option("--exact", is_flag=True, default=None, help="Sum only as the definition does."),
    click.option("--strict", is_flag=True, default=None, help="Refuse parts that run in NumPy."),
    click.option(
        "--tune",
        type=Positive(),
        metavar="SECONDS",
        help="Measure candidate kernels for so long; choose by what is known. See `cnnc tune`.",
    ),
    click.option(
        "--size",
        "sizes",
        multiple=True,
        metavar="NAME=N",
        callback=_assignments(_size),
        help="A number for a symbolic size, e.g. H=256; repeatable.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=N,N,...",
        callback=_assignments(lambda text: tuple(map(_size, text.split(",")))),
        help="All sizes of an input, e.g. image=1,3,224,224; repeatable.",
    ),
    click.option(
        "--param",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_assignments(_value),
        help="A value for a parameter of the model, e.g. classes=10; repeatable.",
    ),
    click.option(
        "--value",
        "values",
        multiple=True,
        metavar="NAME=LIST",
        callback=_assignments(_elements),
        help="Elements of an ONNX model's input, compiled in, e.g. shape=[1,-1]; repeatable.",
    ),
    click.option(
        "--outputs",
        multiple=True,
        metavar="NAME",
        callback=lambda context, parameter, names: names or None,
        help="A value inside the model to give in place of its outputs; repeatable, takes * and ?.",
    ),
)
_NAMES = (
    "target",
    "threads",
    "passes",
    "exact",
    "strict",
    "tune",
    "sizes",
    "shapes",
    "parameters",
    "values",
    "outputs",
)


def compiler_options(command: Command) -> Command:
    """Adds MODEL and the compiler's options; the command takes `model` and `settings`."""

    @functools.wraps(command)
    def gathered(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in _NAMES}
        settings = {name: value for name, value in chosen.items() if value is not None}
        command(settings=settings, **given)

    decorated: Command = _COLOR(gathered)
    for option in reversed(_COMPILER):
        decorated = option(decorated)
    return click.argument("model")(decorated)


def color_option(command: Command) -> Command:
    """Adds `--color`."""
    return _COLOR(command)


def json_option(command: Command) -> Command:
    """Adds `--json`; the command takes `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(command)


def quiet_option(command: Command) -> Command:
    """Adds `-q`; the command takes `quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")(command)


def batch_option(command: Command) -> Command:
    """Adds `--batch`; the command takes `batch`."""
    return click.option(
        "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in one call."
    )(command)


def input_batch_option(command: Command) -> Command:
    """Adds `--batch` where inputs may be given; the command takes `batch`, None if they decide."""
    return click.option(
        "--batch", type=click.IntRange(1), help="Images in one call. Default: as the inputs, or 1."
    )(command)
