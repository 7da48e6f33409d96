"""Every diagnostic of the language, as text: one `.cnn` input each, golden outputs beside them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cnnc.frontends.dsl import load_file, load_text
from cnnc.frontends.dsl.report import CODES
from cnnc.ir.location import CnncError, ParseError

GOLDEN = Path(__file__).parents[1] / "golden" / "diagnostics"
CASES = sorted(path.stem for path in GOLDEN.glob("*.cnn"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, with the weight files that they name."""
    folder = tmp_path_factory.mktemp("diagnostics")
    for path in [*GOLDEN.glob("*.cnn"), *GOLDEN.glob("*.map")]:
        shutil.copy(path, folder)
    small = {
        "features.0.weight": np.zeros((4, 3, 3, 3), np.float32),
        "conv[0].bias": np.zeros(5, np.float32),
        "extra": np.zeros((2, 2), np.float32),
        "bn.num_batches_tracked": np.zeros((), np.float32),
    }
    np.savez(folder / "small.npz", **small)  # type: ignore[arg-type]
    np.savez(folder / "wide.npz", counts=np.zeros(3, np.int64), weight=np.zeros(4))
    (folder / "damaged.safetensors").write_bytes(b"this is no safetensors file")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_text(
    case: str,
    folder: Path,
    golden: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ParseError) as raised:
        load_file(f"{case}.cnn")
    assert all(d.code in CODES and d.location.file for d in raised.value.diagnostics)
    golden(f"diagnostics/{case}.txt", str(raised.value) + "\n")


def test_every_code_has_a_case() -> None:
    texts = [(GOLDEN / f"{case}.txt").read_text(encoding="utf-8") for case in CASES]
    seen = set(re.findall(r"error\[(E\d+)\]", "\n".join(texts)))
    assert seen == set(CODES)


def test_an_error_shows_its_line() -> None:
    with pytest.raises(CnncError) as raised:
        load_text("model m {\n  input x: f32[N, 3]\n  output y = x -> foo\n}\n", "a.cnn")
    assert "3 |   output y = x -> foo" in str(raised.value)


def test_line_ends_of_other_systems() -> None:
    text = "model m {\r\n  input x: f32[N, 3]\r\n  output y = x -> foo\r\n}\r\n"
    with pytest.raises(CnncError) as raised:
        load_text(text, "a.cnn")
    assert raised.value.diagnostics[0].location.line == 3
