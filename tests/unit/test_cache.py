"""The cache of compiled models: what is kept, who may use it, how it is kept small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_harness import MODEL, SIZES, compiled, entries, is_cached
from cli_harness import call, good

import cnnc
from cnnc import cache, driver
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.location import CnncError, OptionError
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.runtime.files import PART

pytestmark = pytest.mark.usefixtures("folder")

# -- hits ------------------------------------------------------------------------------------------


def test_second_compilation_is_from_the_cache(small: Path, folder: Path) -> None:
    said: list[str] = []
    first, second = compiled(small), compiled(small, progress=said.append)
    assert not first.report().cached and second.report().cached
    assert said == []
    assert "loaded in" in str(second.report()) and "compiled in" in str(first.report())
    x = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    assert np.array_equal(first(x), second(x))
    assert [path.name.partition("-")[0] for path in entries(folder)] == ["small"]


def test_cache_can_be_left_out(small: Path, folder: Path) -> None:
    assert not is_cached(small, cache=False) and not folder.exists()
    assert not is_cached(small) and not is_cached(small, cache=False) and is_cached(small)


def test_graphs_are_not_cached(small: Path, folder: Path) -> None:
    graph = driver.load_graph(small, Options(sizes=SIZES))
    assert not cnnc.compile(graph, threads=1).report().cached
    assert not cnnc.compile(graph, threads=1).report().cached and not folder.exists()


def test_threads_share_an_entry(small: Path, folder: Path) -> None:
    compiled(small)
    other = compiled(small, threads=3, strict=True, cache_bytes=10**9)
    assert other.report().cached and other.threads == 3
    assert other.memory.scratch == 3 * compiled(small).memory.scratch
    assert len(entries(folder)) == 1


def test_a_hit_needs_none_of_the_compiler(small: Path) -> None:
    program = f"""
import sys, numpy as np, cnnc
model = cnnc.compile({str(small)!r}, sizes={SIZES!r}, threads=1)
model(np.zeros((1, 1, 8, 8), np.float32))
heavy = ("lark", "pydantic", "safetensors", "cnnc.driver", "cnnc.ir.graph")
print(model.report().cached, [name for name in heavy if name in sys.modules])
"""
    compiled(small)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_what_was_compiled_has_its_weights_in_the_cache(small: Path, folder: Path) -> None:
    model = compiled(small)
    assert not model.report().cached and "native code" in model.report().seconds
    assert not model.artifact.weights.flags.writeable  # the file's, mapped
    again, apart = compiled(small), compiled(small, cache=False)
    assert again.artifact.to_bytes() == model.artifact.to_bytes()
    assert apart.artifact.weights.flags.writeable
    x = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    assert np.array_equal(model(x), apart(x)) and np.array_equal(model(x), again(x))
    assert compiled(small, exact=True, cache_bytes=0).artifact.weights.flags.writeable


# -- errors ----------------------------------------------------------------------------------------


def test_wrong_options_are_told_on_a_hit_too(small: Path) -> None:
    compiled(small)
    for options, words in (
        ({"threads": 0}, "option `threads`"),
        ({"threads": "2"}, "option `threads`"),
        ({"threads": True}, "option `threads`"),
        ({"thread": 2}, "did you mean `threads`"),
        ({"cache": 1}, "option `cache`"),
        ({"strict": "no"}, "option `strict`"),
        ({"cache_bytes": -1}, "option `cache_bytes`"),
        ({"exact": 0}, "option `exact`"),
        ({"target": 5}, "option `target`"),
        ({"target": "x86-64-v33"}, "did you mean `x86-64-v3`"),
        ({"sizes": {"H": 8.0}}, "option `sizes`"),
        ({"parameters": {"classes": object()}}, "classes"),
    ):
        with pytest.raises(CnncError, match=words):
            compiled(small, **options)
    with pytest.raises(OptionError, match="did you mean `lenet`"):
        compiled("lennet")


def test_models_with_errors_are_not_kept(small: Path, folder: Path) -> None:
    small.write_text(MODEL.replace("gap", "gaap"))
    for _ in range(2):
        with pytest.raises(CnncError, match="gaap"):
            compiled(small)
    assert not entries(folder)


def test_models_with_parts_in_numpy_are_not_kept(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = compiled(small, cache=False)
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != "softmax"}
    monkeypatch.setattr(driver, "KERNELS", kernels)
    for _ in range(2):
        mixed = compiled(small)
        assert not mixed.report().cached and mixed.report().reference == ("softmax[0]",)
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.testing.assert_allclose(mixed(x), native(x), rtol=1e-6)
    assert not entries(folder)
    with pytest.raises(CnncError, match=r"cannot be saved: `softmax\[0\]` has no native code"):
        mixed.save(folder / "mixed.cnnca")


def test_a_change_during_the_compilation_is_not_kept(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = driver.compile

    def slow(*args: Any, **options: Any) -> CompiledModel:
        small.write_text(f"{MODEL}# changed\n")
        return original(*args, **options)

    monkeypatch.setattr(driver, "compile", slow)
    assert not is_cached(small)
    assert not entries(folder)


# -- the folder ------------------------------------------------------------------------------------


def test_folder_is_private(small: Path, folder: Path) -> None:
    compiled(small)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in entries(folder)] == [0o600]


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_folder_of_others_is_refused(small: Path, folder: Path, mode: int) -> None:
    compiled(small)
    folder.chmod(mode)
    with pytest.warns(cache.CacheWarning, match="others may write to it(.|\n)*chmod it to 700"):
        assert not is_cached(small)
    folder.chmod(0o700)
    assert is_cached(small)


def test_another_users_folder_is_refused(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(small)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.warns(cache.CacheWarning, match="belongs to another user"):
        assert not is_cached(small)


def test_entry_that_others_may_write_to_is_not_used(small: Path, folder: Path) -> None:
    compiled(small)
    (entry,) = entries(folder)
    entry.chmod(0o666)
    assert not is_cached(small) and is_cached(small)
    assert entry.stat().st_mode & 0o777 == 0o600


def test_folder_that_cannot_be_made(small: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.warns(cache.CacheWarning, match="the cache cannot be used"):
        assert not is_cached(small)


def test_folder_that_is_full(small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise CnncError("cannot write: no space left")

    monkeypatch.setattr(cache, "save", full)
    with pytest.warns(cache.CacheWarning, match="no space left"):
        assert not is_cached(small)


def test_home_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder() == tmp_path / ".cache" / "cnnc"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_damaged_entry_is_replaced(small: Path, folder: Path, damage: str) -> None:
    compiled(small)
    (entry,) = entries(folder)
    data = entry.read_bytes()
    flipped = bytearray(data)
    flipped[2000] ^= 4
    damaged = {"empty": b"", "cut": data[:-1], "flipped": bytes(flipped), "text": b"x"}
    entry.write_bytes(damaged[damage])
    assert not is_cached(small) and is_cached(small)


def test_oldest_entries_go_first(tmp_path: Path, folder: Path) -> None:
    names = "abcd"
    for age, name in enumerate(names):
        model = tmp_path / f"{name}.cnn"
        model.write_text(f"model {name} {{\n input x: f32[N, 8]\n output y = x -> dense(8)\n}}\n")
        compiled(model, sizes={})
        (entry,) = folder.glob(f"{name}-*")
        os.utime(entry, (1e9 + age, 1e9 + age))
    left_over = folder / f".crashed{PART}"
    left_over.write_bytes(b"")
    os.utime(left_over, (1e9, 1e9))
    assert is_cached(tmp_path / "a.cnn", sizes={})  # used just now
    last = tmp_path / "e.cnn"
    last.write_text((tmp_path / "d.cnn").read_text())
    room = 3 * entry.stat().st_size + 100
    compiled(last, sizes={}, cache_bytes=room)
    assert [path.name[0] for path in entries(folder)] == ["a", "d", "e"]
    assert not left_over.exists()
    compiled(last, sizes={}, exact=True, cache_bytes=0)
    assert [path.name[0] for path in entries(folder)] == ["a", "d", "e"]


def test_hashes_of_large_files_are_remembered(tmp_path: Path, folder: Path) -> None:
    found, path = cache.open_cache(), tmp_path / "big"
    path.write_bytes(bytes(3 << 20))
    fresh = found.file_hash(path)
    assert not list(folder.glob("*.hash"))  # it may still be changing
    before = time.time() - 10
    os.utime(path, (before, before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_SETTLED_SECONDS", -1.0)
        assert found.file_hash(path) == fresh
    (memo,) = folder.glob("*.hash")
    memo.write_text("0" * 64)
    assert found.file_hash(path) == "0" * 64
    memo.write_text("rubbish")
    assert found.file_hash(path) == fresh
    memo.write_text("0" * 64)
    with path.open("r+b") as file:
        file.write(b"1")
    os.utime(path, (before, before))
    assert found.file_hash(path) not in (fresh, "0" * 64)


def test_many_processes_may_compile_the_same_model(small: Path, folder: Path) -> None:
    program = f"""
import numpy as np, cnnc
model = cnnc.compile({str(small)!r}, sizes={SIZES!r}, threads=1)
print(model(np.ones((1, 1, 8, 8), np.float32)).tobytes().hex())
"""
    command = [sys.executable, "-W", "error", "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert len(entries(folder)) == 1 and is_cached(small)
    assert not list(folder.glob(f".*{PART}"))


# -- commands --------------------------------------------------------------------------------------


def test_commands_use_and_show_the_cache(small: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (small, "--size", "H=8", "--input", "random")
    assert f"{folder}: 0 models" in good("cache")
    cold = good("run", *arguments, "--no-cache", "-q")
    assert "0 models" in good("cache")
    assert good("run", *arguments, "-q") == cold
    assert "1 model," in good("cache") and "small" in good("cache")
    assert '"model": "small"' in good("cache", "--json")
    assert good("run", *arguments) == cold
    bench = good("bench", small, "--size", "H=8", "--repeats", "1", "-q", "--json")
    assert '"cached": false' in bench
    assert "removed" in good("cache", "--clear")
    assert not list(folder.iterdir())


def test_compiled_files_can_be_run(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.cnnca"
    good("compile", small, "--size", "H=8", "--output", path, "-q")
    cold = good("run", small, "--size", "H=8", "--input", "random", "--no-cache", "-q")
    assert good("run", path, "--input", "random", "-q") == cold
    result = call("run", path, "--input", "random", "--exact")
    assert (
        result.exit_code == 1 and "is compiled already, it is too late for: exact" in result.stderr
    )
