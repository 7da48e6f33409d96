"""Targets, compiling, loading, measuring."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest

from cnnc.codegen.host import can_run, has_fma, named_target, native_target, target_names
from cnnc.codegen.llvm import assembly, compile_object, load_object
from cnnc.codegen.measure import measure_ghz, measure_peak, peak_text
from cnnc.codegen.processor import cache_bytes, nominal_ghz
from cnnc.ir.location import CnncError, OptionError

ADD = "define i64 @add(i64 %a, i64 %b) {\n  %c = add i64 %a, %b\n  ret i64 %c\n}\n"
FOREIGN = "aarch64" if native_target().triple.startswith("x86_64") else "x86-64"


def test_native_target_runs_here() -> None:
    target = native_target()
    assert can_run(target)
    assert named_target("native") == target
    assert target.vector_bytes in (16, 32, 64)
    assert target.registers in (16, 32)
    assert 8 << 10 <= target.l1_bytes <= target.l2_bytes
    assert 0.5 < target.ghz < 8


@pytest.mark.parametrize("name", target_names())
def test_named_targets_use_their_vectors(name: str) -> None:
    target = named_target(name)
    accumulators = 24 if target.registers >= 32 else 12
    text = assembly(peak_text(target.lanes, accumulators, fused=has_fma(target)), target)
    if target.triple.startswith("x86_64"):
        register = {16: "xmm", 32: "ymm", 64: "zmm"}[target.vector_bytes]
        multiply = "vfmadd" if has_fma(target) else "mulps"
        found = [line for line in text.splitlines() if multiply in line]
        assert len(found) == accumulators
        assert all(register in line for line in found)
        assert "rsp" not in text  # every accumulator stays in a register
    else:
        assert text.count("fmla") == accumulators


def test_unknown_target_is_told_the_near_one() -> None:
    with pytest.raises(OptionError, match="unknown target `x86-64-v5`") as error:
        named_target("x86-64-v5")
    assert "did you mean `x86-64-v4`?" in str(error.value)
    with pytest.raises(OptionError, match="known: aarch64, native, x86-64, "):
        named_target("vax")


def test_only_targets_within_this_machine_run() -> None:
    host = native_target()
    assert not can_run(named_target(FOREIGN))
    assert not can_run(replace(host, triple=host.triple.partition("-")[0] + "-unknown-plan9"))
    assert not can_run(replace(host, name="other", features=host.features + ",+teleport"))
    assert not can_run(replace(host, name="other", cpu="some-other-cpu"))
    assert can_run(replace(host, name="other", vector_bytes=16))


def test_code_is_compiled_loaded_and_called() -> None:
    code = load_object(compile_object(ADD, native_target()))
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    assert function(code.address("add"))(40, 2) == 42
    with pytest.raises(CnncError, match="cannot load `subtract`: the object code does not"):
        code.address("subtract")


def test_code_calls_functions_it_is_given() -> None:
    add = load_object(compile_object(ADD, native_target()))
    text = (
        "declare i64 @add(i64, i64)\n"
        "define i64 @twice(i64 %a) {\n  %b = call i64 @add(i64 %a, i64 %a)\n  ret i64 %b\n}\n"
    )
    symbols = {"add": add.address("add")}
    code = load_object(compile_object(text, native_target()), symbols)
    twice = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address("twice"))
    assert twice(21) == 42


def test_optimising_gives_the_same_function() -> None:
    code = load_object(compile_object(ADD, native_target(), optimise=True))
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    assert function(code.address("add"))(40, 2) == 42


def test_compilation_repeats() -> None:
    assert compile_object(ADD, native_target()) == compile_object(ADD, native_target())


@pytest.mark.parametrize("data", [b"", b"garbage", compile_object(ADD, named_target(FOREIGN))])
def test_foreign_objects_are_refused(data: bytes) -> None:
    with pytest.raises(CnncError, match="damaged|for another architecture"):
        load_object(data)


def test_bad_text_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="expected type"):
        compile_object("define nonsense", native_target())


def test_measured_numbers_are_those_of_a_processor() -> None:
    assert 0.3 < measure_ghz() < 10
    # A neighbour on the same core makes it low; nothing is more than the nominal units can do.
    target = native_target()
    limit = 2 * target.lanes * target.fma_per_cycle * 10  # GHz
    assert 0.2 < measure_peak() < limit


def test_caches_are_read_from_the_system(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()  # an entry without its files is passed over
    assert cache_bytes(tmp_path) == {1: 48 << 10, 2: 2 << 20}


@pytest.mark.parametrize(
    ("cpuinfo", "khz", "ghz"),
    [
        ("model name\t: Some CPU @ 2.50GHz\nbogomips\t: 6000.00\n", None, 2.5),
        ("model name\t: Some CPU\nbogomips\t: 5192.27\n", None, 2.6),
        ("BogoMIPS\t: 50.00\n", None, None),
        ("model name\t: Some CPU @ 2.50GHz\n", "3700000\n", 3.7),
    ],
)
def test_clock_is_the_stated_one(
    tmp_path: Path, cpuinfo: str, khz: str | None, ghz: float | None
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    if khz:
        folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(khz)
    assert nominal_ghz(tmp_path) == ghz
