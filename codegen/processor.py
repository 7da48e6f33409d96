"""This machine's processor, as the system tells of it, without asking LLVM.

`fingerprint()` stands for what LLVM would say: code that was made for "this machine" runs wherever
the fingerprint is the same.
"""

from __future__ import annotations

import os
import re
from functools import cache
from hashlib import blake2b
from pathlib import Path

# What Linux calls the features that LLVM names in another way, of those that targets ask for.
_ALIASES = {"bmi": "bmi1", "lzcnt": "abm", "neon": "asimd"}

# What decides on the instructions that there are, on x86 and on ARM.
_IDENTITY = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "Features",
)


@cache
def fingerprint() -> str:
    """A hash of the processor and its caches; empty where the system does not tell of them."""
    return fingerprint_at(Path("/"))


@cache
def flags() -> frozenset[str]:
    """The features of the processor that the system may use, in the system's words."""
    words = _cpuinfo(Path("/"))
    return frozenset(" ".join([*words.get("flags", ()), *words.get("Features", ())]).split())


def has_features(features: str) -> bool:
    """Whether the system tells of all these features, given in LLVM's words: `+avx2,+bmi`.

    False may also mean that the system has another word for one of them.
    """
    wanted = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return {_ALIASES.get(f, f.replace(".", "_")) for f in wanted} <= flags()


def fingerprint_at(root: Path) -> str:
    """As `fingerprint`, for another root of the file system."""
    words = _cpuinfo(root)
    if not words.keys() & {"flags", "Features"}:
        return ""
    system, _, _, _, architecture = os.uname()
    caches = sorted(cache_bytes(root / "sys/devices/system/cpu/cpu0/cache").items())
    known = [sorted(words.get(name, ())) for name in _IDENTITY]
    text = repr((system, architecture, known, caches, nominal_ghz(root)))
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _cpuinfo(root: Path) -> dict[str, set[str]]:
    """Name -> the values that it has, over all processors."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    values: dict[str, set[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), set()).add(value.strip())
    return values


def cache_bytes(root: Path) -> dict[int, int]:
    """Level -> bytes of the data or unified cache, as far as the system tells."""
    sizes: dict[int, int] = {}
    for index in root.glob("index*"):
        try:
            level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match:
            scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
            sizes[int(level)] = int(match[1]) * scale
    return sizes


def nominal_ghz(root: Path) -> float | None:
    """The clock that the system states; never the one of the moment, which would not repeat."""
    try:
        khz = (root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()
        return round(int(khz) / 1e6, 1)
    except (OSError, ValueError):
        pass
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return None
    stated = re.search(r"^model name.*@ ([\d.]+)GHz", text, re.MULTILINE)
    if stated:
        return float(stated[1])
    # On x86 Linux counts two "bogomips" for a million ticks of the time stamp counter.
    ticks = re.search(r"^bogomips\s*: ([\d.]+)", text, re.MULTILINE)
    return round(float(ticks[1]) / 2000, 1) if ticks else None
