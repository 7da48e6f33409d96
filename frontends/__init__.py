"""Frontends: what can be loaded into a graph. Each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cnnc.ir.location import Diagnostic, OptionError

if TYPE_CHECKING:
    from cnnc.ir.graph import Graph


def _cnn(source: str | Path, parameters: Mapping[str, object] | None, model: str | None) -> Graph:
    from cnnc.frontends.dsl.load import load_file

    return load_file(source, parameters=parameters, model=model)


def _cnn_files(source: Path) -> list[Path]:
    from cnnc.frontends.scan import model_files

    return model_files(source)


Frontend = Callable[[str | Path, Mapping[str, object] | None, str | None], "Graph"]

FRONTENDS: dict[str, Frontend] = {".cnn": _cnn}

# Suffix -> all files that loading a model reads. Models of other suffixes are never cached.
FILES: dict[str, Callable[[Path], list[Path]]] = {".cnn": _cnn_files}


def load(
    source: str | Path,
    *,
    parameters: Mapping[str, object] | None = None,
    model: str | None = None,
) -> Graph:
    """The portable graph of the model in a file; the suffix says how it is written.

    Args:
        source: Path of the file, as messages will show it.
        parameters: Values for the parameters that the model declares.
        model: Which model, if the file holds several.

    Raises:
        OptionError: no frontend reads files with this suffix.
        ParseError: the file does not exist or is no correct model.
    """
    frontend = FRONTENDS.get(Path(source).suffix)
    if frontend is None:
        known = ", ".join(f"`{suffix}`" for suffix in FRONTENDS)
        message = f"nothing reads `{source}`: its suffix is `{Path(source).suffix}`"
        raise OptionError(Diagnostic(message, help=f"models are files ending in {known}"))
    return frontend(source, parameters, model)
