"""The commands, through click's runner and, where the process matters, in one of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import bad, call, good
from click.testing import CliRunner

import cnnc
from cnnc import driver
from cnnc.cli import main, measure
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.parser import parse_graph
from cnnc.options import Options
from cnnc.passes import PASSES
from cnnc.runtime.reference import evaluate

COMMANDS = (
    *("compile", "run", "bench", "tune", "compare"),
    *("inspect", "check", "export", "zoo", "cache"),
)

TINY = """\
model tiny(classes=4) {
  input image: f32[N, 3, 8, 8]
  output prob = image -> conv(8, 3, pad=1, bias=no) -> bn -> relu
    -> maxpool(2) -> flatten -> dense(classes) -> softmax
  init he(seed=0)
}
"""

BROKEN = """\
model broken {
  input image: f32[N, 3, 8, 8]
  x = image -> conv(8, 3, strid=2)
  output prob = image -> reluu
  init he(seed=0)
}
"""

OPEN = """\
model open {
  input image: f32[N, 3, H%2, 8]
  output y = image -> maxpool(2)
  init he(seed=0)
}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The path of a small model."""
    path = tmp_path / "tiny.cnn"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


# -- help and usage --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_exist(command: str) -> None:
    text = good(command, "--help")
    lines = text.partition("Example:\n")[2].partition("\n\n")[0].splitlines()
    assert lines and all(line.strip().startswith(f"cnnc {command}") for line in lines)
    used = set(re.findall(r"--[a-z-]+", "\n".join(lines)))
    assert used <= set(re.findall(r"--[a-z-]+", text.replace("\n".join(lines), "")))


def test_group_lists_commands_in_the_order_of_use() -> None:
    text = good("--help")
    table = text.partition("Commands:")[2]
    assert re.findall(r"^  ([a-z]+)  ", table, re.MULTILINE) == [*COMMANDS]
    assert "..." not in table, "what a command does must fit into a line"


def test_version() -> None:
    from cnnc import __version__

    assert good("--version") == f"cnnc {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ("benhc", "x"),
        ("compile",),
        ("compile", "x", "--threads", "0"),
        ("compile", "x", "--size", "H"),
        ("compile", "x", "--size", "H=big"),
        ("compile", "x", "--size", "H=1", "--size", "H=2"),
        ("run", "x"),
        ("inspect", "x", "--stage", "graph", "--after", "fold-pad"),
        ("inspect", "x", "--diff"),
        ("inspect", "x", "--stage", "asm", "--dot"),
    ],
)
def test_wrong_command_line(args: tuple[str, ...]) -> None:
    assert "Usage:" in bad(2, *args)


def test_unknown_names_are_corrected(tiny: str) -> None:
    assert "did you mean `resnet50`?" in bad(1, "check", "resnet5")
    assert "did you mean `x86-64-v3`?" in bad(1, "compile", tiny, "--target", "x86-64-v33")
    assert "did you mean `fold-pad`?" in bad(1, "compile", tiny, "--passes", "fold-bad")
    assert "did you mean `fold-pad`?" in bad(1, "inspect", tiny, "--after", "fold-bad")
    assert "did you mean `dense`?" in bad(
        1, "inspect", tiny, "--stage", "loops", "--kernel", "dence"
    )
    assert "did you mean `lenet`?" in bad(1, "zoo", "lennet")
    assert "classes" in bad(1, "check", tiny, "--param", "clases=3")
    assert "has no size `Q`" in bad(1, "check", tiny, "--size", "Q=3")


# -- compile ---------------------------------------------------------------------------------------


def test_compile_tells_what_was_done(tiny: str) -> None:
    result = call("compile", tiny)
    assert result.exit_code == 0
    assert "fold-batch-norm" in result.stdout and "conv2d+relu" in result.stdout
    assert not result.stderr  # progress is for terminals


def test_progress_names_every_phase(tiny: str) -> None:
    progress: list[str] = []
    cnnc.compile(tiny, cache=False, progress=progress.append)
    passes = [line for line in progress if line.startswith("pass ")]
    assert progress[0] == "parsing" and "packing weights" in progress
    assert len(passes) == len(PASSES)


def test_compile_json(tiny: str) -> None:
    data = json.loads(good("compile", tiny, "--json", "--threads", "1"))
    assert data["model"] == "tiny" and data["threads"] == 1
    assert data["peak_bytes"] == sum(data["memory"].values()) > 0
    assert {row["name"] for row in data["passes"]} == set(PASSES)
    assert data["flops"] == sum(kernel["flops"] for kernel in data["kernels"]) > 0
    assert "native code" in data["seconds"]


def test_compile_for_a_machine_that_is_not_this_one(tiny: str) -> None:
    for target in ("x86-64", "aarch64"):
        assert f"tiny for {target}" in good("compile", tiny, "--target", target)


def test_parameters_and_passes_arrive(tiny: str) -> None:
    data = json.loads(good("check", tiny, "--json", "--param", "classes=7"))
    assert data["outputs"] == [{"name": "prob", "dtype": "float32", "shape": ["N", 7]}]
    kernels = json.loads(good("compile", tiny, "--json", "--passes", "default,-fuse-epilogue"))
    assert "conv2d" in {kernel["op"] for kernel in kernels["kernels"]}


# -- bench -----------------------------------------------------------------------------------------


def test_bench_json(tiny: str) -> None:
    text = good("bench", tiny, "--json", "--layers", "--batch", "3", "--repeats", "4", "-q")
    data = json.loads(text)
    result = data["result"]
    assert result["is_right"] and 0 <= result["max_rel_error"] < 1e-4
    assert result["batch"] == 3 and result["native_runs"] >= 4 and result["reference_runs"] >= 1
    assert result["flops"] == 3 * data["compile"]["flops"]
    speed_up = result["reference_seconds"] / result["native_seconds"]
    assert result["speed_up"] == pytest.approx(speed_up)
    assert result["peak_gflops"] > 0
    ratio = result["native_seconds"] / 3 / result["alone_seconds"]
    assert result["batch_ratio"] == pytest.approx(ratio)
    assert len(data["layers"]) == len(data["compile"]["kernels"])
    assert sum(layer["seconds"] for layer in data["layers"]) > 0


def test_bench_text(tiny: str) -> None:
    text = good("bench", tiny, "--layers", "--repeats", "2")
    for word in ("reference", "native", "speed-up", "GFLOP/s", "error", "conv2d+relu"):
        assert word in text
    assert "calls with one image" not in text
    assert "2 calls with one image" in good("bench", tiny, "--repeats", "2", "--batch", "2")


def test_bench_fails_on_a_wrong_answer(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> dict[str, Any]:
        return {name: array[:, ::-1] for name, array in evaluate(*args).items()}

    monkeypatch.setattr(measure, "evaluate", wrong)
    assert "the answers differ" in bad(1, "bench", tiny, "-q", "--repeats", "1")
    result = call("bench", tiny, "--json", "-q", "--repeats", "1")
    assert result.exit_code == 1 and not json.loads(result.stdout)["result"]["is_right"]


def test_bench_of_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "fixed.cnn"
    path.write_text(TINY.replace("[N,", "[2,"), encoding="utf-8")
    assert "its batch is fixed" in bad(1, "bench", str(path), "-q", "--batch", "4")
    data = json.loads(good("bench", str(path), "-q", "--json", "--repeats", "1"))
    assert data["result"]["is_right"]


@pytest.mark.parametrize(
    "wanted, found, absolute, relative",
    [
        ([0.0, 4.0], [0.0, 4.0], 0.0, 0.0),
        ([0.0, 4.0], [0.0, 5.0], 1.0, 0.25),
        ([2.0, 2.0], [2.0, 3.0], 1.0, 0.5),  # no range: relative to the size
        ([0.0, 0.0], [0.0, 3.0], 3.0, 3.0),  # no size, either
        ([np.nan, 1.0, 0.0], [np.nan, 1.5, 0.0], 0.5, 0.5),
        ([np.inf, 1.0, 0.0], [np.inf, 1.0, 0.0], 0.0, 0.0),
    ],
)
def test_errors(wanted: list[float], found: list[float], absolute: float, relative: float) -> None:
    def array(values: list[float]) -> dict[str, Any]:
        return {"y": np.array(values, np.float32)}

    assert measure.errors(array(wanted), array(found)) == (absolute, relative)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not count")
def test_busy_neighbours_are_measured() -> None:
    loop = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", loop])
    try:
        window = measure._Window()
        while window.seconds < 0.5:
            pass
        seconds, others = window.close()
    finally:
        neighbour.kill()
        neighbour.wait()
    assert others is not None and others > 0.2 * seconds


def test_either_side_disturbed_counts() -> None:
    quiet, busy = [(1.0, 0.0), (1.0, 0.0)], [(1.0, 0.5), (1.0, 0.7)]
    assert measure._foreign(quiet, quiet) == 0.0
    assert measure._foreign(quiet, busy) == measure._foreign(busy, quiet) == pytest.approx(0.6)
    assert measure._foreign(quiet, [(1.0, None)]) is None


@pytest.mark.parametrize(
    "foreign, expected", [(None, ""), (0.02, ""), (0.9, "other processes took 0.90 cores")]
)
def test_bench_warns_of_a_disturbed_run(
    tiny: str, monkeypatch: pytest.MonkeyPatch, foreign: float | None, expected: str
) -> None:
    monkeypatch.setattr(measure, "_foreign", lambda *windows: foreign)
    result = call("bench", tiny, "-q", "--repeats", "1")
    assert result.exit_code == 0 and expected in result.stderr
    assert bool(result.stderr) is bool(expected)


@pytest.mark.parametrize("found", [[np.nan, 1.0], [np.inf, 1.0]])
def test_a_new_nan_is_never_right(found: list[float]) -> None:
    wanted = {"y": np.array([0.0, 1.0], np.float32)}
    _, relative = measure.errors(wanted, {"y": np.array(found, np.float32)})
    assert not relative <= measure.TOLERANCE


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_graph_is_the_text_form(tiny: str) -> None:
    graph = driver.load_graph(tiny, Options())
    assert good("inspect", tiny) == str(graph)
    assert good("inspect", tiny, "--stage", "graph") == str(graph)


def test_inspect_after_a_pass(tiny: str) -> None:
    before, after = (good("inspect", tiny, *x) for x in ((), ("--after", "fuse-epilogue")))
    assert " batch_norm(" in before and " batch_norm(" not in after
    assert "epilogue=[relu]" in after and "level=portable" in after
    planned = good("inspect", tiny, "--stage", "planned")
    assert "level=planned" in planned and "arena_bytes" in planned
    assert planned == good("inspect", tiny, "--after", "plan-memory")


def test_inspect_after_all_and_changed(tiny: str) -> None:
    every = good("inspect", tiny, "--after-all")
    assert re.findall(r"^// (\d+)\. ([a-z-]+)", every, re.MULTILINE) == [
        (str(i), name) for i, name in enumerate(PASSES, 1)
    ]
    heads = re.findall(r"^// \d+\. .*: (\d+) changes", good("inspect", tiny, "--changed"), re.M)
    assert 0 < len(heads) < len(PASSES) and "0" not in heads
    last = every.rpartition("// ")[2].partition("\n")[2]
    assert last == good("inspect", tiny, "--stage", "planned")


def test_inspect_diff(tiny: str) -> None:
    text = good("inspect", tiny, "--changed", "--diff")
    assert re.search(r"^-  .* = batch_norm\(", text, re.MULTILINE)
    assert all(line[0] in "+-/" for line in text.splitlines())


def test_inspect_a_node(tiny: str) -> None:
    (line,) = good("inspect", tiny, "--kernel", "SOFTMAX").splitlines()
    assert " = softmax(" in line


def test_inspect_code(tiny: str) -> None:
    loops = good("inspect", tiny, "--stage", "loops", "--kernel", "dense[0]")
    assert loops.count("kernel ") == 1 and "parallel" in loops
    whole = good("inspect", tiny, "--stage", "llvm")
    part = good("inspect", tiny, "--stage", "llvm", "--kernel", "dense[0]")
    assert whole.count("define ") > 2 and part.count("define ") == 1
    assert "@run0(" in whole and "@run0(" not in part


@pytest.mark.parametrize("target, register", [("aarch64", "fmla"), ("x86-64-v3", "ymm")])
def test_inspect_assembly(tiny: str, target: str, register: str) -> None:
    text = good("inspect", tiny, "--stage", "asm", "--kernel", "conv", "--target", target)
    assert register in text and "run0" not in text


@pytest.mark.parametrize("stage", ["graph", "planned"])
def test_inspect_dot(tiny: str, stage: str) -> None:
    text = good("inspect", tiny, "--stage", stage, "--dot")
    graph = driver.load_graph(tiny, Options())
    if stage == "planned":
        graph, _ = driver.optimise(graph, Options(), driver.resolve_target("native"))
        assert "conv2d + relu" in text and "kernel " in text
    boxes = set(re.findall(r'^  ("[^"]*") \[', text, re.MULTILINE))
    arrows = re.findall(r'^  ("[^"]*") -> ("[^"]*");', text, re.MULTILINE)
    assert len(boxes) == len(graph.nodes) + len(graph.inputs) + len(graph.outputs)
    assert {end for arrow in arrows for end in arrow} == boxes
    assert text.startswith('digraph "tiny" {') and text.endswith("}\n")


# -- check and zoo ---------------------------------------------------------------------------------


def test_check(tiny: str) -> None:
    text = good("check", tiny)
    assert "tiny: fine" in text and "float32[N, 3, 8, 8]" in text and "GFLOP" in text
    data = json.loads(good("check", tiny, "--json"))
    # Weights of the convolution and the dense layer, the latter's bias, scale and shift.
    assert data["ok"] and data["parameters"] == 8 * 3 * 9 + 8 * 2 + 128 * 4 + 4
    assert data["flops"] > 0 and not data["not_native"] and not data["open_sizes"]


def test_check_reports_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "broken.cnn"
    path.write_text(BROKEN, encoding="utf-8")
    text = bad(1, "check", str(path))
    assert "did you mean `stride`?" in text and "did you mean `relu`?" in text
    assert f"{path}:3:" in text and f"{path}:4:" in text
    result = call("check", str(path), "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and not data["ok"] and not result.stderr
    assert [problem["location"]["line"] for problem in data["problems"]] == [3, 4]


def test_check_names_open_sizes(tmp_path: Path) -> None:
    path = tmp_path / "open.cnn"
    path.write_text(OPEN, encoding="utf-8")
    assert "--size H=" in good("check", str(path))
    assert json.loads(good("check", str(path), "--json"))["open_sizes"] == ["H"]
    assert "GFLOP" in good("check", str(path), "--size", "H=8")


@pytest.mark.parametrize(
    "args", [("compile",), ("bench", "--repeats", "1"), ("run", "--input", "random")]
)
def test_sizes_arrive(tmp_path: Path, args: tuple[str, ...]) -> None:
    path = tmp_path / "open.cnn"
    path.write_text(OPEN, encoding="utf-8")
    good(args[0], str(path), "--size", "H=8", "-q", *args[1:])
    assert "--size H=" in bad(1, args[0], str(path), "-q", *args[1:])


def test_check_names_what_runs_in_numpy(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != "softmax"}
    monkeypatch.setattr(driver, "KERNELS", kernels)
    assert "softmax `softmax[0]` has no native kernel" in good("check", tiny)
    refused = bad(1, "check", tiny, "--strict")
    assert "softmax `softmax[0]` has no native kernel" in refused
    assert "compile without `strict`" in refused


def test_zoo() -> None:
    models = {row["name"]: row for row in json.loads(good("zoo", "--json"))}
    assert models["resnet50"]["parameters"] == 25_557_032
    assert models["resnet50"]["inputs"] == ["image: f32[N,3,224,224]"]
    assert models["lenet"]["parameters"] == 61_706
    source = driver.zoo_models()["lenet"].read_text(encoding="utf-8")
    assert good("zoo", "lenet") == source
    table = good("zoo").splitlines()
    assert len(table) == 1 + len(models) and table[0].startswith("name")


# -- the process -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in ("zoo", "run", "cache", "export")]
)
def test_color_only_where_it_is_wanted(command: str, tiny: str) -> None:
    extra = {"bench": ["--repeats", "1"], "inspect": ["--changed"]}
    plain = call(command, tiny, *extra.get(command, []))
    assert plain.exit_code == 0 and "\x1b" not in plain.stdout + plain.stderr


def test_color_always_and_no_color(tiny: str) -> None:
    assert "\x1b[" in good("check", tiny, "--color", "always")
    assert "\x1b" not in good("check", tiny, "--color", "never")
    for value, colored in ((None, True), ("", True), ("1", False)):
        runner = CliRunner(env={"NO_COLOR": value})
        on_a_terminal = runner.invoke(main, ["check", tiny], color=True)
        assert ("\x1b" in on_a_terminal.stdout) is colored


def test_interrupt_is_quiet(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "build", interrupted)
    result = call("compile", tiny, "-q")
    assert result.exit_code == 130 and not result.output


@pytest.mark.parametrize("module", ["cnnc.cli", "click", "cnnc.ir.location"])
def test_interrupts_are_quiet_while_the_command_is_imported(module: str) -> None:
    code = f"""if True:
        import sys
        class Interrupt:
            def find_spec(self, name, path=None, target=None):
                if name == "{module}":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt())
        from cnnc.__main__ import main
        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_broken_pipe_is_quiet(tiny: str) -> None:
    command = [sys.executable, "-m", "cnnc", "inspect", tiny, "--after-all"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait() == 1


def test_module_and_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cnnc", "check", str(tmp_path / "none.cnn")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and not done.stdout


def test_inspected_text_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "relu.cnn"
    path.write_text(
        "model r {\n  input x: f32[N, 3]\n  output y = x -> relu\n  init he(seed=0)\n}\n",
        encoding="utf-8",
    )
    text = good("inspect", str(path), "--after-all")
    first = re.split(r"^(?=// )", text, flags=re.MULTILINE)[1]
    assert parse_graph(first, {}).name == "r"
