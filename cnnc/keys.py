"""Keys of compiled models: equal keys mean that compiling would give the same code and weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cnnc._version import __version__
from cnnc.codegen.cores import usable_cores
from cnnc.codegen.processor import fingerprint
from cnnc.frontends import FRONTENDS
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.runtime.artifact import VERSION
from cnnc.sources import resolve

# The options that have a say in the code, with their defaults. Threads have none: work is shared
# out when the code runs.
RELEVANT: Mapping[str, Any] = {
    "target": "native",
    "passes": "default",
    "exact": False,
    "max_rel_err": 1e-4,
    "sizes": {},
    "shapes": {},
    "parameters": {},
    "outputs": (),
    "taps": (),
    "values": {},
}

_PACKAGE = Path(__file__).parent
_NO_MATTER = {"cli", "zoo", "__pycache__"}


def key_of(
    source: str | Path, options: Mapping[str, Any], file_hash: Callable[[Path], str]
) -> str | None:
    """The key of a model with its options, as they were given; None if it has none.

    It opens with the file's name, for people, and covers the contents of all files of the model,
    the relevant options, the target processor, the code of cnnc itself and the versions of what it
    builds on.

    Args:
        source: a zoo name or a file.
        options: keyword arguments of `cnnc.compile`; need not be checked yet.
        file_hash: gives the hash of a file's content.

    Raises:
        OptionError: there is no such source or target.
    """
    path = resolve(source)
    frontend, target = FRONTENDS.get(path.suffix), options.get("target", "native")
    if frontend is None or not isinstance(target, str):
        return None
    try:
        parts = [
            VERSION,
            [__version__, np.__version__, llvm_build()],
            code_hash(),
            _target_words(target),
            _measured(options),
            {name: options[name] for name in RELEVANT if _is_given(name, options)},
            [str(source), str(path.resolve())],  # messages and reports name them
            [(str(file), file_hash(file)) for file in sorted(frontend.files(path))],
        ]
        text = json.dumps(parts, sort_keys=True, default=_digest)
    except (OSError, TypeError, ValueError):
        return None  # what is wrong will be said when the model is compiled
    name = re.sub(r"[^A-Za-z0-9_]+", "_", path.stem)[:40]
    return f"{name}-{blake2b(text.encode(), digest_size=20).hexdigest()}"


def _target_words(name: str) -> list[str]:
    """What stands for a target in a key. Raises `OptionError` if there is none of that name."""
    if name != "native" or not fingerprint():
        from cnnc.codegen.host import named_target, target_names

        if name not in target_names() or not fingerprint():
            return [name, repr(named_target(name))]
    return [name, fingerprint(), str(usable_cores())]


def _digest(array: object) -> list[object]:
    """What stands for an array in a key. Raises `TypeError` for anything else."""
    if not isinstance(array, np.ndarray) or array.dtype == object:
        raise TypeError
    digest = blake2b(array.tobytes(), digest_size=20).hexdigest()
    return [array.dtype.str, array.shape, digest]


def _measured(options: Mapping[str, Any]) -> object:
    """What the tuner knows, where that has a say."""
    if not options.get("tune"):
        return None
    from cnnc.codegen.host import named_target
    from cnnc.record import read_record

    return read_record(named_target("native"))


def _is_given(name: str, options: Mapping[str, Any]) -> bool:
    value, default = options.get(name, RELEVANT[name]), RELEVANT[name]
    return type(value) is not type(default) or value != default


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # hundreds of small files: every microsecond counts
        return file.read()


@cache
def code_hash() -> str:
    """A hash of cnnc's own code, as far as it decides on what is compiled."""
    digest = blake2b(digest_size=20)
    for folder, folders, names in os.walk(_PACKAGE, followlinks=True):
        folders[:] = sorted(set(folders) - _NO_MATTER)
        for name in sorted(names):
            if name.endswith((".py", ".lark")):
                data = _content(os.path.join(folder, name))
                digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()


@cache
def llvm_build() -> str:
    """What tells one build of LLVM from another, found without loading it.

    Raises:
        CnncError: llvmlite is not installed.
    """
    spec = find_spec("llvmlite")
    if spec is None or not spec.submodule_search_locations:
        raise CnncError(Diagnostic("llvmlite is not installed", help="pip install llvmlite"))
    folder = Path(spec.submodule_search_locations[0])
    libraries = [(f.name, f.stat()) for f in sorted(folder.glob("binding/*llvmlite.*"))]
    stamps = [(name, status.st_size, status.st_mtime_ns) for name, status in libraries]
    return repr(((folder / "_version.py").read_text(encoding="utf-8"), stamps))
