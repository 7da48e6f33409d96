"""Where a command's result goes, looked at before the work is done."""

from __future__ import annotations

import os
from pathlib import Path

from cnnc.ir.location import Diagnostic, OptionError


def check_output(path: Path, *sources: str) -> None:
    """Checks that a file can be written, as far as can be told without writing it.

    Args:
        path: where the result shall go.
        sources: files that the command reads; what is none does not matter.

    Raises:
        OptionError: it would replace a source, or its folder cannot take it.
    """
    if any(_is_same(path, source) for source in sources):
        what = f"`{path}` is what the command reads, and would be lost"
        raise OptionError(Diagnostic(what, help="write to another file"))
    folder = path.parent
    if not folder.is_dir():
        help = f"make it first: mkdir -p {folder}"
        raise OptionError(Diagnostic(f"cannot write `{path}`: no folder `{folder}`", help=help))
    if not path.exists() and not os.access(folder, os.W_OK):
        raise OptionError(f"cannot write `{path}`: nothing can be written to the folder `{folder}`")


def _is_same(path: Path, source: str) -> bool:
    try:
        return path.samefile(source)
    except (OSError, ValueError):  # one of them is no file
        return False
