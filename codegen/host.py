"""The machine: what it is (`native_target`) and what others look like (`named_target`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cnnc.codegen.cores import usable_cores
from cnnc.codegen.llvm import loaded_llvm
from cnnc.codegen.processor import cache_bytes, has_features, nominal_ghz
from cnnc.ir.location import Diagnostic, OptionError, suggest
from cnnc.ir.target import Target


@dataclass(frozen=True, slots=True)
class _Core:
    """What a core does per cycle at its full vector width; bandwidths in bytes per cycle."""

    fma: float = 2.0
    load: float = 2.0
    adds: float = 0.0  # beside the multiply-adds, where elements in memory can be operands of both
    l2: float = 48.0
    l3: float = 10.0


# By LLVM's cpu name. A core that is not listed is taken for a `_Core()`.
_CORES: Mapping[str, _Core] = {
    "znver1": _Core(fma=1.0, load=1.0, l2=32.0, l3=16.0),  # two 128-bit units
    "znver2": _Core(l2=32.0, l3=16.0),
    "znver3": _Core(l2=32.0, l3=16.0),
    # 512 bits are two halves of 256: two units multiply and add, two more add.
    "znver4": _Core(fma=1.0, load=1.0, adds=1.0, l2=32.0, l3=16.0),
    "znver5": _Core(l2=64.0, l3=16.0),
    "cannonlake": _Core(fma=1.0),
    "icelake-client": _Core(fma=1.0),
    "tigerlake": _Core(fma=1.0),
    "rocketlake": _Core(fma=1.0),
    "gracemont": _Core(fma=1.0, load=1.0, l2=32.0),  # two 128-bit units
    "sierraforest": _Core(fma=1.0, load=1.0, l2=32.0),
    "x86-64": _Core(fma=1.0, l2=32.0),  # without fused multiply-add
    "cortex-a53": _Core(fma=0.5, load=1.0, l2=8.0, l3=4.0),
    "cortex-a55": _Core(fma=0.5, load=1.0, l2=8.0, l3=4.0),
    "cortex-a72": _Core(fma=1.0, load=1.0, l2=16.0, l3=8.0),
    "neoverse-n1": _Core(l2=32.0),
    "neoverse-n2": _Core(l2=32.0),
    "neoverse-v1": _Core(fma=4.0, load=3.0, l2=32.0),
    "neoverse-v2": _Core(fma=4.0, load=3.0, l2=32.0),
    "apple-m1": _Core(fma=4.0, load=3.0, l2=32.0),
    "apple-m2": _Core(fma=4.0, load=3.0, l2=32.0),
    "apple-m3": _Core(fma=4.0, load=3.0, l2=32.0),
    "apple-m4": _Core(fma=4.0, load=3.0, l2=32.0),
}

_V3 = "+avx +avx2 +bmi +bmi2 +cx16 +f16c +fma +lzcnt +movbe +popcnt +sse4.2"
_V4 = f"{_V3} +avx512bw +avx512cd +avx512dq +avx512f +avx512vl"

# Name -> (architecture, LLVM's cpu name, features).
_PRESETS: Mapping[str, tuple[str, str, str]] = {
    "x86-64-v4": ("x86_64", "x86-64-v4", _V4.replace(" ", ",")),
    "x86-64-v3": ("x86_64", "x86-64-v3", _V3.replace(" ", ",")),
    "x86-64": ("x86_64", "x86-64", ""),
    "aarch64": ("aarch64", "generic", "+neon"),
}

_ARM = ("aarch64", "arm64")


@cache
def native_target() -> Target:
    """This machine, from LLVM's knowledge of its processor and the system's of its caches and of
    how many processors this process may use."""
    llvm = loaded_llvm()
    features = llvm.get_host_cpu_features().flatten()
    cpu = llvm.get_host_cpu_name()
    target = _target("native", llvm.get_process_triple(), cpu, features)
    caches = cache_bytes(Path("/sys/devices/system/cpu/cpu0/cache"))
    return replace(
        target,
        l1_bytes=caches.get(1, target.l1_bytes),
        l2_bytes=caches.get(2, target.l2_bytes),
        l3_bytes=caches.get(3, target.l3_bytes),
        cores=usable_cores(),
        ghz=nominal_ghz(Path("/")) or target.ghz,
    )


def target_names() -> tuple[str, ...]:
    """The names that `named_target` knows."""
    return ("native", *_PRESETS)


def named_target(name: str) -> Target:
    """The target of that name: `native`, or a preset for this operating system.

    Raises:
        OptionError: no target has that name.
    """
    if name == "native":
        return native_target()
    if name not in _PRESETS:
        help = suggest(name, target_names())
        raise OptionError(Diagnostic(f"unknown target `{name}`", help=help))
    arch, cpu, features = _PRESETS[name]
    _, _, system = loaded_llvm().get_process_triple().partition("-")
    return _target(name, f"{arch}-{system}", cpu, features)


def has_fma(target: Target) -> bool:
    """Whether the target fuses a multiplication and an addition in one instruction."""
    return _is_arm(target) or "+fma" in target.features.split(",")


def can_run(target: Target) -> bool:
    """Whether code for `target` runs on this machine."""
    if _is_common_here(target):
        return True
    host = native_target()
    if target == host:
        return True
    _, _, system = target.triple.partition("-")
    _, _, here = host.triple.partition("-")
    if system != here or _is_arm(target) != _is_arm(host):
        return False
    # Any other cpu name may stand for features that are not listed.
    baseline = target.cpu == host.cpu or _is_preset(target)
    wanted = {f for f in target.features.split(",") if f.startswith("+")}
    return baseline and wanted <= set(host.features.split(","))


def _is_common_here(target: Target) -> bool:
    """Whether this is a preset and Linux says that it runs here: LLVM need not be loaded to ask."""
    architecture, _, system = target.triple.partition("-")
    return (
        sys.platform == "linux"
        and "linux" in system
        and architecture == os.uname().machine
        and _is_preset(target)
        and has_features(target.features)
    )


def _is_preset(target: Target) -> bool:
    presets = {(cpu, features) for _, cpu, features in _PRESETS.values()}
    return (target.cpu, target.features) in presets


def _is_arm(target: Target) -> bool:
    return target.triple.startswith(_ARM)


def _target(name: str, triple: str, cpu: str, features: str) -> Target:
    core = _CORES.get(cpu, _Core())
    width, registers = _vector(triple, set(features.split(",")))
    return Target(
        name=name,
        triple=triple,
        cpu=cpu,
        features=features,
        vector_bytes=width,
        registers=registers,
        fma_per_cycle=core.fma,
        spare_adds_per_cycle=core.adds if width == 64 else 0.0,
        load_per_cycle=core.load,
        l2_bytes_per_cycle=core.l2,
        l3_bytes_per_cycle=core.l3,
    )


def _vector(triple: str, features: set[str]) -> tuple[int, int]:
    """(bytes of a vector register, number of vector registers)."""
    if triple.startswith(_ARM):
        return 16, 32
    if {"+avx512f", "+avx512vl"} <= features:
        return 64, 32
    return (32, 16) if {"+avx2", "+fma"} <= features else (16, 16)
