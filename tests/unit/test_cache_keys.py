"""What keys of the cache cover: options, all files of a model, the machine, cnnc's own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_harness import MODEL, compiled, entries, is_cached
from safetensors.numpy import load_file, save_file

from cnnc import cache, keys
from cnnc.frontends import FRONTENDS
from cnnc.options import Options
from cnnc.sources import ZOO

pytestmark = pytest.mark.usefixtures("folder")


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
        assert inside <= {file.as_posix() for file in FRONTENDS[".cnn"].files(path)}
    assert len(FRONTENDS[".cnn"].files(small)) == 4


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
    assert len(FRONTENDS[".cnn"].files(small)) == 4


def test_defaults_need_not_be_left_out(small: Path, folder: Path) -> None:
    compiled(small)
    assert is_cached(small, exact=False, target="native", parameters={}, max_rel_err=1e-4)
    fields = Options.model_fields
    assert dict(keys.RELEVANT) == {
        name: fields[name].get_default(call_default_factory=True) for name in keys.RELEVANT
    }


def test_every_option_is_relevant_or_known_not_to_be() -> None:
    assert Options.model_fields.keys() - keys.RELEVANT.keys() == {
        "threads",
        "strict",
        "tune",
        "cache",
        "cache_bytes",
    }
