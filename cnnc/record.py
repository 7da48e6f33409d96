"""What the tuner measured, in a file: `tuning-<processor>.json` in the folder of the cache.

    {"cpu": "znver4", "made_by": "5f0c...", "layers": {"conv2d{...}(...) : ...": {"kernel": 12.3}}}

Times are microseconds on one thread. A record is for one processor and one state of cnnc's code:
another one's is not read, and replaced by the next that is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from cnnc.cache import open_cache
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.ir.target import Target
from cnnc.keys import code_hash

Times = dict[str, dict[str, float]]
"""Layer -> kernel -> microseconds, both by their texts."""


def record_path(target: Target) -> Path:
    """Where the record is or would be. Raises `CnncError` if the cache cannot be used."""
    return open_cache().folder / f"tuning-{target.cpu}.json"


def read_record(target: Target) -> Times:
    """What was measured on this processor; nothing if that is not there, damaged or outdated."""
    try:
        data = json.loads(record_path(target).read_text(encoding="utf-8"))
        if data["made_by"] != _made_by(target):
            return {}
        layers: Times = {str(layer): _times(times) for layer, times in data["layers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return layers


def _times(times: Mapping[object, object]) -> dict[str, float]:
    read = {str(kernel): float(str(time)) for kernel, time in times.items()}
    if not all(0 < time < float("inf") for time in read.values()):
        raise ValueError("times are positive")
    return read


def add_to_record(target: Target, found: Times) -> None:
    """Puts times into the record; those that it has of other kernels stay.

    Raises:
        CnncError: it cannot be written.
    """
    layers = read_record(target)
    for layer, times in found.items():
        layers.setdefault(layer, {}).update(times)
    data = {"cpu": target.cpu, "made_by": _made_by(target), "layers": layers}
    path = record_path(target)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        why = error.strerror or error
        help = "make room, or set XDG_CACHE_HOME to another folder"
        raise CnncError(Diagnostic(f"cannot write `{path}`: {why}", help=help)) from None


def _made_by(target: Target) -> str:
    """Everything but the measured clock decides which kernels there are."""
    text = f"{code_hash()} {replace(target, ghz=0.0)!r}"
    return blake2b(text.encode(), digest_size=16).hexdigest()
