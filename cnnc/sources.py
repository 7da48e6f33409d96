"""Where models come from: the zoo's names, and files."""

from __future__ import annotations

from os.path import isdir, isfile
from pathlib import Path

from cnnc.ir.location import Diagnostic, OptionError

ZOO = Path(__file__).parent / "zoo"


def zoo_models() -> dict[str, Path]:
    """Name -> file of the models that come with cnnc."""
    return {path.stem: path for path in sorted(ZOO.glob("*.cnn"))}


def resolve(source: str | Path) -> Path:
    """The file of a zoo model's name or a path.

    Raises:
        OptionError: there is neither, and the nearest name is suggested; or it is compiled already.
    """
    from cnnc.runtime.artifact import SUFFIX

    models = zoo_models()
    if str(source) in models:
        return models[str(source)]
    path = Path(source)
    if isfile(path):  # false, too, for what cannot be a file's name
        if path.suffix == SUFFIX:
            help = f"run it: `cnnc run {path}`, or `cnnc.load_compiled` in Python"
            raise OptionError(Diagnostic(f"`{path}` is compiled already", help=help))
        return path
    if "\n" in str(source):
        help = "write it to a file ending in `.cnn`"
        raise OptionError(Diagnostic("a model is given by its file, not by its text", help=help))
    from difflib import get_close_matches

    near = get_close_matches(str(source), models, n=1)
    known = ", ".join(models)
    help = f"did you mean `{near[0]}`?" if near else f"give a file, or a zoo model: {known}"
    what = "is a folder" if isdir(source) else "is neither a file nor a model of the zoo"
    raise OptionError(Diagnostic(f"`{source}` {what}", help=help))
