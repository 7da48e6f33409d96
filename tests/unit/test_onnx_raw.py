"""Large tensors are left in a model's file: what is read is the same, and so is what is refused."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

import cnnc
from cnnc.frontends.onnx.raw import LARGE, split_model


def model_of(tensors: list[Any]) -> ModelProto:
    """A model with these initializers, of which it adds the first to its input."""
    info = helper.make_tensor_value_info("x", 1, tensors[0].shape)
    result = helper.make_tensor_value_info("y", 1, tensors[0].shape)
    constants = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(tensors)]
    node = helper.make_node("Add", ["x", "w0"], ["y"])
    graph = helper.make_graph([node], "sum", [info], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def whole(data: bytes, least: int) -> Any:
    """The message of the parts, with the data put back."""
    parts = split_model(BytesIO(data), len(data), least)
    model = ModelProto.FromString(parts.message)
    for tensor, place in zip(model.graph.initializer, parts.places, strict=False):
        if place is not None:
            assert not tensor.HasField("raw_data")
            tensor.raw_data = data[place.offset : place.offset + place.length]
    return model


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    least=st.integers(1, 1500),
    data=st.data(),
)
def test_parts_make_the_whole(sizes: list[int], least: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from("fdb"), min_size=len(sizes), max_size=len(sizes)))
    model = model_of([np.ones(n, kind) for n, kind in zip(sizes, kinds, strict=True)])
    text = model.SerializeToString()
    assert whole(text, least) == model
    large = [len(tensor.raw_data) >= least for tensor in model.graph.initializer]
    parts = split_model(BytesIO(text), len(text), least)
    assert [place is not None for place in parts.places] == large


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), end=st.integers(0, 10**6))
def test_what_is_damaged_is_judged_by_protobuf(at: int, byte: int, end: int) -> None:
    text = bytearray(model_of([np.ones(20, "f"), np.ones(3, "f")]).SerializeToString())
    text[at % len(text)] = byte
    damaged = bytes(text[: len(text) - end % 3 * (end % len(text))])
    try:
        wanted = ModelProto.FromString(damaged)
    except DecodeError:
        with pytest.raises(DecodeError):
            whole(damaged, 8)
    else:
        assert whole(damaged, 8).SerializeToString() == wanted.SerializeToString()


def test_a_graph_in_several_parts_stays_as_it_is() -> None:
    model = model_of([np.ones(100, "f")])
    text = model.SerializeToString() + ModelProto(graph=model.graph).SerializeToString()
    assert split_model(BytesIO(text), len(text), 8) == (text, [])
    assert len(whole(text, 8).graph.initializer) == 2


def test_a_model_reads_its_tensors_from_its_own_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, small = rng.standard_normal(LARGE // 4).astype("f"), np.ones(3, "f")
    path = tmp_path / "c: large..onnx"
    path.write_bytes(model_of([weight, small]).SerializeToString())
    found = cnnc.compile(path, cache=False)(np.ones_like(weight))
    assert np.array_equal(found, weight + 1)


def test_a_tensor_whose_data_is_too_long_is_refused(tmp_path: Path) -> None:
    model = model_of([np.ones(LARGE, "f")])
    model.graph.initializer[0].dims[0] = LARGE - 1
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(cnnc.CnncError, match=f"`w0` has {4 * LARGE} bytes of data"):
        cnnc.load(path)
