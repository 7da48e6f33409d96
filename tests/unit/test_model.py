"""Calling compiled models: names, shapes, arrays of all kinds, threads, processes, time, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cnnc
from cnnc import driver
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.module import build_module
from cnnc.ir.location import CnncError, InputError, OptionError
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.runtime.reference import evaluate

Floats = NDArray[np.float32]

TWO = """\
model two {
  input a: f32[N, 3]
  input b: f32[N, 3]
  output total = a + b
  output product = a * b
}
"""

# Large enough for two threads to share it.
SHARED = """\
model shared {
  input x: f32[N, 32, 16, 16]
  output y = x -> conv(64, 3, pad=1) -> relu -> gap
  init he(seed=0)
}
"""


def some(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def lenet() -> CompiledModel:
    return cnnc.compile("lenet", threads=2)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    path = tmp_path_factory.mktemp("two") / "two.cnn"
    path.write_text(TWO)
    return cnnc.compile(path, threads=1)


# -- names -----------------------------------------------------------------------------------------


def test_one_input_one_output(lenet: CompiledModel) -> None:
    x = some(2, 1, 28, 28)
    y = lenet(x)
    assert isinstance(y, np.ndarray) and y.shape == (2, 10) and y.dtype == np.float32
    wanted = evaluate(cnnc.load("lenet"), {"image": x})["prob"]
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    assert np.array_equal(lenet(image=x), y)
    assert np.array_equal(lenet.run({"image": x})["prob"], y)


def test_several_inputs_and_outputs(two: CompiledModel) -> None:
    a, b = some(4, 3), some(4, 3, seed=1)
    for outputs in (two(a, b), two(a, b=b), two(a=a, b=b), two(b=b, a=a)):
        assert isinstance(outputs, tuple)
        assert np.array_equal(outputs[0], a + b) and np.array_equal(outputs[1], a * b)
    assert list(two.run({"b": b, "a": a})) == ["total", "product"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m(), "input `a` is missing: it takes f32[N,3]"),
        (lambda m, x: m(x), "input `b` is missing"),
        (lambda m, x: m(x, x, x), "the model has 2 inputs, got 3"),
        (lambda m, x: m(x, a=x), "input `a` is given twice"),
        (lambda m, x: m(x, x, c=x), "there is no input `c`"),
        (lambda m, x: m(x, bb=x), "did you mean `b`?"),
        (lambda m, x: m(x, x[:2]), "size N is 4 in input `a` and 2 in input `b`"),
        (lambda m, x: m(x, x.T), "input `b` has shape [3,4], the model takes f32[N,3]"),
        (lambda m, x: m(x[0], x), "add the batch: a[None]"),
        (lambda m, x: m(x, x.astype(float)), "b.astype(np.float32)"),
        (lambda m, x: m(x, x.astype(">f4")), "input `b` holds >f4"),
        (lambda m, x: m(x, x.tolist()), "input `b` is a list, not a NumPy array"),
        (lambda m, x: m(x, None), "input `b` is a NoneType"),
        (lambda m, x: m(x, x, out=x), "`out=` takes one array, the model has 2 outputs"),
        (lambda m, x: m.run({"a": x}), "input `b` is missing"),
        (lambda m, x: m.run({"a": x, "b": x, "c": x}), "there is no input `c`"),
        (lambda m, x: m.run({"a": x, "c": x}), "there is no input `c`"),
        (lambda m, x: m.run({"a": x, "b": x}, {"sum": x}), "no output is called `sum`"),
        (lambda m, x: m.profile({"a": x}), "input `b` is missing"),
    ],
)
def test_wrong_inputs(
    two: CompiledModel, call: Callable[[CompiledModel, Any], Any], message: str
) -> None:
    for _ in range(2):  # what is remembered of calls must not let it pass
        with pytest.raises(InputError) as caught:
            call(two, some(4, 3))
        assert message in str(caught.value)
        two(some(4, 3), some(4, 3))


def test_unknown_option_is_corrected() -> None:
    with pytest.raises(OptionError, match=r"no option `thread`(.|\n)*did you mean `threads`\?"):
        cnnc.compile("lenet", thread=2)
    with pytest.raises(OptionError, match="option `threads`(.|\n)*greater than or equal to 1"):
        cnnc.compile("lenet", threads=0)


def test_what_a_model_says_of_itself(lenet: CompiledModel, two: CompiledModel) -> None:
    assert repr(lenet).startswith(
        "<cnnc model lenet(image: float32[N, 1, 28, 28]) -> (prob: float32[N, 10]); "
    )
    assert "2 threads" in repr(lenet) and "weights" in repr(lenet)
    assert [str(info) for info in two.outputs] == ["total: float32[N, 3]", "product: float32[N, 3]"]
    assert lenet.inputs[0].shape == ("N", 1, 28, 28)
    assert lenet.memory.peak == sum(
        (lenet.memory.weights, lenet.memory.arena, lenet.memory.scratch)
    )
    assert lenet.threads == 2 and lenet.is_native


def test_profile_adds_up(lenet: CompiledModel) -> None:
    profile = lenet.profile({"image": some(4, 1, 28, 28)}, repeats=3)
    assert len(profile) == len(lenet.report().kernels)
    assert all(seconds >= 0 for seconds in profile.values()) and sum(profile.values()) > 0


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batches(lenet: CompiledModel, count: int) -> None:
    x = some(count, 1, 28, 28)
    y = lenet(x)
    assert y.shape == (count, 10)
    assert all(np.array_equal(y[i : i + 1], lenet(x[i : i + 1])) for i in range(count))


def test_many_batch_sizes(two: CompiledModel) -> None:
    for _ in range(2):
        for count in range(100):  # more than a model remembers
            total, _ = two(some(count, 3), some(count, 3))
            assert np.array_equal(total, 2 * some(count, 3))


def views() -> dict[str, Floats]:
    """The same numbers in arrays of all kinds."""
    x = some(3, 1, 28, 28)
    wide = np.zeros((6, 1, 28, 56), np.float32)
    wide[::2, :, :, ::2] = x
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "plain": x,
        "columns first": np.asfortranarray(x),
        "strided": wide[::2, :, :, ::2],
        "backwards": x[::-1, :, ::-1].copy()[::-1, :, ::-1],
        "unaligned": shifted,
        "read-only": frozen,
        "of a buffer": np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        "spread": np.broadcast_to(x, (1, *x.shape))[0],
        "subclass": x.view(np.memmap),
    }


@pytest.mark.parametrize("kind", list(views()))
def test_arrays_of_all_kinds(lenet: CompiledModel, kind: str) -> None:
    array = views()[kind]
    before = array.copy()
    assert np.array_equal(lenet(array), lenet(some(3, 1, 28, 28)))
    assert np.array_equal(array, before)


def test_one_array_may_be_several_inputs(two: CompiledModel) -> None:
    x = some(5, 3)
    assert np.array_equal(two(x, x)[1], x * x)


def test_results_are_new_arrays(lenet: CompiledModel) -> None:
    first = lenet(some(1, 1, 28, 28))
    kept = first.copy()
    second = lenet(some(1, 1, 28, 28, seed=1))
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_calls_of_every_kind_take_turns(lenet: CompiledModel) -> None:
    """Small batches are copied to and fro, large ones are not, nor where the caller has arrays."""
    batches = [some(n, 1, 28, 28, seed=n) for n in (1, 2, 5, 0)]
    wanted = [np.concatenate([lenet(x[i : i + 1]) for i in range(len(x))]) for x in batches[:3]]
    wanted.append(np.empty((0, 10), np.float32))
    for _ in range(2):
        for x, right in zip(batches, wanted, strict=True):
            out = np.empty_like(right)
            results = [lenet(x), lenet(x, out=out), lenet(x.copy()), lenet(x, out=out)]
            for result in results:
                np.testing.assert_array_equal(result, right)
        lenet.profile({"image": batches[0]}, 1)


def test_out_takes_the_result(lenet: CompiledModel, two: CompiledModel) -> None:
    x, out = some(3, 1, 28, 28), np.full((3, 10), np.nan, np.float32)
    assert lenet(x, out=out) is out
    assert np.array_equal(out, lenet(x))
    a, b = some(2, 3), some(2, 3, seed=1)
    results = two.run({"a": a, "b": b}, {"product": out[:2, :3].copy()})
    assert np.array_equal(results["product"], a * b) and np.array_equal(results["total"], a + b)


def read_only(x: Floats) -> Floats:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda x: np.empty((1, 10), np.float32), "must be float32 of shape [3, 10], got float32"),
        (lambda x: np.empty((3, 10)), "must be float32 of shape [3, 10], got float64"),
        (lambda x: np.empty((10, 3), np.float32).T, "must be C-contiguous, aligned and writable"),
        (lambda x: read_only(np.empty((3, 10), np.float32)), "must be C-contiguous"),
        (lambda x: x.reshape(-1)[:30].reshape(3, 10), "shares memory with an input"),
        (lambda x: [0.0] * 10, "is a list, not a NumPy array"),
    ],
)
def test_wrong_out(lenet: CompiledModel, out: Callable[[Floats], Any], message: str) -> None:
    x = some(3, 1, 28, 28)
    with pytest.raises(InputError) as caught:
        lenet(x, out=out(x))
    assert "out `prob`" in str(caught.value) and message in str(caught.value)


def test_outs_may_not_overlap(two: CompiledModel) -> None:
    x, out = some(2, 3), np.empty((2, 3), np.float32)
    with pytest.raises(InputError, match="out `product` shares memory"):
        two.run({"a": x, "b": x}, {"total": out, "product": out})


def test_calls_with_out_allocate_nothing(lenet: CompiledModel) -> None:
    x, out = some(64, 1, 28, 28), np.empty((64, 10), np.float32)
    lenet(x, out=out)
    tracemalloc.start()
    try:
        for _ in range(10):
            lenet(x, out=out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            lenet(x, out=out)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 2500  # the call's own tuples and lists; the smallest array has 2560
    assert after - before < 1000


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("lenet", (1, 28, 28))])
def test_bits_do_not_depend_on_threads_or_batch(name: str, shape: tuple[int, ...]) -> None:
    x = some(5, *shape)
    found = set()
    for threads in (1, 2, 3, 4):
        model = cnnc.compile(name, threads=threads)
        found.add(model(x).tobytes())
        found.add(b"".join(model(x[i : i + 1]).tobytes() for i in range(5)))
        found.add(b"".join(model(part).tobytes() for part in (x[:2], x[2:])))
    assert len(found) == 1


def test_mixed_models_give_the_same(lenet: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pools run in NumPy, the rest is native; both sides share memory."""
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != "pool"}
    monkeypatch.setattr(driver, "KERNELS", kernels)
    mixed = cnnc.compile("lenet", threads=2, cache=False)
    assert not mixed.is_native and len(mixed.report().reference) == 2
    x = some(3, 1, 28, 28)
    np.testing.assert_allclose(mixed(x), lenet(x), rtol=1e-5)
    assert np.array_equal(mixed(x[1:2]), mixed(x)[1:2])
    with pytest.raises(CnncError, match="has no native code"):
        mixed.save("never.cnnca")


def test_model_works_after_an_error_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != "pool"}
    monkeypatch.setattr(driver, "KERNELS", kernels)
    mixed = cnnc.compile("lenet", threads=2, cache=False)
    x = some(1, 1, 28, 28)
    wanted = mixed(x)
    op = next(s.nodes[0].op for s in build_segments() if not s.is_native)
    with monkeypatch.context() as patch:
        patch.setattr(type(op), "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mixed(x)
    assert np.array_equal(mixed(x), wanted)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def build_segments() -> Any:
    return driver.build("lenet", Options()).module.segments


def test_nothing_long_is_left_to_compile_when_weights_are_packed() -> None:
    options, target, events = Options(), driver.resolve_target("native"), list[str]()
    planned, _ = driver.optimise(driver.load_graph("lenet", options), options, target)
    build_module(
        planned,
        target,
        lambda what, done, total: events.append(what),
        lambda piece: events.append(piece.text),
    )
    packing = events.index("packing weights")
    assert any("define void @run0(" in event for event in events[:packing])
    (table,) = events[packing + 1 :]
    assert table.startswith("@offsets = ") and len(table) < 1000


# -- threads and processes -------------------------------------------------------------------------


def shared(folder: Path, threads: int = 2) -> CompiledModel:
    path = folder / "shared.cnn"
    path.write_text(SHARED)
    return cnnc.compile(path, threads=threads)


def test_what_is_too_small_to_share_out_runs_on_one_thread(tmp_path: Path) -> None:
    small, large = cnnc.compile("lenet", threads=2), shared(tmp_path)
    assert small.artifact.manifest.parts == 1 and small._executable.threads == 1
    assert large.artifact.manifest.parts > 1 and large._executable.threads == 2
    assert small.threads == large.threads == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_callers_get_their_own_results(threads: int, tmp_path: Path) -> None:
    model = shared(tmp_path, threads)
    inputs = [some(1 + i % 3, 32, 16, 16, seed=i) for i in range(6)]
    wanted = [model(x) for x in inputs]
    wrong: list[int] = []

    def calls(i: int) -> None:
        out = np.empty_like(wanted[i])
        for turn in range(200):
            result = model(inputs[i], out=out if turn % 2 else None)
            if not np.array_equal(result, wanted[i]):
                wrong.append(i)

    callers = [threading.Thread(target=calls, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def program(text: str) -> str:
    """What a Python program prints that has dcgan_g on two threads as `model`, and an input `x`."""
    start = """
import os, sys, threading
import numpy as np, cnnc
x = np.ones((2, 100, 1, 1), np.float32)
def compiled(**options): return cnnc.compile("dcgan_g", threads=2, **options)
"""
    done = subprocess.run(
        [sys.executable, "-c", start + text], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_models_work_in_forked_children() -> None:
    answer = program(
        """
model = compiled()
wanted = model(x)
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = np.array_equal(model(x), wanted) and np.array_equal(compiled()(x), wanted)
        os._exit(7 if same else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert np.array_equal(model(x), wanted)
print("fine")
"""
    )
    assert answer == "fine\n"


def test_threads_may_all_compile_at_the_same_time() -> None:
    answer = program(
        """
sys.setswitchinterval(1e-5)
results = {}
def work(i): results[i] = compiled(cache=i % 2 == 0)(x).tobytes()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), len(set(results.values())))
"""
    )
    assert answer == "4 1\n"


def test_models_are_let_go() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc")
    x = some(1, 1, 28, 28)
    cnnc.compile("lenet", threads=1)(x)
    for _ in range(20):
        cnnc.compile("lenet", threads=1)(x)
    before = resident()
    for _ in range(100):
        cnnc.compile("lenet", threads=1)(x)
    assert (
        resident() - before < 15 * 10**6
    )  # the weights of 100 models are 30 MB, their code another


# -- time and memory -------------------------------------------------------------------------------


def test_a_call_takes_little_more_than_its_code() -> None:
    """The time of a call without that of the native function: the way in and out."""
    model = cnnc.compile("digits", threads=1)
    x = some(1, 1, 8, 8)
    model(x)
    steps = model._executable._pool[0].steps
    native: list[float] = []

    def timed() -> None:
        start = perf_counter()
        run()
        native.append(perf_counter() - start)

    run, steps[0] = steps[0], timed
    whole: list[float] = []
    for _ in range(3000):
        start = perf_counter()
        model(x)
        whole.append(perf_counter() - start)
    overhead = np.median(whole) - np.median(native)
    assert overhead < 20e-6  # 2 on a quiet machine


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """Ten thousand runs by two callers: always the same answers, and no memory is lost."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("reads /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    model = shared(tmp_path)
    inputs = [some(1, 32, 16, 16, seed=0), some(4, 32, 16, 16, seed=1)]
    wanted = [model(x).tobytes() for x in inputs]
    wrong = [0, 0]

    def calls(i: int, count: int) -> None:
        for _ in range(count):
            wrong[i] += model(inputs[i]).tobytes() != wanted[i]

    def both(count: int) -> None:
        callers = [threading.Thread(target=calls, args=(i, count)) for i in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    both(500)
    before = resident()
    both(5000)
    assert wrong == [0, 0]
    assert resident() - before < 2 * 10**6
