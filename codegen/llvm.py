"""LLVM: from text to object code, assembly and callable addresses.

code = load_object(compile_object(text, target))
code.address("run")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from cnnc.codegen.image import Code, load_image
from cnnc.ir.target import Target


@cache
def loaded_llvm() -> Any:
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
        loaded_llvm()
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
    compiler, llvm = machine(target), loaded_llvm()
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
