"""Loading a model: reads the text, picks the model, builds its graph, fills its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.arguments import Given, did_you_mean, settings_of
from cnnc.frontends.dsl.bind import bind_weights
from cnnc.frontends.dsl.elaborate import Elaborator, InitCall
from cnnc.frontends.dsl.files import Loader, read_text
from cnnc.frontends.dsl.initialise import INITIALISERS
from cnnc.frontends.dsl.parse import parse
from cnnc.frontends.dsl.report import Abort, Reporter, Stop
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.dsl.values import MAX_NUMBER, Value
from cnnc.ir.graph import Graph


def load_file(
    source: str | Path,
    *,
    parameters: Mapping[str, object] | None = None,
    model: str | None = None,
    init: str | None = None,
) -> Graph:
    """The graph of a model in a `.cnn` file; see `load_text`.

    Imports, weights and maps are looked for beside the file and inside its folder.
    """
    reporter, path = Reporter(), Path(source)
    text = ""
    try:
        text = read_text(path, Span(str(source)), reporter)
    except Stop:
        reporter.check()
    request = _Request(text, str(source), path.parent, path, parameters or {}, model, init)
    return _load(request, reporter)


def load_text(
    text: str,
    filename: str = "<text>",
    *,
    folder: Path | None = None,
    parameters: Mapping[str, object] | None = None,
    model: str | None = None,
    init: str | None = None,
) -> Graph:
    """The graph of a model in the `.cnn` language.

    Args:
        text: The source; it can execute nothing and its expansion is bounded.
        filename: What locations and messages call it.
        folder: Where imports and weights are looked for; without it there can be none.
        parameters: Values for the model's parameters, by name.
        model: Which model, if the text holds several.
        init: The name of an initialiser (`zeros`, `he`, ...) to use in place of the text's own
            `weights` or `init` statement. `zeros` takes no memory.

    Raises:
        ParseError: anything is wrong with the text or what it names; all problems in one error.
    """
    return _load(_Request(text, filename, folder, None, parameters or {}, model, init), Reporter())


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be loaded: the arguments of `load_text`, and the path of the file if it is one."""

    text: str
    filename: str
    folder: Path | None
    path: Path | None
    parameters: Mapping[str, object]
    model: str | None
    init: str | None


def _load(request: _Request, reporter: Reporter) -> Graph:
    graph = None
    try:
        graph = _build(request, reporter)
    except (Stop, Abort):
        pass
    except RecursionError:
        message = "the model is nested too deeply"
        help = "load it from a shallower call stack, or nest its lists and blocks less"
        with suppress(Abort):
            reporter.error("E0407", message, Span(request.filename), help=help)
    reporter.check()
    assert graph is not None  # a Stop or Abort has reported something
    return graph


def _build(request: _Request, reporter: Reporter) -> Graph:
    file = parse(request.text, request.filename, reporter)
    if file is None:
        raise Stop
    chosen = _choose(file, request.model, request.filename, reporter)
    elaborator = Elaborator(reporter, chosen.name)
    loader = Loader(reporter, elaborator, request.folder, request.path)
    names = loader.declare(file, request.folder)
    given = [
        Given(name, _value(name, value, chosen.span, reporter), chosen.span)
        for name, value in request.parameters.items()
    ]
    elaborator.run_model(chosen, names, given)
    if reporter.diagnostics:
        raise Stop
    _fill(elaborator, request, chosen.span, reporter)
    graph = elaborator.builder.finish()
    elaborator.check_ranges(graph)
    return graph


def _choose(file: tree.File, name: str | None, filename: str, reporter: Reporter) -> tree.Block:
    models: dict[str, tree.Block] = {}
    for declaration in file.declarations:
        if isinstance(declaration, tree.Block) and declaration.keyword == "model":
            if declaration.name in models:
                message = f"two models are called `{declaration.name}`"
                raise reporter.error("E0307", message, declaration.span)
            models[declaration.name] = declaration
    if not models:
        help = "a model is `model name { input x: f32[N, 3, 224, 224] ... output y = ... }`"
        raise reporter.error("E0310", "the file has no model", Span(filename), help=help)
    if name is not None and name not in models:
        message = f"the file has no model `{name}`"
        help = did_you_mean(name, list(models))
        raise reporter.error("E0310", message, Span(filename), help=help)
    if name is None and len(models) > 1:
        listed = ", ".join(f"`{n}`" for n in models)
        second = list(models.values())[1].span
        help = "say which one when you load it"
        raise reporter.error("E0310", f"the file has several models: {listed}", second, help=help)
    return models[name] if name is not None else next(iter(models.values()))


def _value(name: str, value: object, span: Span, reporter: Reporter) -> Value:
    """A parameter given from outside as a value of the language."""
    if isinstance(value, list | tuple):
        return tuple(_value(name, item, span, reporter) for item in value)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
        return value
    message = f"the parameter `{name}` cannot be {value!r}"
    help = "a parameter is a number, a string, a truth value or a list of these"
    raise reporter.error("E0305", message, span, help=help)


def _fill(elaborator: Elaborator, request: _Request, span: Span, reporter: Reporter) -> None:
    """Gives the weights their numbers: from a file or an initialiser, by default `he(seed=0)`."""
    statement = elaborator.weights
    if isinstance(statement, tree.Weights) and request.init is None:
        bind_weights(statement, elaborator.slots, elaborator.builder, request.folder, reporter)
        return
    call = statement if isinstance(statement, InitCall) else InitCall("he", (), span)
    if request.init is not None:
        call = InitCall(request.init, (), span)
    if call.name not in INITIALISERS:
        message = f"there is no initialiser `{call.name}`"
        help = did_you_mean(call.name, list(INITIALISERS))
        raise reporter.error("E0301", message, call.span, help=help)
    initialiser = settings_of(
        call.name, INITIALISERS[call.name], call.given, call.span, reporter.error
    )
    initialiser.fill(elaborator.slots, elaborator.builder)
