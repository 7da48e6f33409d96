"""Arguments of ops, blocks, models and initialisers: matched to parameters, checked, explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, TypeVar

from pydantic import ValidationError

from cnnc.frontends.dsl.checks import Settings
from cnnc.frontends.dsl.report import Stop
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.dsl.values import Value

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Given:
    """An argument with its value; `name` is empty for one given by position."""

    name: str
    value: Value
    span: Span


class Fail(Protocol):
    """How to report a problem: a frame's `error`."""

    def __call__(self, code: str, message: str, span: Span, *, help: str = "") -> Stop: ...


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A help text with the nearest of the known names, or all of them if they are few."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    listed = ", ".join(f"`{k}`" for k in known)
    return f"known are {listed}" if 0 < len(known) <= 12 else ""


def match(
    what: str, parameters: Mapping[str, bool], given: Sequence[Given], span: Span, fail: Fail
) -> dict[str, Given]:
    """Arguments by parameter name; `parameters` maps each name to whether it must be given.

    Raises:
        Stop: an argument is unknown, missing or given twice; reported through `fail`.
    """
    found: dict[str, Given] = {}
    order = list(parameters)
    usage = f"{what}({', '.join(n if parameters[n] else f'{n}=...' for n in order)})"
    for position, argument in enumerate(given):
        name = argument.name
        if not name:
            if any(before.name for before in given[:position]):
                message = f"`{what}`: an argument without a name after one with a name"
                raise fail("E0304", message, argument.span, help=f"`{usage}`")
            if position >= len(order):
                message = f"`{what}` takes {len(order)} arguments, this is number {position + 1}"
                raise fail("E0304", message, argument.span, help=f"`{usage}`")
            name = order[position]
        if name not in parameters:
            message = f"`{what}` has no parameter `{name}`"
            raise fail("E0302", message, argument.span, help=did_you_mean(name, order))
        if name in found:
            raise fail("E0304", f"`{what}`: `{name}` is given twice", argument.span)
        found[name] = argument
    missing = [f"`{name}`" for name in order if parameters[name] and name not in found]
    if missing:
        raise fail("E0303", f"`{what}` needs {', '.join(missing)}", span, help=f"`{usage}`")
    return found


def settings_of(what: str, settings: type[S], given: Sequence[Given], span: Span, fail: Fail) -> S:
    """The arguments as a `Settings` value. Raises `Stop` where they do not fit."""
    required = {name: field.is_required() for name, field in settings.model_fields.items()}
    found = match(what, required, given, span, fail)
    try:
        return settings(**{name: argument.value for name, argument in found.items()})
    except ValidationError as error:
        stops = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            reason = problem["msg"].removeprefix("Value error, ")
            stops.append(fail("E0305", f"`{what}`: `{name}` {reason}", found[name].span))
        raise stops[0] from None
