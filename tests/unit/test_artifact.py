"""Compiled models as files: round trip, every damage, machines, pickling."""

from __future__ import annotations

import pickle
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import cnnc
from cnnc.codegen.team import team_symbols
from cnnc.driver import assemble, build
from cnnc.ir.calling import Slot
from cnnc.ir.location import CnncError, OptionError
from cnnc.ir.types import DType, Sym
from cnnc.link import link
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.runtime.artifact import VERSION, Machine, Tensor, load, save
from cnnc.runtime.files import PART
from cnnc.runtime.plain import read, write

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    return cnnc.compile("digits", threads=1, cache=False)


@pytest.fixture
def saved(model: CompiledModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "digits.cnnca")
    return tmp_path / "digits.cnnca"


def images(count: int = 3) -> Floats:
    return np.random.default_rng(0).random((count, 1, 8, 8), np.float32)


def test_loaded_model_is_the_saved_one(model: CompiledModel, saved: Path) -> None:
    loaded = cnnc.load_compiled(saved, threads=2)
    assert np.array_equal(loaded(images()), model(images()))
    assert (loaded.inputs, loaded.outputs) == (model.inputs, model.outputs)
    assert loaded.threads == 2
    old, new = model.report(), loaded.report()
    assert not old.cached and new.cached and list(new.seconds) == ["load"]
    same = replace(old, cached=True, threads=2, seconds=new.seconds, memory=new.memory)
    assert new == same
    assert new.memory.weights == old.memory.weights
    assert list(loaded.profile({"image": images()})) == list(model.profile({"image": images()}))


def test_saving_again_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save(tmp_path / "again.cnnca", load(saved))
    assert (tmp_path / "again.cnnca").read_bytes() == saved.read_bytes()


def test_weights_are_mapped_and_aligned(saved: Path) -> None:
    weights = load(saved).weights
    assert not weights.flags.writeable and not weights.flags.owndata
    assert weights.ctypes.data % 4096 == 0


def test_loading_needs_none_of_the_compiler(saved: Path) -> None:
    program = f"""
import sys, numpy as np, cnnc
y = cnnc.load_compiled({str(saved)!r})(np.zeros((1, 1, 8, 8), np.float32))
assert y.shape == (1, 10)
heavy = ("llvmlite", "lark", "pydantic", "cnnc.driver", "cnnc.passes", "cnnc.ir.graph")
print([name for name in (*heavy, "cnnc.codegen.kernels", "cnnc.frontends") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# -- damage ----------------------------------------------------------------------------------------


def broken(path: Path) -> str:
    with pytest.raises(CnncError) as caught:
        cnnc.load_compiled(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_no_truncation_goes_unseen(saved: Path) -> None:
    data = saved.read_bytes()
    for size in (0, 1, 8, 50, 87, 88, 100, 4095, 4096, len(data) - 65, len(data) - 1):
        saved.write_bytes(data[:size])
        broken(saved)
    saved.write_bytes(data + b"\0")
    assert "bytes in place of" in broken(saved)


def test_no_flipped_bit_goes_unseen(model: CompiledModel, saved: Path) -> None:
    data = saved.read_bytes()
    weights_end = len(data) - 64  # behind the weights are zeros that mean nothing
    weights_at = weights_end - model.artifact.weights.nbytes
    head_end = 88 + sum(struct.unpack_from("<3Q", data, 16))
    rng = np.random.default_rng(0)
    places = [
        *range(88),
        *rng.integers(88, head_end, 60),
        *rng.integers(weights_at, weights_end, 60),
    ]
    for at in places:
        if 12 <= at < 16:  # padding
            continue
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(flipped)
        broken(saved)
    saved.write_bytes(data)
    cnnc.load_compiled(saved)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.cnnca"
    path.write_bytes(b"\x7fELF" + bytes(8192))
    assert "is no compiled model" in broken(path)
    assert "cannot read" in broken(tmp_path / "missing.cnnca")
    assert "cannot read" in broken(tmp_path)


def test_other_versions_are_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    struct.pack_into("<I", data, 8, VERSION + 1)
    saved.write_bytes(data)
    message = broken(saved)
    assert f"version {VERSION + 1}" in message and "compile the model again" in message


def test_version_stands_for_what_code_expects() -> None:
    """Who changes the context or the thread team must count `VERSION` up, and then change this."""
    words = "ARENA WEIGHTS SCRATCH IMAGES PROFILE COUNTERS ROUND GROUPS ARRAYS"
    assert [slot.name for slot in Slot] == words.split()
    assert sorted(team_symbols()) == ["cnnc_done", "cnnc_take", "cnnc_wait"]
    assert VERSION == 4


def test_other_processors_are_refused(model: CompiledModel) -> None:
    manifest = model.artifact.manifest
    features = manifest.machine.features + ",+frobnicate"
    machine = replace(manifest.machine, features=features, fingerprint="of another one")
    artifact = replace(model.artifact, manifest=replace(manifest, machine=machine))
    with pytest.raises(OptionError, match=r"it cannot run on this machine(.|\n)*lacks frobnicate"):
        link(artifact)
    built = build("digits", Options(target="aarch64"))
    if manifest.machine.triple.startswith("x86_64"):
        with pytest.raises(OptionError, match="compiled for generic"):
            link(assemble(built))


def test_code_that_is_no_code_is_refused(model: CompiledModel) -> None:
    with pytest.raises(CnncError, match="object code is damaged"):
        link(replace(model.artifact, code=b"nothing"))


# -- writing ---------------------------------------------------------------------------------------


def test_a_file_that_is_in_use_can_be_replaced(model: CompiledModel, saved: Path) -> None:
    loaded = cnnc.load_compiled(saved)
    model.save(saved)
    saved.unlink()
    assert np.array_equal(loaded(images()), model(images()))


def test_failed_writes_leave_nothing(model: CompiledModel, tmp_path: Path) -> None:
    with pytest.raises(CnncError, match="cannot write"):
        model.save(tmp_path / "missing" / "net.cnnca")
    folder = tmp_path / "net.cnnca"
    folder.mkdir()
    with pytest.raises(CnncError, match="cannot write"):
        model.save(folder)
    assert not list(tmp_path.glob(f".*{PART}"))


def test_models_with_parts_in_numpy_are_not_saved(tmp_path: Path) -> None:
    text = "model m {\n input a: f32[N, 4]\n output y = a -> relu\n init zeros\n}\n"
    (tmp_path / "m.cnn").write_text(text)
    compiled = cnnc.compile(tmp_path / "m.cnn", cache=False)
    manifest = replace(compiled.artifact.manifest, foreign=("odd",))
    with pytest.raises(CnncError, match="`m` cannot be saved: `odd` has no native code"):
        save(tmp_path / "m.cnnca", replace(compiled.artifact, manifest=manifest))
    assert not list(tmp_path.glob("*m.cnnca*"))


def test_models_travel_to_other_processes(model: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "x.npy", images())
    program = f"""
import pathlib, pickle, numpy as np
folder = pathlib.Path({str(tmp_path)!r})
model = pickle.loads((folder / "model").read_bytes())
np.save(folder / "y.npy", model(np.load(folder / "x.npy")))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), model(images()))
    assert pickle.loads(pickle.dumps(model)).threads == model.threads


# -- plain data ------------------------------------------------------------------------------------


def test_plain_data_goes_there_and_back() -> None:
    tensor = Tensor("x", DType.F32, (Sym("N"), 3, Sym("H", 2, 1, -1)))
    assert read(Tensor, write(tensor), "tensor") == tensor


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "`machine` should be Machine, is []"),
        ({"name": "a", "triple": "b", "cpu": "c"}, "`machine` lacks the field `features`"),
        (
            {"name": "a", "triple": "b", "cpu": "c", "features": "", "fingerprint": "", "x": 1},
            "`machine` has an unknown field `x`",
        ),
        (
            {"name": "a", "triple": 1, "cpu": "c", "features": "", "fingerprint": ""},
            "`machine.triple` should be str, is 1",
        ),
    ],
)
def test_plain_data_is_checked(data: object, message: str) -> None:
    with pytest.raises(CnncError, match=re.escape(message)):
        read(Machine, data, "machine")


@pytest.mark.parametrize("shape", [3, [True], ["N"], [{"name": "N"}], [1.0], [None]])
def test_shapes_are_checked(shape: object) -> None:
    with pytest.raises(CnncError, match="`tensor.shape"):
        read(Tensor, {"name": "x", "dtype": "float32", "shape": shape}, "tensor")
    with pytest.raises(CnncError, match=r"`tensor\.dtype` should be DType, is 'float31'"):
        read(Tensor, {"name": "x", "dtype": "float31", "shape": []}, "tensor")
