"""Files around a model: reading sources, staying inside the folder, imports.

A file may name other files (imports, weights, maps) only by relative paths that stay inside the
folder of the model that is loaded, links resolved.
"""

from __future__ import annotations

from pathlib import Path

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.arguments import did_you_mean
from cnnc.frontends.dsl.evaluate import Evaluator, Frame
from cnnc.frontends.dsl.naming import Scope
from cnnc.frontends.dsl.parse import MAX_TEXT, VERSION, parse
from cnnc.frontends.dsl.report import Abort, Reporter, Stop
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.dsl.values import BlockValue, Names, Value


def read_text(path: Path, span: Span, reporter: Reporter, limit: int = 4 * MAX_TEXT) -> str:
    """The text of a file of at most `limit` bytes. Raises `Stop` after reporting why not."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise reporter.error("E0502", f"there is no file `{span.file}`", Span(span.file)) from None
    except OSError as error:
        message = f"cannot read `{path.name}`: {error.strerror or error}"
        raise reporter.error("E0504", message, span) from None
    if len(data) > limit:
        message = f"`{path.name}` is larger than {limit} bytes"
        raise reporter.error("E0106", message, span)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"`{path.name}` is not text: byte {error.start} is not UTF-8"
        raise reporter.error("E0106", message, span) from None


def contained(
    folder: Path | None, base: Path | None, name: str, span: Span, reporter: Reporter
) -> Path:
    """The file `name` relative to `base`, inside `folder`. Raises `Stop` where it is not.

    Raises `Stop` too if the file does not exist.
    """
    if folder is None or base is None:
        message = f"a text without a folder cannot name the file `{name}`"
        raise reporter.error("E0503", message, span, help="load the model from a file")
    try:
        path = (base / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and "\0" not in name
        exists = inside and path.is_file()
    except (OSError, ValueError, RuntimeError):
        inside = exists = False
    if not inside or Path(name).is_absolute():
        message = f"`{name}` is not inside the folder of the model"
        help = "use a path relative to the file, without `..` beyond the model's folder"
        raise reporter.error("E0503", message, span, help=help)
    if not exists:
        help = ""
        if Path(name).suffix in (".safetensors", ".npz"):
            help = "put the file there, or write `init he(seed=0)` for seeded random weights"
        message = f"there is no file `{name}` beside the model"
        raise reporter.error("E0502", message, span, help=help)
    return path


class Loader:
    """Reads what a file imports; `evaluator` computes the constants.

    `folder` is where imports may come from, `file` the file that is loaded, if it is one.
    """

    def __init__(
        self, reporter: Reporter, evaluator: Evaluator, folder: Path | None, file: Path | None
    ) -> None:
        self.reporter = reporter
        self.evaluator = evaluator
        self.folder = folder
        self._loaded: dict[Path, Names] = {}
        self._loading: list[Path] = [file.resolve()] if file else []

    def declare(self, file: tree.File, base: Path | None) -> Names:
        """The blocks and constants of a file; `base` is the folder that it is in."""
        names: dict[str, Value | None] = {}
        seen: dict[str, Span] = {}
        for declaration in file.declarations:
            if isinstance(declaration, tree.Block) and declaration.keyword == "block":
                if self._new(seen, declaration.name, declaration.span):
                    names[declaration.name] = BlockValue(declaration, names)
        for declaration in file.declarations:
            if isinstance(declaration, tree.Header):
                self._check_version(declaration)
            elif isinstance(declaration, tree.Import):
                for name, value, span in self._import(declaration, base):
                    if self._new(seen, name, span):
                        names[name] = value
            elif isinstance(declaration, tree.Const):
                if self._new(seen, declaration.name, declaration.span):
                    names[declaration.name] = self._const(names, declaration)
        return names

    def _new(self, seen: dict[str, Span], name: str, span: Span) -> bool:
        if name in seen:
            notes = [f"the first stands at {seen[name]}"]
            self.reporter.error("E0307", f"`{name}` is defined twice", span, notes=notes)
            return False
        seen[name] = span
        return True

    def _check_version(self, header: tree.Header) -> None:
        if header.version != VERSION:
            message = f"version {header.version} of the language is not known"
            help = f"this is version {VERSION}"
            self.reporter.error("E0107", message, header.span, help=help)

    def _const(self, names: Names, const: tree.Const) -> Value | None:
        try:
            return self.evaluator.evaluate(Frame({}, names, Scope()), const.value)
        except Stop:
            return None

    def _import(
        self, statement: tree.Import, base: Path | None
    ) -> list[tuple[str, Value | None, Span]]:
        try:
            names = self._names_in(statement, base)
        except Stop:
            if not statement.names:  # whatever the names are, they would all be unknown
                raise Abort from None
            return [(name, None, span) for name, span in statement.names]
        if not statement.names:
            return [(name, value, statement.span) for name, value in names.items()]
        for name, span in statement.names:
            if name not in names:
                message = f"`{statement.file}` has no block or constant `{name}`"
                self.reporter.error("E0505", message, span, help=did_you_mean(name, list(names)))
        return [(name, names.get(name), span) for name, span in statement.names]

    def _names_in(self, statement: tree.Import, base: Path | None) -> Names:
        path = contained(self.folder, base, statement.file, statement.span, self.reporter)
        if path in self._loading:
            message = f"`{statement.file}` imports itself, by way of others or directly"
            raise self.reporter.error("E0505", message, statement.span)
        if path not in self._loaded:
            self._loaded[path] = self._load(path, statement)
        return self._loaded[path]

    def _load(self, path: Path, statement: tree.Import) -> Names:
        text = read_text(path, statement.span, self.reporter)
        shown = str(Path(statement.span.file).parent / statement.file)
        file = parse(text, shown, self.reporter)
        if file is None:
            raise Stop
        self._loading.append(path)
        self.evaluator.descend(statement.span)
        try:
            return self.declare(file, path.parent)
        finally:
            self.evaluator.ascend()
            self._loading.pop()
