"""Writing files so that nothing is lost: what was there stays until the new file is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cnnc.ir.location import CnncError

PART = ".part"  # suffix of a file that is being written


def check_path(path: object) -> None:
    """Raises `CnncError` for what is no path; a number would be taken for an open file."""
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise CnncError(f"a file is given by its path, not by `{path!r}`")


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that takes its place when it is whole; after an error nothing has changed.

    A link stays, and what it leads to is replaced. A device or a pipe is written to as it is.

    Args:
        path: where; a file that is there is replaced.
        private: nobody else may read it.

    Raises:
        CnncError: it cannot be written.
    """
    check_path(path)
    import secrets  # a millisecond, which loading is spared

    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a folder says that it is one
            with open(path, "wb") as file:
                yield file
            return
        if os.path.exists(path) and not os.access(path, os.W_OK):  # which renaming would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        place = Path(os.path.realpath(path))
        part = place.with_name(f".{place.name}.{secrets.token_hex(8)}{PART}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with os.fdopen(os.open(part, flags, 0o600 if private else 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the name of a hollow file
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CnncError(f"cannot write `{path}`: {error.strerror or error}") from None
