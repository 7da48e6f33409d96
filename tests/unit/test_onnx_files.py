"""ONNX files and the data files beside them, hostile ones too."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import floats, model, node, refused

from cnnc.frontends.onnx import load_onnx
from cnnc.frontends.onnx.load import model_files

X = ("N", 4, 6, 5)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in `weights.bin` beside it."""
    conv = node("Conv", "x w b", "y")
    proto = model([conv], {"x": X}, "y", {"w": floats(64, 4, 3, 3), "b": floats(64)})
    path = tmp_path / "folder" / "net.onnx"
    path.parent.mkdir()
    onnx.save_model(
        proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def relocate(path: Path, **entries: str) -> Path:
    """The model with other entries for where its tensors lie."""
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data(external: Path) -> None:
    graph = load_onnx(external)
    np.testing.assert_array_equal(graph.constants["w"], floats(64, 4, 3, 3))
    np.testing.assert_array_equal(graph.constants["b"], floats(64))
    assert (graph.name, graph.nodes[0].location.file) == ("net", str(external))
    assert model_files(external) == [external, external.parent / "weights.bin"]
    refused(external.read_bytes(), "weights.bin", "give the model's path")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "/etc/passwd"}, "absolute"),
        ({"location": "../weights.bin"}, "leaves the folder"),
        ({"location": "a/../../weights.bin"}, "leaves the folder"),
        ({"location": "C:\\weights.bin"}, "absolute"),
        ({"location": ""}, "no name"),
        ({"location": "missing.bin"}, "No such file"),
        ({"location": "pipe"}, "no regular file"),
        ({"location": "."}, "directory"),
        ({"location": "link"}, "a link that leaves"),
        ({"location": "loop"}, "loop"),
        ({"offset": "99999999"}, "truncated"),
        ({"offset": "-1"}, "impossible offset"),
        ({"length": "1e9"}, "impossible length"),
        ({"length": "12"}, "wants"),
        ({"offset": "0"}, "overlaps"),
    ],
)
def test_external_data_that_is_refused(external: Path, entries: dict[str, str], words: str) -> None:
    folder = external.parent
    (folder.parent / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link").symlink_to(folder.parent / "weights.bin")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    if entries == {"offset": "0"}:
        (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:9216])
    refused(relocate(external, **entries), words)


def test_a_link_inside_the_folder_is_fine(external: Path) -> None:
    (external.parent / "link").symlink_to(external.parent / "weights.bin")
    load_onnx(relocate(external, location="link"))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    for data in (b"", b"nonsense", b"\x08" * 1000, b"\x3a\xff\xff\xff\xff\x7f"):
        path.write_bytes(data)
        refused(path, "no ONNX model", str(path))
    refused(tmp_path / "missing.onnx", "no file")
    refused(tmp_path, "no file")
    refused(3, "not `int`")
