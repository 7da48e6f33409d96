"""The tuner: what it measures is remembered, decides, and can be lost without harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_harness import bad, good

import cnnc
from cnnc import tune as tuner
from cnnc.codegen.host import native_target
from cnnc.keys import key_of
from cnnc.options import Options
from cnnc.record import add_to_record, read_record, record_path
from cnnc.tune import tune

ENOUGH = Options.of(tune=100.0)
TARGET = native_target()


pytestmark = pytest.mark.usefixtures("folder")


def test_candidates_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = tune("lenet", ENOUGH)
    assert {t.node for t in trials} >= {"conv[0]", "conv[1]"}
    assert all(t.measured_us > 0 and t.predicted_us > 0 for t in trials)
    layers = {t.layer for t in trials}
    assert all(sum(t.chosen for t in trials if t.layer == layer) == 1 for layer in layers)
    assert all(sum(t.layer == layer for t in trials) > 1 for layer in layers)
    assert {t.layer: {} for t in trials} == {layer: {} for layer in read_record(TARGET)}

    monkeypatch.setattr(tuner, "_measure", lambda *_: pytest.fail("measured again"))
    assert tune("lenet", ENOUGH) == trials


def test_no_time_measures_nothing() -> None:
    assert tune("lenet", Options.of(tune=1e-9)) == ()
    assert not record_path(TARGET).exists()


def test_what_was_measured_decides() -> None:
    (layer, times) = next(iter(_measured().items()))
    for favourite in times:
        add_to_record(TARGET, {layer: dict.fromkeys(times, 50.0) | {favourite: 1.0}})
        model = cnnc.compile("lenet", tune=1e-9)
        row = next(k for k in model.report().kernels if k.name == "conv[0]")
        assert (row.kernel, row.predicted_us) == (favourite, 1.0)
        untuned = cnnc.compile("lenet")
        x = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
        np.testing.assert_allclose(model(x), untuned(x), rtol=1e-5)


def test_the_record_is_part_of_the_key() -> None:
    def key(**options: object) -> str | None:
        return key_of("lenet", options, lambda path: "hash")

    times = _measured()
    known = key(tune=1.0)
    assert known == key(tune=2.0) != key()
    layer = next(iter(times))
    add_to_record(TARGET, {layer: dict.fromkeys(times[layer], 3.0)})
    assert key(tune=1.0) != known


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"layers": {}}', '{"made_by": 1}', "\x00", '{"layers": [1]}'],
)
def test_damage_is_as_nothing(text: str) -> None:
    path = record_path(TARGET)
    path.write_text(text)
    assert read_record(TARGET) == {}
    add_to_record(TARGET, {"layer": {"kernel": 1.5}})
    assert read_record(TARGET) == {"layer": {"kernel": 1.5}}
    wrong: object
    for wrong in (-1.0, "x", None, {}):
        data = json.loads(path.read_text())
        data["layers"]["layer"]["kernel"] = wrong
        path.write_text(json.dumps(data))
        assert read_record(TARGET) == {}


def test_another_state_of_the_code_is_not_read() -> None:
    add_to_record(TARGET, {"layer": {"kernel": 1.5}})
    path = record_path(TARGET)
    path.write_text(path.read_text().replace('"made_by": "', '"made_by": "0'))
    assert read_record(TARGET) == {}


def test_the_command() -> None:
    told = json.loads(good("tune", "lenet", "--tune", "100", "--json"))
    assert told["trials"] and Path(told["record"]).exists()
    assert told["seconds"]["tuned"] > 0 and told["median_error_of_predictions"] >= 0
    text = good("tune", "lenet")
    assert "predictions are off by" in text and "model" in text


def test_a_pipeline_without_choice() -> None:
    assert "chooses no kernels" in bad(1, "tune", "lenet", "--passes", "portable")


def _measured() -> dict[str, dict[str, float]]:
    """The record of lenet, its first convolution first."""
    trials = tune("lenet", ENOUGH)
    first = next(t.layer for t in trials if t.node == "conv[0]")
    record = read_record(TARGET)
    return {first: record[first], **record}
