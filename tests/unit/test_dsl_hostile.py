"""Sources that mean no good: each ends in a `CnncError`, soon, and touches nothing outside."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnc.frontends import load
from cnnc.frontends.dsl import load_file, load_text
from cnnc.frontends.dsl.elaborate import Elaborator
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError

ZOO = Path(__file__).parents[2] / "zoo"
NAMES = ("lenet", "vgg16", "resnet18", "resnet34", "resnet50", "mobilenet_v2", "teaching")
SOURCES = {name: (ZOO / f"{name}.cnn").read_text(encoding="utf-8") for name in NAMES}
SECONDS = 10.0  # a limit is met long before; a slow machine may take some of it


def model(body: str, before: str = "") -> str:
    return f"{before}\nmodel m {{\n  input x: f32[N, 3, 8, 8]\n{body}\n  output o = x\n}}\n"


DEEP = {
    "brackets": model("k = " + "(" * 8_000),
    "lists": model("k = " + "[" * 8_000 + "]" * 8_000),
    "braces": model("if yes {\n" * 5_000 + "}\n" * 5_000),
    "minus": model("k = " + "-" * 8_000 + "1"),
    "not": model("k = " + "not " * 4_000 + "yes"),
    "sum": model("k = 1" + " + 1" * 4_000),
    "members": model("k = x" + ".shape" * 4_000),
    "indices": model("k = x" + "[0]" * 4_000),
    "choices": model("k = " + "if yes then 1 else " * 4_000 + "1"),
    "else": model("if yes {\n}" + " else if no {\n}" * 5_000),
    "pipe": model("y = x" + " -> relu" * 4_000),
    "stages": model("f = relu\nfor i in 1..5000 {\n f = (f -> relu) * 2\n}\ny = f(x)"),
    "repeats": model("f = relu * 0\nfor i in 1..500 {\n f = f * 100\n}\ny = f(x)"),
    "values": model("k = []\nfor i in 1..50000 {\n k = [k]\n}\nl = k == [k]\nm = x -> conv(k, 3)"),
    "shares": model("f = relu\nfor i in 1..5000 {\n share f = f\n}\ny = f(x)"),
}
LONG = {
    "loop": model("for i in 1..1000000000 {\n k = i\n}"),
    "loops": model("for i in 1..100000 {\nfor j in 1..100000 {\n}\n}"),
    "repeat": model("y = x -> relu * 1000000000"),
    "repeated nothing": model("y = x -> (relu * 0) * 1000000000"),
    "items": model("k = [1]\nfor i in 1..100 {\n k = k + k\n}"),
    "kept items": model(
        "k = [1]\nfor i in 1..13 {\n k = k + k\n}\nl = []\nfor i in 1..100000 {\n l = [l, k + k]\n}"
    ),
    "string": model('k = "aaaaaaaa"\nfor i in 1..100 {\n k = k + k\n}'),
    "number": model("k = 2\nfor i in 1..100 {\n k = k * k\n}"),
    "size": "model m {\n input x: f32[H, 3]\n k = x.n\n for i in 1..99 {\n k = k * 99\n }\n}",
    "sum of a range": model(
        "k = max(1..1000000000)\nfor i in 1..1000 {\n l = max(1..1000000000)\n}"
    ),
    "blocks": model("y = x -> f0", "\n".join(f"block f{i} = f{i + 1} * 9" for i in range(30))),
    "tree": model("y = f(x, 60)", "block f(x; n) = if n == 0 then x else f(x, n-1) + f(x, n-1)"),
    "weights": model("y = x -> conv(1000000000, 1000000)"),
    "upsample": model("y = x -> upsample(1000000000) * 9999"),
    "text": "# " + "a" * 1_000_000,
    "errors": model("k = = 1\n" * 4_000),
    "names": model("".join(f"k{i} = nothing{i}\n" for i in range(4_000))),
    "digits": model("k = " + "9" * 100_000),
    "numbers": model("k = 1e999 + 1e999\nl = x + 1e300"),
}


@pytest.mark.parametrize("name", [*DEEP, *LONG])
def test_bounded(name: str) -> None:
    start = time.process_time()
    try:
        graph = load_text((DEEP | LONG)[name], "a.cnn", init="zeros")
    except CnncError as error:
        assert len(str(error)) < 300_000  # a long line is shown whole
        assert error.diagnostics
    else:
        assert len(graph.nodes) <= 10_000
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("data", [b"", b"\0" * 1000, b"\xff\xfe" * 100, bytes(range(256)) * 9])
def test_binary_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.cnn"
    path.write_bytes(data)
    with pytest.raises(CnncError):
        load_file(path)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.cnn").mkdir()
    with pytest.raises(CnncError, match="E0504"):
        load_file(tmp_path / "a.cnn")
    with pytest.raises(CnncError, match="E0502"):
        load_file(tmp_path / "b.cnn")
    with pytest.raises(CnncError, match="suffix"):
        load(tmp_path / "b.exe")


ESCAPES = [
    "../secret.npz",
    "a/../../secret.npz",
    "{root}/secret.npz",
    "link.npz",
    "link/secret.npz",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_stay_inside(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "model"
    (inside / "a").mkdir(parents=True)
    (tmp_path / "secret.npz").write_bytes(b"secret")
    (inside / "link.npz").symlink_to(tmp_path / "secret.npz")
    (inside / "link").symlink_to(tmp_path)
    name = name.format(root=tmp_path)
    for statement in (f'weights "{name}"', f'weights "w.npz" map "{name}"'):
        (inside / "w.npz").write_bytes(b"")
        (inside / "m.cnn").write_text(model(f"{statement}\ny = x -> conv(1, 1)"))
        with pytest.raises(CnncError, match="E050[34]"):
            load_file(inside / "m.cnn")
    (inside / "m.cnn").write_text(f'import "{name}"\n' + model(""))
    with pytest.raises(CnncError, match="E0503"):
        load_file(inside / "m.cnn")


def test_a_text_reads_no_files() -> None:
    with pytest.raises(CnncError, match="E0503"):
        load_text(model('weights "a.npz"\ny = x -> conv(1, 1)'))


@pytest.mark.parametrize("body", ["k = i", "x = x -> relu\nif i == 9 {\nk = i\n}", "k = x.none"])
def test_loops_that_are_too_long_do_not_begin(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []
    monkeypatch.setattr(Elaborator, "_bind", lambda *given: rounds.append(given))
    for loop in (f"for i in 1..1099511627776 {{\n{body}\n}}", "for i in -5..400000 {\n}"):
        with pytest.raises(CnncError, match="E0406") as caught:
            load_text(model(loop), "a.cnn")
        assert "for i in" in str(caught.value)  # where it is
    assert not rounds


def test_a_loop_may_return_long_before_its_end() -> None:
    block = "block f() {\nfor i in 1..1099511627776 {\nif i == 3 {\nreturn in -> relu * i\n}\n}\n}"
    graph = load_text(model("x = x -> f", block), "a.cnn")
    assert len(graph.nodes) == 3


PIECES = st.sampled_from(
    '{ } ( ) [ ] -> = == , ; : . .. + - * / // % @ # " \n 0 1 -1 3 1e9 0.5 99999999999 in x c '
    "relu conv(1,1) concat( block model input output share return for if else then weights init "
    "require import const cnnc yes no and or not H%16 f32[N,3] \x00 \u2028 \ufeff é".split(" ")
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A zoo file with a few pieces taken out, put in, doubled or swapped."""
    text = SOURCES[draw(st.sampled_from(NAMES))]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.just(""), PIECES, st.just(text[start:end] * 2)))
        text = text[:start] + middle + text[end:]
    return text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_mutated_models_load_or_explain(text: str) -> None:
    try:
        graph = load_text(text, "a.cnn", folder=ZOO, init="zeros")
    except CnncError as error:
        assert error.diagnostics and str(error)
    else:
        assert isinstance(graph, Graph) and graph.outputs


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=40).map(" ".join))
def test_any_tokens_load_or_explain(text: str) -> None:
    for whole in (text, model(text)):
        try:
            load_text(whole, "a.cnn", init="zeros")
        except CnncError as error:
            assert error.diagnostics and str(error)
