"""Weights from files: every tensor of the file to one weight of the model, and the other way."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.expand import Slot
from cnnc.frontends.dsl.files import contained, read_text
from cnnc.frontends.dsl.report import Reporter
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.weights import read_tensors
from cnnc.ir.graph import Builder
from cnnc.ir.location import CnncError
from cnnc.ir.op import Array


def bind_weights(
    statement: tree.Weights,
    slots: Mapping[str, Slot],
    builder: Builder,
    folder: Path | None,
    reporter: Reporter,
) -> None:
    """Fills the weights of the graph in `builder` from the file of a `weights` statement.

    `by name`: the file's names are the weights' paths; a `map` file translates. `by order`: the
    k-th tensor of the file is the k-th weight of the model. Everything that is missing, has
    another shape or is left over is listed in one error.

    Raises:
        Stop: reported; the files or the names do not fit.
    """
    span = statement.span
    path = contained(folder, folder, statement.file, span, reporter)
    try:
        tensors = read_tensors(path)
    except CnncError as error:
        first = error.diagnostics[0]
        raise reporter.error("E0504", first.message, span, help=first.help) from None
    translate: dict[str, str] = {}
    if statement.map:
        file = contained(folder, folder, statement.map, span, reporter)
        translate, ignored = _read_map(file, statement.map, span, reporter)
        _check_map(translate, slots, statement.map, span, reporter)
        tensors = {
            name: array
            for name, array in tensors.items()
            if not any(fnmatchcase(name, pattern) for pattern in ignored)
        }
    if statement.by == "order":
        wanted = dict(zip(slots, tensors, strict=False))
    else:
        wanted = {weight: translate.get(weight, weight) for weight in slots}
    _check(statement, slots, tensors, wanted, reporter)
    for weight, name in wanted.items():
        builder.constants[weight] = tensors[name]


def _check(
    statement: tree.Weights,
    slots: Mapping[str, Slot],
    tensors: Mapping[str, Array],
    wanted: Mapping[str, str],
    reporter: Reporter,
) -> None:
    missing, shapes = [], []
    for weight, slot in slots.items():
        name, shape = wanted.get(weight), slot.weight.shape
        called = f"`{weight}`" if name in (weight, None) else f"`{weight}` (`{name}`)"
        if name is None or name not in tensors:
            missing.append(f"missing: {called} {list(shape)}, asked for at {slot.span}")
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            shapes.append(f"shape: {called} is {found} in the file, {list(shape)} at {slot.span}")
    used = set(wanted.values())
    unused = [
        f"unused: `{name}` {list(array.shape)}"
        for name, array in tensors.items()
        if name not in used
    ]
    if missing or shapes or unused:
        counts = f"{len(missing)} missing, {len(shapes)} of another shape, {len(unused)} unused"
        raise reporter.error(
            "E0501",
            f"the weights in `{statement.file}` do not match the model: {counts}",
            statement.span,
            notes=[*missing, *shapes, *unused],
            help='rename with `map "names.txt"` (lines `path = name in the file`, `_ = pattern` '
            "to ignore), bind `by order`, or give paths with `@name`",
        )


def _read_map(
    path: Path, shown: str, span: Span, reporter: Reporter
) -> tuple[dict[str, str], list[str]]:
    """({path: name in the file}, [patterns of names to ignore]) of a map file."""
    names: dict[str, str] = {}
    ignored: list[str] = []
    problems = []
    for number, line in enumerate(read_text(path, span, reporter).splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        ours, sign, theirs = (part.strip() for part in text.partition("="))
        if not (ours and sign and theirs):
            problems.append(f"{shown}:{number}: a line must be `path = name in the file`")
        elif ours == "_":
            ignored.append(theirs)
        elif ours in names:
            problems.append(f"{shown}:{number}: `{ours}` is mapped twice")
        else:
            names[ours] = theirs
    if problems:
        message = f"the map `{shown}` cannot be read"
        raise reporter.error("E0507", message, span, notes=problems)
    return names, ignored


def _check_map(
    names: Mapping[str, str],
    slots: Mapping[str, Slot],
    shown: str,
    span: Span,
    reporter: Reporter,
) -> None:
    unknown = [f"the model has no weight `{name}`" for name in names if name not in slots]
    if unknown:
        message = f"the map `{shown}` names weights that are not there"
        raise reporter.error("E0507", message, span, notes=unknown)
