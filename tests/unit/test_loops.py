"""Loop programs: printing, the interpreter's checks, and that native code means the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_harness import Floats, run_program

from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import named_target
from cnnc.codegen.interpret import interpret
from cnnc.ir.loops import (
    FUNCTIONS,
    Apply,
    Constant,
    FromIndex,
    Index,
    Kind,
    Loop,
    Pick,
    Program,
    ProgramBuilder,
    Reduce,
    Value,
    apply,
    fma,
)

NAN, INF = float("nan"), float("inf")


def both(program: Program, x: Floats, size: int, threads: int = 1) -> Floats:
    """The result buffer (NaN at first) after a run, native and interpreted alike."""
    native, slow = (np.full(size, np.nan, np.float32) for _ in range(2))
    run_program(program, [x, native], threads)
    for tid in range(threads):
        interpret(program, {"x": x, "y": slow}, tid, threads)
    np.testing.assert_array_equal(native, slow)
    return native


def numbers(count: int) -> Floats:
    return np.arange(count, dtype=np.float32) + 1


def builder() -> tuple[ProgramBuilder, str, str]:
    p = ProgramBuilder("test")
    return p, p.buffer("x"), p.buffer("y")


def pairwise(function: str, rows: list[tuple[float, ...]]) -> Floats:
    """`function` of each row of arguments, in one vector, native and interpreted."""
    p, x, y = builder()
    lanes, arity = 4, FUNCTIONS[function]
    columns = np.zeros((arity, lanes), np.float32)
    columns[:, : len(rows)] = np.array(rows, np.float32).T
    args = tuple(p.load(x, i * lanes, lanes) for i in range(arity))
    p.store(y, 0, Apply(lanes, function, args))
    return both(p.finish(), columns.reshape(-1), lanes)[: len(rows)]


# -- printing ------------------------------------------------------------------------------------


def test_program_prints_as_its_loop_nest() -> None:
    p, x, y = builder()
    s = p.scratch("s", 32)
    with p.parallel("i", 0, 8) as i:
        half = p.let("half", i // 2)
        acc = p.tile("acc", (2,), 4)
        with p.loop("k", 0, half + 1) as k:
            with p.unroll("u", 2) as u:
                p.set(acc[u], fma(p.load(x, i * 8 + u * 4 + k, 4), Constant(4, 2.0), acc[u]))
        with p.when(i % 3, 0, 2):
            p.store(y, i * 4 - 1, acc[0] + acc[1], count=3)
        p.store(s, 0, apply("max", p.load(x, i, 4, stride=2), p.load(x, 0, 4, stride=0)))
        p.store(y, i, Reduce(1, "add", -acc[0]), stride=3)
        p.store(s, 4, FromIndex(4, (i + 1).min(5)))
    assert str(p.finish()) == (
        "kernel test(x, y, scratch s[32])\n"
        "  parallel i in 0..8:\n"
        "    let half = (i // 2)\n"
        "    tile acc[2]: f32x4\n"
        "    for k in 0..half + 1:\n"
        "      unroll u in 0..2:\n"
        "        acc[u] = fma(x[8 * i + 4 * u + k :4], 2.0, acc[u])\n"
        "    when 0 <= (i % 3) < 2:\n"
        "      y[4 * i - 1 :3] = (acc[0] + acc[1])\n"
        "    s[0 :4] = max(x[i :4 step 2], splat(x[0]))\n"
        "    y[i] = reduce_add(neg(acc[0]))\n"
        "    s[4 :4] = float(min(i + 1, 5))\n"
    )


def test_names_are_made_unique() -> None:
    p, x, _ = builder()
    for _ in range(2):
        with p.loop("i", 0, 2) as i:
            p.store(x, i, Constant(1, 0.0))
    loops = [s for s in p.finish().body if isinstance(s, Loop)]
    assert [s.variable for s in loops] == ["i", "i1"]


def test_names_with_numbers_are_unique_too() -> None:
    p = ProgramBuilder("test")
    hints = ["x1", "x11", *("x" for _ in range(15)), "x1", "x12", "x1"]
    names = [p.bind(hint, Constant(1, 0.0)).tile for hint in hints]
    assert len(set(names)) == len(names)


def test_index_arithmetic_folds() -> None:
    p = ProgramBuilder("test")
    with p.loop("i", 0, 4) as i:
        assert (i * 16 + 32) // 16 == i + 2
        assert (i * 16 + 35) % 16 == Index(3)
        assert i - i == Index(0)
        assert str((i * 3 + 1) // 2 + i) == "((3 * i + 1) // 2) + i"
        assert Index(7).min(3) == Index(3) and Index(7).max(3) == Index(7)


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 17))
def test_masked_load_reads_zero_and_masked_store_leaves_the_rest(count: int) -> None:
    p, x, y = builder()
    p.store(y, 0, p.load(x, 1, 16, count=count) + 0.5)
    p.store(y, 20, p.load(x, 1, 16) * 2.0, count=count)
    found = both(p.finish(), numbers(17), 40)
    expected = np.full(40, np.nan, np.float32)
    expected[:16] = 0.5
    expected[:count] += numbers(17)[1 : count + 1]
    expected[20 : 20 + count] = 2 * numbers(17)[1 : count + 1]
    np.testing.assert_array_equal(found, expected)


def test_strided_access() -> None:
    p, x, y = builder()
    p.store(y, 0, p.load(x, 2, 4, stride=3))
    p.store(y, 4, p.load(x, 0, 4, stride=5, count=2))
    p.store(y, 8, p.load(x, 7, 4, stride=0))
    p.store(y, 12, p.load(x, 0, 4), stride=4)
    p.store(y, 13, p.load(x, 0, 4), stride=4, count=2)
    found = both(p.finish(), numbers(12), 25)
    expected: list[float] = [3, 6, 9, 12, 1, 6, 0, 0, 8, 8, 8, 8]
    expected += [1, 1, NAN, NAN, 2, 2, NAN, NAN, 3, NAN, NAN, NAN, 4]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_every_second_element(start: int, count: int) -> None:
    p, x, y = builder()
    p.store(y, 0, p.load(x, start, 4, stride=2, count=count))
    found = both(p.finish(), numbers(start + 2 * count - 1), 4)
    expected = [*range(start + 1, start + 2 * count, 2), 0, 0, 0, 0][:4]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def _outside(write: Callable[[ProgramBuilder, str, str], None]) -> Program:
    p, x, y = builder()
    with p.loop("i", 0, 4) as i:
        p.store(y, i, p.load(x, i, 1))
    write(p, x, y)
    return p.finish()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, x, y: p.store(y, 0, p.load(x, 1, 4)), r"x\[1 ?\] touches 1..4 where x has 4"),
        (lambda p, x, y: p.store(y, 0, p.load(x, -1, 1)), r"touches -1..-1"),
        (lambda p, x, y: p.store(y, 2, p.load(x, 0, 4)), r"y\[2\] touches 2..5 where y has 4"),
        (lambda p, x, y: p.set(p.tile("t", (2,), 1)[2], 0.0), r"no register t\[2\]"),
    ],
)
def test_interpreter_refuses_what_lies_outside(
    write: Callable[[ProgramBuilder, str, str], None], message: str
) -> None:
    with pytest.raises(IndexError, match=message):
        interpret(_outside(write), {"x": numbers(4), "y": numbers(4)})


def test_interpreter_refuses_the_quotient_of_a_negative_index() -> None:
    p, x, y = builder()
    with p.loop("i", 0, 2) as i:
        p.store(y, 0, p.load(x, (i - 1) // 2 + 1, 1))
    with pytest.raises(IndexError, match="negative number -1"):
        interpret(p.finish(), {"x": numbers(4), "y": numbers(4)})


def test_tables_are_part_of_the_code() -> None:
    p, x, y = builder()
    order = p.lookup("order", [3, 0, 2])
    factors = p.table("factors", [0.5, 2.0, -1.0])
    with p.loop("i", 0, 3) as i:
        p.store(y, i, p.load(x, order(i), 1) * p.load(factors, i, 1))
    p.store(y, 3, p.load(x, order(Index(2)), 1))
    found = both(p.finish(), numbers(4), 4)
    np.testing.assert_array_equal(found, [2, 2, -3, 3])


def test_scratch_starts_undefined() -> None:
    p, x, y = builder()
    s = p.scratch("s", 4)
    p.store(s, 0, p.load(x, 0, 2))
    p.store(y, 0, p.load(s, 0, 4))
    y_array = numbers(4)
    interpret(p.finish(), {"x": numbers(4), "y": y_array})
    np.testing.assert_array_equal(y_array, [1, 2, np.nan, np.nan])


def test_kept_scratch_starts_as_zeros() -> None:
    p, x, y = builder()
    s = p.scratch("s", 4, kept=True)
    p.store(s, 0, p.load(x, 0, 2))
    p.store(y, 0, p.load(s, 0, 4))
    y_array = numbers(4)
    program = p.finish()
    interpret(program, {"x": numbers(4), "y": y_array})
    np.testing.assert_array_equal(y_array, [1, 2, 0, 0])
    assert str(program).startswith("kernel test(x, y, kept s[4])\n")


def test_native_scratch_is_a_buffer() -> None:
    p, x, y = builder()
    s = p.scratch("s", 8)
    p.store(s, 0, p.load(x, 0, 8) * 3.0)
    p.store(y, 0, p.load(s, 1, 4))
    found, scratch = numbers(4), numbers(8)
    run_program(p.finish(), [numbers(8), found, scratch])
    np.testing.assert_array_equal(found, [6, 9, 12, 15])


# -- control -------------------------------------------------------------------------------------


def test_registers_are_carried_through_nested_loops() -> None:
    p, x, y = builder()
    outer = p.tile("outer", (2,), 4)
    with p.loop("i", 0, 3) as i:
        inner = p.tile("inner", (), 4)
        with p.loop("j", 0, i + 1) as j:
            p.set(inner[()], inner[()] + p.load(x, i * 4 + j, 4))
            with p.unroll("u", 2) as u:
                p.set(outer[u], outer[u] + inner[()] * 2.0)
        p.set(outer[1], outer[1] - inner[()])
    for u in range(2):
        p.store(y, u * 4, outer[u])
    values = numbers(15)
    sums = np.zeros((2, 4))
    for i in range(3):
        total = np.zeros(4)
        for j in range(i + 1):
            total += values[i * 4 + j : i * 4 + j + 4]
            sums += 2 * total
        sums[1] -= total
    np.testing.assert_array_equal(both(p.finish(), values, 8), sums.reshape(-1))


def test_iterations_abreast_take_turns() -> None:
    p, x, y = builder()
    kept = p.tile("kept", (7,), 4)
    with p.unroll("u", 7, abreast=3) as u:
        one = p.bind("one", p.load(x, u * 4, 4) * 2.0)
        p.set(kept[u], one + 1.0)
        p.store(y, u * 4, fma(one, one, kept[u]))
    with p.unroll("v", 7) as v:
        p.store(y, v * 4 + 28, kept[v])
    program = p.finish()
    assert "unroll u in 0..7, 3 abreast:" in str(program)
    twice = numbers(28) * 2
    found = both(program, numbers(28), 56)
    np.testing.assert_array_equal(found, [*(twice * twice + twice + 1), *(twice + 1)])
    words = (line.split() for line in emit_function(program, "kernel")[0].splitlines())
    order = [w[0] if w[0] == "store" else w[2] for w in words if {"fmul", "store"} & {*w[:3]}]
    assert order[:14] == (["fmul"] * 3 + ["store"] * 3) * 2 + ["fmul", "store"]


def test_iterations_with_loops_cannot_take_turns() -> None:
    p, _, y = builder()
    with p.unroll("u", 2, abreast=2) as u, p.loop("i", 0, 2) as i:
        p.store(y, u * 2 + i, Constant(1, 1.0))
    with pytest.raises(AssertionError, match="Loop cannot take turns"):
        emit_function(p.finish(), "kernel")


def test_loops_that_do_not_run_leave_registers_alone() -> None:
    p, x, y = builder()
    t = p.tile("t", (), 4)
    p.set(t[()], p.load(x, 0, 4))
    with p.loop("i", 0, 3) as i:
        with p.loop("j", i, 1):  # once, then never
            p.set(t[()], t[()] * 10.0)
        with p.loop("k", 2, 2):
            p.set(t[()], 0.0)
        with p.loop("l", 3, 1):
            p.set(t[()], 0.0)
    p.store(y, 0, t[()])
    np.testing.assert_array_equal(both(p.finish(), numbers(4), 4), [10, 20, 30, 40])


def test_when_runs_inside_its_bounds() -> None:
    p, x, y = builder()
    t = p.tile("t", (), 1)
    with p.loop("i", 0, 6) as i:
        with p.when(i, 2, 4):
            p.set(t[()], t[()] + p.load(x, i, 1))
            with p.when(i * 2 - 3, 3, 4):
                p.store(y, 7, t[()])
        p.store(y, i, t[()])
    with p.when(Index(1), 0, 1):
        p.store(y, 0, Constant(1, 99.0))
    np.testing.assert_array_equal(
        both(p.finish(), numbers(6), 8), np.array([0, 0, 3, 7, 7, 7, NAN, 7], np.float32)
    )


def test_lets_and_functions_of_indices() -> None:
    p, x, y = builder()
    with p.loop("i", 0, 12) as i:
        row, column = p.let("row", i // 5), p.let("column", i % 5)
        near = p.let("near", (column + 1).min(4).max(row * 2))
        p.store(y, i, p.load(x, near, 1) + FromIndex(1, row * 100 - column))
    expected = [
        numbers(5)[max(min(i % 5 + 1, 4), i // 5 * 2)] + i // 5 * 100 - i % 5 for i in range(12)
    ]
    np.testing.assert_array_equal(both(p.finish(), numbers(5), 12), expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 12])
def test_threads_share_the_iterations(threads: int) -> None:
    p, x, y = builder()
    with p.parallel("i", 3, 10) as i:
        p.store(y, i, p.load(y, i, 1) + p.load(x, i, 1))
    program = p.finish()
    native, slow = np.zeros(12, np.float32), np.zeros(12, np.float32)
    run_program(program, [numbers(12), native], threads)
    for tid in range(threads):
        interpret(program, {"x": numbers(12), "y": slow}, tid, threads)
    expected = numbers(12)
    expected[:3] = expected[10:] = 0
    np.testing.assert_array_equal(native, expected)
    np.testing.assert_array_equal(slow, expected)


def test_a_parallel_loop_is_outermost() -> None:
    p = ProgramBuilder("test")
    with p.loop("i", 0, 2):
        with pytest.raises(AssertionError, match="outermost"):
            p.parallel("j", 0, 2)
    assert p.finish().body[0].kind is Kind.SERIAL  # type: ignore[union-attr]


# -- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_reduce_combines_halves(lanes: int) -> None:
    p, x, y = builder()
    p.store(y, 0, Reduce(1, "add", p.load(x, 0, lanes)))
    p.store(y, 1, Reduce(1, "maximum", p.load(x, 0, lanes)))
    values = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    halves = values[:lanes]
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
    np.testing.assert_array_equal(both(p.finish(), values, 2), [halves[0], values[:lanes].max()])
    values[lanes // 2] = np.nan
    assert np.isnan(both(p.finish(), values, 2)).all()


def test_pow2_is_exact_and_undefined_elsewhere() -> None:
    p, x, y = builder()
    powers = np.arange(-126, 128, dtype=np.float32)
    with p.loop("i", 0, powers.size) as i:
        p.store(y, i, apply("pow2", p.load(x, i, 1)))
    np.testing.assert_array_equal(
        both(p.finish(), powers, powers.size), np.ldexp(1.0, powers.astype(int))
    )
    p, x, y = builder()
    p.store(y, 0, apply("pow2", p.load(x, 0, 4)))
    undefined = np.zeros(4, np.float32)
    interpret(p.finish(), {"x": np.array([-127, 128, 0.5, NAN], np.float32), "y": undefined})
    assert np.isnan(undefined).all()


@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_pow2_of_sixteenths(lanes: int) -> None:
    p, x, y = builder()
    powers = np.resize(np.arange(-2016, 2049, 3), 85 * 16)
    with p.loop("i", 0, powers.size // lanes) as i:
        p.store(y, i * lanes, apply("pow2_16ths", p.load(x, i * lanes, lanes)))
    found = both(p.finish(), (powers + 1.5 * 2**23).astype(np.float32), powers.size)
    np.testing.assert_array_equal(found, np.exp2(powers / 16).astype(np.float32))
    assert np.isinf(found[powers == 2048]).all()


@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_pick_reads_four_bits(lanes: int) -> None:
    p, x, y = builder()
    table = tuple(float(n) ** 3 / 7 for n in range(16))
    values = np.exp2(np.linspace(-3, 5, 320)).astype(np.float32)
    with p.loop("i", 0, values.size // lanes) as i:
        p.store(y, i * lanes, Pick(lanes, table, p.load(x, i * lanes, lanes), 21))
    wanted = np.array(table, np.float32)[(values.view(np.uint32) >> 21) & 15]
    np.testing.assert_array_equal(both(p.finish(), values, values.size), wanted)


def test_comparisons_of_nan() -> None:
    pairs: list[tuple[float, ...]] = [(1, 2), (2, 1), (NAN, 1), (1, NAN)]
    np.testing.assert_array_equal(pairwise("max", pairs), [2, 2, 1, NAN])
    np.testing.assert_array_equal(pairwise("min", pairs), [1, 1, 1, NAN])
    np.testing.assert_array_equal(pairwise("maximum", pairs), [2, 2, NAN, NAN])
    chosen: list[tuple[float, ...]] = [(*pair, 5, 6) for pair in pairs]
    np.testing.assert_array_equal(pairwise("less", chosen), [5, 6, 6, 6])


def test_arithmetic_rounds_to_float32() -> None:
    third = float(np.float32(1) / np.float32(3))
    pairs: list[tuple[float, ...]] = [(1, 3), (0.1, 0.7), (1e38, 1e38), (-1, 0)]
    a, b = np.array(pairs, np.float32).T
    with np.errstate(all="ignore"):
        for function, expected in (("add", a + b), ("sub", a - b), ("mul", a * b), ("div", a / b)):
            np.testing.assert_array_equal(pairwise(function, pairs), expected)
    singles: list[tuple[float, ...]] = [(2.0,), (-0.0,), (INF,), (third,)]
    (x,) = np.array(singles, np.float32).T
    np.testing.assert_array_equal(pairwise("sqrt", singles), np.sqrt(x))
    np.testing.assert_array_equal(pairwise("neg", singles), -x)
    np.testing.assert_array_equal(np.signbit(pairwise("abs", singles)), False)


def test_fma_rounds_once() -> None:
    a = 1 + 2.0**-12
    rows: list[tuple[float, ...]] = [(a, a, -1 - 2.0**-11), (3, 4, 5), (INF, 0, 1)]
    np.testing.assert_array_equal(pairwise("fma", rows), [2.0**-24, 17, NAN])


def test_constants_round_to_float32() -> None:
    p, _, y = builder()
    given = [0.1, 1e39, -1e39, 1e-46, NAN, INF, -0.0, 16777217.0]
    for i, number in enumerate(given):
        value: Value = Constant(1, number)
        p.store(y, i, value)
    with np.errstate(over="ignore"):
        expected = np.array(given).astype(np.float32)
    found = both(p.finish(), numbers(1), len(given))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[6]), True)


def test_narrower_targets_mean_the_same() -> None:
    p, x, y = builder()
    with p.loop("i", 0, 3) as i:
        tail = p.load(x, i * 16, 16, count=11)
        p.store(y, i * 16, apply("maximum", tail * 3.0, 7.0), count=13)
    program = p.finish()
    expected = both(program, numbers(48), 48)
    for name in ("x86-64-v3", "x86-64"):
        target = named_target(name)
        found = np.full(48, np.nan, np.float32)
        run_program(program, [numbers(48), found], target=target)
        np.testing.assert_array_equal(found, expected)


def test_a_flag_is_one_above_zero() -> None:
    p, x, y = builder()
    with p.loop("i", 0, 5) as i:
        above = p.flag("above", p.load(x, i, 1))
        p.store(y, i, Constant(1, 0.0))
        with p.when(above, 1, 2):
            p.store(y, i, Constant(1, 1.0))
    program = p.finish()
    assert "flag above = x[i] > 0\n" in str(program)
    values = np.array([1e-30, 0.0, -1.0, NAN, INF], np.float32)
    np.testing.assert_array_equal(both(program, values, 5), [1, 0, 0, 0, 1])


def test_one_of_two_buffers_is_chosen() -> None:
    p, x, y = builder()
    sevens = p.table("sevens", [7.0] * 5)
    with p.loop("i", 0, 5) as i:
        taken = p.choose("taken", p.flag("above", p.load(x, i, 1)), sevens, x)
        p.store(y, i, p.load(taken, i, 1) + 1.0)
    program = p.finish()
    assert "choose taken = x if above else sevens\n" in str(program)
    values = np.array([1.0, -1.0, 2.0, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(both(program, values, 5), [2, 8, 3, 8, 4])
