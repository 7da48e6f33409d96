"""Linking LLVM's objects and loading the image, on this machine and, unloaded, for another."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from llvmlite.binding import ffi

import cnnc
from cnnc.codegen.elf import link_objects
from cnnc.codegen.host import can_run, named_target, native_target
from cnnc.codegen.image import AARCH64, X86_64, Image, load_image
from cnnc.codegen.llvm import compile_object, load_object
from cnnc.codegen.processor import fingerprint, fingerprint_at, flags, has_features
from cnnc.codegen.team_text import team_text
from cnnc.driver import build
from cnnc.ir.location import CnncError
from cnnc.options import Options

TARGETS = {"x86-64-v4": X86_64, "x86-64": X86_64, "aarch64": AARCH64}

# A table that is found by its address, one function that another object calls, and an import.
FIRST = """
@numbers = internal constant [3 x i64] [i64 5, i64 7, i64 11]
define hidden i64 @pick(i64 %i) {
  %p = getelementptr i64, ptr @numbers, i64 %i
  %n = load i64, ptr %p
  ret i64 %n
}
"""
SECOND = """
declare hidden i64 @pick(i64)
declare i64 @labs(i64)
@labels = internal constant [2 x i64] [i64 -100, i64 -200]
define i64 @both(i64 %i) {
  %n = call i64 @pick(i64 %i)
  %p = getelementptr i64, ptr @labels, i64 %i
  %m = load i64, ptr %p
  %a = call i64 @labs(i64 %m)
  %s = add i64 %n, %a
  ret i64 %s
}
define ptr @where() {
  ret ptr @labs
}
"""


def compiled(*texts: str, target: str = "native") -> Image:
    return link_objects([compile_object(text, named_target(target)) for text in texts])


def test_objects_are_linked_and_run() -> None:
    image = Image.from_bytes(compiled(FIRST, SECOND).to_bytes())
    assert set(image.exports) == {"both", "where"}
    assert image.imports == ("labs",)
    code = load_image(image)
    both = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address("both"))
    assert [both(0), both(1)] == [105, 207]
    where = ctypes.CFUNCTYPE(ctypes.c_void_p)(code.address("where"))
    labs = ctypes.CDLL(None).labs
    assert where() == ctypes.cast(labs, ctypes.c_void_p).value


def test_given_symbols_go_before_the_systems() -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    thousand = kind(lambda value: 1000)
    address = ctypes.cast(thousand, ctypes.c_void_p).value
    assert address is not None
    code = load_image(compiled(FIRST, SECOND), {"labs": address})
    assert kind(code.address("both"))(1) == 1007


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_never_writable_and_executable() -> None:
    code = load_image(compiled(FIRST, SECOND))
    address = code.address("both")
    (rights,) = (
        rights
        for start, end, rights in re.findall(
            r"^(\w+)-(\w+) (\S+)", Path("/proc/self/maps").read_text(), re.MULTILINE
        )
        if int(start, 16) <= address < int(end, 16)
    )
    assert rights == "r-xp"


# -- what cannot be linked -------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@state = global i32 3", "no memory to write"),
        ("@state = global i32 0", "no memory to write"),
        ("define void @f() {\n ret void\n}\n@at = constant ptr @f", "no memory to write"),
        ("@state = thread_local global i32 3", "no memory to write"),
    ],
)
def test_what_an_image_cannot_hold_is_refused(target: str, text: str, reason: str) -> None:
    with pytest.raises(CnncError, match=f"cannot link section `.*`: .*{reason}"):
        compiled(text, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_unknown_relocations_are_refused(target: str) -> None:
    data = bytearray(compile_object(FIRST, named_target(target)))
    link_objects([bytes(data)])
    offset = next(at for type, at, _ in _sections(bytes(data)) if type == 4)
    struct.pack_into("<I", data, offset + 8, 1)  # on x86 an absolute address, on ARM nothing
    with pytest.raises(CnncError, match=r"cannot link `.*`: relocation 1 is not supported"):
        link_objects([bytes(data)])


def _sections(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, offset, size) of an object's sections."""
    (start,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
    for i in range(count):
        section = struct.unpack_from("<IIQQQQIIQQ", data, start + 64 * i)
        yield section[1], section[4], section[5]


def test_clashes_and_mixtures_are_refused() -> None:
    with pytest.raises(CnncError, match="two objects define `pick`"):
        compiled(FIRST, FIRST)
    objects = [compile_object(FIRST, named_target(name)) for name in ("x86-64", "aarch64")]
    with pytest.raises(CnncError, match="not for one architecture"):
        link_objects(objects)
    for data in (b"", b"garbage", objects[0][:60], b"\x7fELF" + objects[0][:70]):
        with pytest.raises(CnncError, match="damaged, or no ELF object"):
            link_objects([data])


def test_missing_functions_are_told_on_loading() -> None:
    image = compiled(
        "declare void @nowhere()\ndefine void @f() {\n call void @nowhere()\n ret void\n}"
    )
    with pytest.raises(CnncError, match="it calls `nowhere`, not found here"):
        load_image(image)


def test_other_architectures_are_refused() -> None:
    foreign = AARCH64 if native_target().triple.startswith("x86_64") else X86_64
    with pytest.raises(CnncError, match="for another architecture"):
        load_image(replace(compiled(FIRST), machine=foreign))


def test_damaged_images_are_refused() -> None:
    image = compiled(FIRST, SECOND)
    data = image.to_bytes()
    for damaged in (b"", data[:7], data[:20], data[:-1], data + b"\0", b"\xff" * len(data)):
        with pytest.raises(CnncError, match="damaged"):
            Image.from_bytes(damaged)
    beyond = {"both": len(image.content)}
    for wrong in (
        replace(image, table=image.table + 8),
        replace(image, table=-8),
        replace(image, imports=()),
        replace(image, exports=beyond),
        replace(image, exports={"both": -1}),
    ):
        with pytest.raises(CnncError, match="damaged"):
            Image.from_bytes(wrong.to_bytes())
    assert Image.from_bytes(data) == image


# -- AArch64, read back ----------------------------------------------------------------------------


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def _calls(content: bytes) -> Iterator[int]:
    """The places that calls and jumps of AArch64 code go to."""
    for at, (word,) in enumerate(struct.iter_unpack("<I", content[: len(content) // 4 * 4])):
        if word >> 26 in (0b100101, 0b000101):
            yield 4 * at + 4 * _signed(word & 0x3FFFFFF, 26)


def _page_of(word: int, at: int) -> int:
    """The page that an `adrp` at `at` gives."""
    assert word & 0x9F000000 == 0x90000000, "no adrp"
    pages = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
    return (at >> 12 << 12) + (pages << 12)


def _stub_target(content: bytes, at: int) -> int:
    """The place of the word that a stub jumps by."""
    page, load, jump = struct.unpack_from("<3I", content, at)
    assert load & 0xFFC003FF == 0xF9400210 and jump == 0xD61F0200
    assert page & 31 == 16
    return _page_of(page, at) + 8 * int(load >> 10 & 0xFFF)


@pytest.mark.parametrize("system", ["unknown-linux-gnu", "apple-darwin22.6.0"])
def test_aarch64_code_finds_its_imports(system: str) -> None:
    target = replace(named_target("aarch64"), triple=f"aarch64-{system}")
    text = team_text(target.triple)
    image = link_objects([compile_object(text, target, optimise=True)])
    assert image.machine == AARCH64
    assert {"cnnc_take", "cnnc_done", "cnnc_wait", "cnnc_team_run"} <= image.exports.keys()
    called = {at for at in _calls(image.content[: image.table]) if at % 16 == 0}
    reached = set()
    for at in called:
        try:
            reached.add(_stub_target(image.content, at))
        except (AssertionError, struct.error):
            continue  # a call within the code
    words = {image.table + 8 * i for i in range(len(image.imports))}
    assert len(words) > 8 and words == reached


@pytest.mark.parametrize("distance", [0, 4096 - 64, 3 * 4096 + 8])
def test_aarch64_code_finds_its_constants(distance: int) -> None:
    """Wherever the constants come to lie relative to a page."""
    filler = f"@filler = constant [{distance} x i8] zeroinitializer\n"
    image = compiled(filler, FIRST, target="aarch64")
    at = _only_adrp(image.content)
    page, add = struct.unpack_from("<2I", image.content, at)
    assert add & 0xFFC00000 == 0x91000000, "no add"
    place = _page_of(page, at) + (add >> 10 & 0xFFF)
    assert struct.unpack_from("<3q", image.content, place) == (5, 7, 11)


def _only_adrp(content: bytes) -> int:
    words = struct.iter_unpack("<I", content[: len(content) // 4 * 4])
    (at,) = (4 * i for i, (word,) in enumerate(words) if word & 0x9F000000 == 0x90000000)
    return at


@pytest.mark.parametrize("name", TARGETS)
def test_models_link_for_every_architecture(name: str) -> None:
    built = build("lenet", Options(target=name))
    code = compile_object(built.module.text, built.target)
    image = link_objects([code])
    assert image.machine == TARGETS[name]
    assert [*image.exports] == ["run0"]
    assert image.imports == ("cnnc_done", "cnnc_take", "cnnc_wait")
    where = image.content.find(code[_text_at(code) : _text_at(code) + 16])
    assert where >= 0


def _text_at(code: bytes) -> int:
    return next(o for t, o, size in _sections(code) if t == 1 and size)


def test_objects_are_elf_on_every_system() -> None:
    for triple in ("x86_64-apple-darwin22.6.0", "arm64-apple-darwin22.6.0", "x86_64-pc-freebsd14"):
        target = replace(named_target("x86-64"), triple=triple, cpu="generic", features="")
        objects = [compile_object(text, target) for text in (FIRST, SECOND)]
        image = link_objects(objects)
        assert image.imports == ("labs",) and set(image.exports) == {"both", "where"}


# -- loading and unloading -------------------------------------------------------------------------


_LOADS = """
import gc, sys
from pathlib import Path
import numpy as np
import cnnc

x = np.zeros((1, 1, 8, 8), np.float32)

def load_and_drop():
    for _ in range(100):
        cnnc.load_compiled(sys.argv[1], threads=1)(x)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Path("/proc/self/maps").read_text().count("\\n"), pages * 4096

load_and_drop()
(maps, memory), (maps_after, memory_after) = load_and_drop(), load_and_drop()
print(maps_after - maps, memory_after - memory)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unloading_frees(tmp_path: Path) -> None:
    path = tmp_path / "digits.cnnca"
    model = cnnc.compile("digits", threads=1, cache=False)
    model.save(path)
    # In a process of its own: what others leave to the collector would count as well.
    command = [sys.executable, "-c", _LOADS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mappings, grown = map(int, done.stdout.split())
    assert mappings <= 2
    assert grown < 100 * len(model.artifact.code) / 4


def test_many_threads_load_and_run_several_models(tmp_path: Path) -> None:
    model = cnnc.compile("digits", threads=1, cache=False)
    other = cnnc.compile("digits", threads=2, exact=True, cache=False)
    model.save(tmp_path / "a.cnnca")
    other.save(tmp_path / "b.cnnca")
    x = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    wanted = {"a": model(x), "b": other(x)}
    failed: list[str] = []

    def work() -> None:
        for _ in range(5):
            loaded = {name: cnnc.load_compiled(tmp_path / f"{name}.cnnca") for name in wanted}
            failed.extend(n for n, m in loaded.items() if not np.array_equal(m(x), wanted[n]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and not any(thread.is_alive() for thread in threads)


def test_threads_compile_at_the_same_time_and_the_same() -> None:
    texts = [FIRST.replace("pick", f"pick{i}") for i in range(8)]
    target = native_target()
    wanted = [compile_object(text, target) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(compile_object, texts, repeat(target))) == wanted
    # Else llvmlite has changed, and threads take turns: `_unlock` in `cnnc.codegen.llvm`.
    assert not hasattr(ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_lock")
    assert hasattr(ffi.lib.LLVMPY_VerifyModule, "_lock")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to refuse")
def test_refused_memory_is_an_error_with_help(tmp_path: Path) -> None:
    path = tmp_path / "digits.cnnca"
    cnnc.compile("digits", threads=1, cache=False).save(path)
    program = """
import ctypes, sys, cnnc
from cnnc.ir.location import CnncError
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # nothing becomes executable from now on
    sys.exit(3)
try:
    cnnc.load_compiled(sys.argv[1])
except CnncError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this Linux cannot refuse")
    assert "the system refuses executable memory" in done.stdout, done.stderr
    assert "MemoryDenyWriteExecute" in done.stdout


# -- the processor ---------------------------------------------------------------------------------


CPUINFO = "processor : 0\nvendor_id : Some\nmodel : 1\nflags : fpu avx2 bmi1\nbogomips : 5000.0\n"


def test_fingerprints_tell_processors_apart(tmp_path: Path) -> None:
    def of(text: str) -> str:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/cpuinfo").write_text(text)
        return fingerprint_at(tmp_path)

    one = of(CPUINFO)
    assert one and one == of(CPUINFO + CPUINFO.replace("processor : 0", "processor : 1"))
    assert one == of(CPUINFO + "cpu MHz : 1234.5\n")  # of the moment
    changed = [("avx2", "avx"), ("model : 1", "model : 2"), ("Some", "Other"), ("5000", "6000")]
    assert len({one, *(of(CPUINFO.replace(a, b)) for a, b in changed)}) == 1 + len(changed)
    assert of("nothing that is known") == ""
    (tmp_path / "proc/cpuinfo").unlink()
    assert fingerprint_at(tmp_path) == ""


@pytest.mark.skipif(not fingerprint(), reason="the system does not tell of its processor")
def test_the_system_knows_the_features_of_presets_as_llvm_does() -> None:
    host = native_target()
    known = set(host.features.split(","))
    arch = host.triple.partition("-")[0]
    presets = [named_target(n) for n in ("x86-64-v4", "x86-64-v3", "x86-64", "aarch64")]
    for target in presets:
        if target.triple.startswith(arch):
            wanted = {feature for feature in target.features.split(",") if feature}
            assert has_features(target.features) == (wanted <= known)
            assert can_run(target) == (wanted <= known)
    assert not has_features("+teleport") and flags()


def test_loading_twice_gives_two_pieces_of_memory() -> None:
    data = compile_object(FIRST.replace("hidden ", ""), native_target())
    one, two = load_object(data), load_object(data)
    assert one.address("pick") != two.address("pick")


def test_running_from_the_cache_loads_no_llvm(tmp_path: Path) -> None:
    program = """
import sys, numpy as np, cnnc
from cnnc.cli import main
model = cnnc.compile("digits", threads=2)
assert model(np.zeros((1, 1, 8, 8), np.float32)).shape == (1, 10)
model.save(sys.argv[1])
main(["run", sys.argv[1], "--input", "random", "-q"], standalone_mode=False)
heavy = ("llvmlite", "lark", "pydantic", "cnnc.driver", "cnnc.codegen.elf")
print(model.report().cached, [name for name in heavy if name in sys.modules])
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path / "digits.cnnca")]
    last = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        last.append(done.stdout.splitlines()[-1])
    assert last[0].startswith("False ['llvmlite', ") and last[1] == "True []"
