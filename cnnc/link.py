"""From a compiled model as a value to one that runs. Needs neither the frontends nor the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cnnc.codegen.cores import usable_cores
from cnnc.codegen.image import Image, load_image
from cnnc.codegen.processor import fingerprint
from cnnc.codegen.team import provide_team, team, team_symbols
from cnnc.ir.location import Diagnostic, OptionError
from cnnc.model import CompiledModel
from cnnc.runtime import artifact as files
from cnnc.runtime import plain
from cnnc.runtime.artifact import Artifact, Machine, Manifest
from cnnc.runtime.executable import Executable, Prepare

if TYPE_CHECKING:
    from cnnc.ir.target import Target
    from cnnc.report import Report

Make = Callable[[Manifest, Any, list[int], int, Prepare], Executable]
"""Makes what runs code: `make(manifest, weights, addresses, threads, prepare)`."""


def load_compiled(path: str | Path, threads: int | None = None) -> CompiledModel:
    """A model that `CompiledModel.save` wrote; see `cnnc.load_compiled`."""
    start = perf_counter()
    return link(files.load(path), threads, start=start)


def link(
    artifact: Artifact,
    threads: int | None = None,
    *,
    start: float | None = None,
    make: Make = Executable,
) -> CompiledModel:
    """The model, its code loaded into this process.

    Args:
        artifact: what to run.
        threads: how many threads run it; None takes what the process may use.
        start: when loading began, by `perf_counter`; None if the model is freshly compiled.
        make: what runs the code.

    Raises:
        CnncError: the code is damaged.
        OptionError: it is for another processor, or there is no such number of threads.
    """
    manifest = artifact.manifest
    check_threads(threads)
    _check_machine(manifest)
    provide_team(artifact.team)
    code = load_image(Image.from_bytes(artifact.code), team_symbols())
    steps = [code.address(symbol) for symbol in manifest.steps]
    count = usable_cores() if threads is None else threads
    used = min(count, manifest.parts)
    executable = make(manifest, artifact.weights, steps, used, team(used).prepare)
    seconds = None if start is None else perf_counter() - start
    report = partial(_report, artifact, count, manifest.scratch_bytes * used, seconds)
    return CompiledModel(artifact, executable, count, report, code)


def _report(artifact: Artifact, threads: int, scratch: int, seconds: float | None) -> Report:
    """The report of a model that is linked; `seconds` is what loading took, if it was loaded."""
    from cnnc.report import Memory  # most programs never ask

    memory = Memory(artifact.weights.nbytes, artifact.manifest.arena_bytes, scratch)
    report = replace(report_of(artifact), threads=threads, memory=memory)
    return report if seconds is None else replace(report, cached=True, seconds={"load": seconds})


def check_threads(threads: object) -> None:
    """Raises `OptionError` unless it is a number of threads or None."""
    if not (threads is None or type(threads) is int and 1 <= threads <= 1024):
        from cnnc.options import Options  # which takes longer than all the rest, and tells

        Options.of(threads=threads)


def report_of(artifact: Artifact) -> Report:
    """What was told of the compilation. Raises `CnncError` if it cannot be read."""
    from cnnc.report import Report

    return plain.read(Report, artifact.manifest.report, "report")


def machine_of(target: Target) -> Machine:
    """What a manifest says of the target."""
    from cnnc.codegen.host import can_run

    made_here = fingerprint() if can_run(target) else ""
    return Machine(target.name, target.triple, target.cpu, target.features, made_here)


def _check_machine(manifest: Manifest) -> None:
    made = manifest.machine
    if made.fingerprint and made.fingerprint == fingerprint():
        return
    from cnnc.codegen.host import can_run, native_target  # what is made here needs no check
    from cnnc.ir.target import Target

    target = Target(name=made.name, triple=made.triple, cpu=made.cpu, features=made.features)
    if not can_run(target):
        host = native_target()
        lacking = sorted(_features(made.features) - _features(host.features))
        notes = [f"this machine is {host.cpu} ({host.triple})"]
        if lacking and made.triple == host.triple:
            notes.append(f"it lacks {', '.join(lacking)}")
        raise OptionError(
            Diagnostic(
                f"`{manifest.model}` is compiled for {made.cpu} ({made.triple}): "
                "it cannot run on this machine",
                notes=tuple(notes),
                help="compile the model here, or for a common target such as x86-64-v3",
            )
        )


def _features(text: str) -> set[str]:
    return {feature[1:] for feature in text.split(",") if feature.startswith("+")}
