"""The cache of compiled models: what its keys cover, who may use it, how it is kept small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import cnnc
from cnnc import cache, driver, keys
from cnnc.cli import main
from cnnc.codegen.kernels import KERNELS
from cnnc.frontends import FILES, load
from cnnc.ir.location import CnncError, OptionError
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.runtime.artifact import SUFFIX
from cnnc.runtime.files import PART
from cnnc.sources import ZOO

BLOCKS = """\
const width = 6
block layer(c) = conv(c, 3, pad=1) -> relu
"""

MODEL = """\
import "parts/blocks.cnn" (layer, width)
model small(classes=4) {
  input image: f32[N, 1, H%2, 8]
  output prob = image -> layer(width) -> gap -> dense(classes) -> softmax
  weights "small.safetensors" map "names.txt"
}
"""

SIZES = {"H": 8}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test; where it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cnnc"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of four files."""
    path = tmp_path / "models" / "small.cnn"
    (path.parent / "parts").mkdir(parents=True)
    (path.parent / "parts" / "blocks.cnn").write_text(BLOCKS)
    path.write_text(MODEL.replace('weights "small.safetensors" map "names.txt"', "init he(seed=1)"))
    graph = load(path)
    weights = {name.upper(): array for name, array in graph.constants.items()}
    save_file(weights, path.parent / "small.safetensors")
    (path.parent / "names.txt").write_text("".join(f"{n} = {n.upper()}\n" for n in graph.constants))
    path.write_text(MODEL)
    return path


def compiled(source: Path | str, **options: Any) -> CompiledModel:
    chosen: dict[str, Any] = {"sizes": SIZES, "threads": 1} | options
    return cnnc.compile(source, **chosen)


def is_cached(source: Path | str, **options: Any) -> bool:
    return compiled(source, **options).report().cached


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


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


def test_defaults_need_not_be_left_out(small: Path, folder: Path) -> None:
    compiled(small)
    assert is_cached(small, exact=False, target="native", parameters={}, max_rel_err=1e-4)
    fields = Options.model_fields
    assert dict(keys.RELEVANT) == {
        name: fields[name].get_default(call_default_factory=True) for name in keys.RELEVANT
    }


def test_every_option_is_relevant_or_known_not_to_be() -> None:
    assert fields() - set(keys.RELEVANT) == {"threads", "strict", "tune", "cache", "cache_bytes"}


def fields() -> set[str]:
    return set(Options.model_fields)


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


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"exact": True},
        {"sizes": {"H": 10}},
        {"parameters": {"classes": 4}},
        {"max_rel_err": 1e-5},
        {"passes": "default,-fuse-epilogue"},
    ],
)
def test_options_make_a_difference(small: Path, folder: Path, options: dict[str, Any]) -> None:
    compiled(small)
    assert not is_cached(small, **options)
    assert is_cached(small, **options) and is_cached(small)
    assert len(entries(folder)) == 2


def test_parameters_of_other_types_make_a_difference(small: Path) -> None:
    values = (4, 4.0, "4", True, [4])
    found = {key(small, parameters={"classes": value}) for value in values}
    assert len(found) == len(values) and None not in found


def key(source: Path, **options: Any) -> str | None:
    return keys.key_of(source, options, cache.open_cache().file_hash)


@pytest.mark.parametrize("name", ["small.cnn", "parts/blocks.cnn", "names.txt"])
def test_text_makes_a_difference(small: Path, name: str) -> None:
    path = small.parent / name
    text = path.read_text()
    compiled(small)
    path.write_text(f"{text}# a remark\n")
    assert not is_cached(small) and is_cached(small)
    path.write_text(text)
    assert is_cached(small)


def test_weights_make_a_difference(small: Path) -> None:
    path = small.parent / "small.safetensors"
    before = path.stat()
    x = np.ones((1, 1, 8, 8), np.float32)
    first = compiled(small)(x)
    save_file({name: -array for name, array in load_file(path).items()}, path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it were untouched
    changed = compiled(small)
    assert not changed.report().cached and not np.array_equal(changed(x), first)


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


def test_machine_and_versions_make_a_difference(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {key(small), key(small, target="x86-64-v3"), key(small, target="x86-64")}
    other = {"VERSION": 0} | {
        name: lambda: "other" for name in ("llvm_build", "code_hash", "fingerprint")
    }
    for name, value in other.items():
        with monkeypatch.context() as patch:
            patch.setattr(keys, name, value)
            found.add(key(small))
    assert len(found) == 7


def test_code_hash_covers_the_rooms() -> None:
    seen: list[str] = []

    def note(path: str) -> bytes:
        seen.append(
            Path(path).resolve().relative_to(Path(keys.__file__).parents[1].resolve()).as_posix()
        )
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_content", note)
        keys.code_hash.__wrapped__()
    assert {f"{r}/__init__.py" for r in ("ir", "passes", "codegen", "frontends", "runtime")} <= {
        *seen
    }
    assert {"codegen/emit.py", "frontends/dsl/grammar.lark", "cnnc/driver.py"} <= {*seen}
    assert not [name for name in seen if name.startswith(("cnnc/cli", "tests"))]


def test_files_are_all_that_loading_reads(small: Path) -> None:
    for path in (small, ZOO / "digits.cnn"):
        read = set(opened_while_loading(path))
        inside = {file for file in read if Path(file).is_relative_to(path.parent.resolve())}
        assert path.resolve().as_posix() in inside
        assert inside <= {file.as_posix() for file in FILES[".cnn"](path)}
    assert len(FILES[".cnn"](small)) == 4


def opened_while_loading(path: Path) -> list[str]:
    """Every file that is opened, whoever opens it. Native readers open unseen, but map by name."""
    seen: list[str] = []
    program = f"""
import sys
from cnnc.frontends import load
import cnnc.frontends.dsl.load, cnnc.frontends.weights
from pathlib import Path
names = []
sys.addaudithook(lambda event, args: event == "open" and names.append(str(args[0])))
original = cnnc.frontends.weights.safe_open
def noted(name, **rest):
    names.append(str(name))
    return original(name, **rest)
cnnc.frontends.weights.safe_open = noted
load({str(path)!r})
print("\\n".join(names))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in done.stdout.splitlines():
        seen.append(Path(name).resolve().as_posix())
    return seen


def test_files_outside_the_folder_are_not_read(small: Path) -> None:
    (small.parent.parent / "secret.cnn").write_text("const a = 1\n")
    small.write_text('import "../secret.cnn"\n# "/etc/hosts" "a\0b" "parts"\n' + MODEL)
    assert len(FILES[".cnn"](small)) == 4


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


def command(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands_use_and_show_the_cache(small: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (small, "--size", "H=8", "--input", "random")
    assert f"{folder}: 0 models" in command("cache")
    cold = command("run", *arguments, "--no-cache", "-q")
    assert "0 models" in command("cache")
    assert command("run", *arguments, "-q") == cold
    assert "1 model," in command("cache") and "small" in command("cache")
    assert '"model": "small"' in command("cache", "--json")
    assert command("run", *arguments) == cold
    bench = command("bench", small, "--size", "H=8", "--repeats", "1", "-q", "--json")
    assert '"cached": false' in bench
    assert "removed" in command("cache", "--clear")
    assert not list(folder.iterdir())


def test_compiled_files_can_be_run(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.cnnca"
    command("compile", small, "--size", "H=8", "--output", path, "-q")
    cold = command("run", small, "--size", "H=8", "--input", "random", "--no-cache", "-q")
    assert command("run", path, "--input", "random", "-q") == cold
    result = CliRunner().invoke(main, ["run", str(path), "--input", "random", "--exact"])
    assert (
        result.exit_code == 1 and "is compiled already, it is too late for: exact" in result.stderr
    )
