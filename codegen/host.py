"""The machine: what it is (`native_target`), what others look like (`named_target`), and the way
from LLVM text to object code, assembly and callable addresses.

    target = native_target()
    code = load_object(compile_object(text, target))
    code.address("run")
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import thread_time
from typing import Any

from cnnc.codegen.cores import usable_cores
from cnnc.codegen.image import Code, load_image
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


# -- targets -------------------------------------------------------------------------------------


@cache
def native_target() -> Target:
    """This machine, from LLVM's knowledge of its processor and the system's of its caches and of
    how many processors this process may use."""
    llvm = _llvm()
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
    _, _, system = _llvm().get_process_triple().partition("-")
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


# -- compiling and loading -----------------------------------------------------------------------


@cache
def _llvm() -> Any:
    """llvmlite's binding. Loading it takes a while, and running compiled models never needs it."""
    import llvmlite.binding as llvm

    # The emitter writes instructions in the order in which they need the fewest registers. LLVM's
    # scheduler would move loads up, and spill: up to three times slower. The one after it, the
    # search for better addresses and the preparation of the text for what it does well already are
    # more than a quarter of LLVM's time and win nothing.
    for name in ("-enable-misched=false", "-disable-post-ra", "-disable-lsr", "-disable-cgp"):
        llvm.set_option("cnnc", name)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    _unlock(llvm)
    return llvm


def _unlock(llvm: Any) -> None:
    """Lets threads emit code at the same time, which LLVM allows for modules in different contexts.

    llvmlite takes a lock around every call; only the call that takes all the time is freed of it.
    With a llvmlite that is made in another way it stays as it is, and threads take turns.
    """
    table, name = getattr(llvm.ffi.lib, "_fntab", {}), "LLVMPY_TargetMachineEmitToMemory"
    table[name] = getattr(getattr(llvm.ffi.lib, name), "_cfn", None) or getattr(llvm.ffi.lib, name)


def machine(target: Target) -> Any:
    """LLVM's `TargetMachine` for the target: position-independent code in the small model.

    It must not be shared among threads.
    """
    return (
        _llvm()
        .Target.from_triple(_elf_triple(target.triple))
        .create_target_machine(
            cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="default"
        )
    )


def _elf_triple(triple: str) -> str:
    """The triple for object code in ELF, which is linked here, whatever the system's own format."""
    return triple if "linux" in triple else f"{triple}-elf"


def compile_object(llvm_text: str, target: Target, *, optimise: bool = False) -> bytes:
    """Object code of a module.

    Args:
        llvm_text: the module; names no triple and no data layout.
        target: what to compile for.
        optimise: run LLVM's O2 passes first. They keep off vectorising and unrolling, which are
            the text's affair; without them the text should hold no `alloca` in a loop.

    Raises:
        RuntimeError: the text is not valid LLVM.
    """
    with _module(llvm_text, target, optimise) as module:
        return bytes(machine(target).emit_object(module))


def assembly(llvm_text: str, target: Target, *, optimise: bool = False) -> str:
    """The assembly of a module; arguments as for `compile_object`."""
    with _module(llvm_text, target, optimise) as module:
        return str(machine(target).emit_assembly(module))


@contextmanager
def _module(llvm_text: str, target: Target, optimise: bool) -> Iterator[Any]:
    compiler, llvm = machine(target), _llvm()
    # A context of its own, so that nothing of the module is left when it has been compiled.
    with llvm.create_context() as context, llvm.parse_assembly(llvm_text, context) as module:
        module.triple = _elf_triple(target.triple)
        module.data_layout = str(compiler.target_data)
        module.verify()
        if optimise:
            options = llvm.create_pipeline_tuning_options(speed_level=2)
            options.loop_vectorization = options.slp_vectorization = False
            options.loop_unrolling = options.loop_interleaving = False
            builder = llvm.create_pass_builder(compiler, options)
            builder.getModulePassManager().run(module, builder)
        yield module


def load_object(object_code: bytes, symbols: Mapping[str, int] | None = None) -> Code:
    """Links object code and loads it into this process.

    Args:
        object_code: what `compile_object` gave, for a target that can run here.
        symbols: addresses of functions that the object calls, beyond those of the C library.

    Raises:
        CnncError: the object is damaged, or made for another architecture.
    """
    from cnnc.codegen.elf import link_objects  # running what is compiled needs no linker

    return load_image(link_objects([object_code]), symbols)


# -- measuring -----------------------------------------------------------------------------------


@cache
def measure_peak(seconds: float = 0.02) -> float:
    """GFLOP/s that one core reaches on fused multiply-adds at its full vector width.

    Best of short runs within `seconds`; for display, no choice of the compiler depends on it.
    """
    target = native_target()
    accumulators = 24 if target.registers >= 32 else 12
    text = peak_text(target.lanes, accumulators, fused=has_fma(target))
    values = (ctypes.c_float * ((2 + accumulators) * target.lanes))(*[0.5] * 2 * target.lanes)
    per_step = 2.0 * target.lanes * accumulators
    return per_step * _steps_per_second(text, ctypes.addressof(values), seconds) / 1e9


@cache
def measure_ghz(seconds: float = 0.01) -> float:
    """The clock of one busy core, from a chain of dependent additions of one cycle each."""
    values = (ctypes.c_int64 * 3)(1, 3, 5)
    steps = _steps_per_second(chain_text(64), ctypes.addressof(values), seconds)
    return steps * 64 / 1e9


def _steps_per_second(text: str, data: int, seconds: float) -> float:
    code = load_object(compile_object(text, native_target()))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address("measure"))
    steps, best = 1000, 0.0
    # Not by the wall's clock: while another process has the core, this one does not count.
    end = thread_time() + seconds
    while best == 0.0 or thread_time() < end:
        start = thread_time()
        function(data, steps)
        taken = thread_time() - start
        if taken < 5e-4:  # too short to time: the call itself would count
            steps *= 4
        else:
            best = max(best, steps / taken)
    return best


def _loop(before: list[str], phis: list[str], body: list[str], after: list[str]) -> str:
    """`void measure(ptr data, i64 steps)`: one loop around `body`."""
    lines = [
        "define void @measure(ptr %data, i64 %steps) {",
        "entry:",
        *before,
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *phis,
        *body,
        "  %next = add i64 %i, 1",
        "  %more = icmp ult i64 %next, %steps",
        "  br i1 %more, label %loop, label %done",
        "done:",
        *after,
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def peak_text(lanes: int, accumulators: int, *, fused: bool) -> str:
    """A module whose loop does nothing but `accumulators` independent multiply-adds a step."""
    vector = f"<{lanes} x float>"
    before, phis, body, after = [], [], [], []
    for i in range(accumulators + 2):  # the factors come from memory, so that nothing folds
        before.append(f"  %p{i} = getelementptr {vector}, ptr %data, i64 {i}")
        before.append(f"  %v{i} = load {vector}, ptr %p{i}, align 4")
    for i in range(2, accumulators + 2):
        phis.append(f"  %a{i} = phi {vector} [ %v{i}, %entry ], [ %b{i}, %loop ]")
        if fused:
            args = f"{vector} %a{i}, {vector} %v0, {vector} %v1"
            body.append(f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({args})")
        else:
            body.append(f"  %m{i} = fmul {vector} %a{i}, %v0")
            body.append(f"  %b{i} = fadd {vector} %m{i}, %v1")
        # Computed anew: an address that outlives the loop would take a register or the stack.
        after.append(f"  %q{i} = getelementptr {vector}, ptr %data, i64 {i}")
        after.append(f"  store {vector} %b{i}, ptr %q{i}, align 4")
    declare = f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})"
    return f"{declare}\n{_loop(before, phis, body, after)}"


def chain_text(links: int) -> str:
    """A module whose loop is a chain of `links` dependent operations of one cycle each."""
    before = []
    for i in range(3):
        before.append(f"  %p{i} = getelementptr i64, ptr %data, i64 {i}")
        before.append(f"  %v{i} = load i64, ptr %p{i}")
    phis = [f"  %x0 = phi i64 [ %v0, %entry ], [ %x{links}, %loop ]"]
    # Sums and exclusive ors take turns: a run of sums would fold into a multiplication.
    body = [
        f"  %x{i + 1} = {'xor' if i % 2 else 'add'} i64 %x{i}, %v{1 + i % 2}" for i in range(links)
    ]
    return _loop(before, phis, body, [f"  store i64 %x{links}, ptr %p0"])
