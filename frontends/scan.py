"""Which files a `.cnn` model is made of, found without parsing: for keys of caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_TEXT = re.compile(rb'"([^"\r\n]*)"')
_WEIGHTS = (".safetensors", ".npz")  # named by models, naming nothing


def model_files(source: Path) -> list[Path]:
    """The model's file and, resolved, every file that it may read: imports, weights, maps.

    A model names its files in quotes, so every quoted text that is the name of a file inside the
    model's folder counts; text that only happens to be such a name does no harm.

    Raises:
        OSError: the model's file cannot be read.
    """
    folder, pending = source.resolve().parent, [source.resolve()]
    found: dict[Path, None] = {}
    while pending:
        path = pending.pop()
        if path not in found:
            found[path] = None
            if path.suffix not in _WEIGHTS:
                pending += _named(path, folder)
    return list(found)


def _named(path: Path, folder: Path) -> Iterator[Path]:
    for name in set(_TEXT.findall(path.read_bytes())):
        for base in {path.parent, folder}:
            try:
                file = (base / name.decode()).resolve()
                if file.is_relative_to(folder) and file.is_file():
                    yield file
            except (OSError, ValueError, RuntimeError):  # no name that a file can have
                continue
