"""Programs that differ in numbers alone, and the one that is given these numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from kernel_harness import Floats, compile_program

import cnnc
from cnnc.codegen.families import MOST_ARGUMENTS, Family, families
from cnnc.codegen.host import native_target
from cnnc.codegen.interpret import interpret
from cnnc.codegen.llvm import load_object
from cnnc.driver import build
from cnnc.frontends.dsl.load import load_text
from cnnc.ir.loops import Index, Program, ProgramBuilder, print_program
from cnnc.options import Options

Settings = tuple[int, int, float]


def doubled(abreast: int) -> Program:
    """Two vectors, the second of which may take turns with the first one."""
    p = ProgramBuilder("doubled")
    x, y = p.buffer("x"), p.buffer("y")
    with p.unroll("u", 2, abreast) as u:
        p.store(y, u * 2, p.load(x, u * 2, 2) * 2.0)
    return p.finish()


def sums(rows: int, columns: int, scale: float, unrolled: int = 2) -> Program:
    """Sums over the rows of a table, the last row less often, in `unrolled` lanes."""
    p = ProgramBuilder("sums")
    x, y = p.buffer("x"), p.buffer("y")
    with p.parallel("j", 0, 3) as j, p.unroll("u", unrolled) as u:
        total = p.tile("total", (1,), 1)
        with p.loop("i", 0, rows - 1) as i:
            p.set(total[0], total[0] + p.load(x, columns * i + 2 * j + u, 1) * scale)
        with p.when(j, 0, 2):
            p.set(total[0], total[0] + p.load(x, 2 * j + u + (rows - 1) * columns, 1))
        p.store(y, 2 * j + u, total[0])
    return p.finish()


def run(program: Program, x: Floats, arguments: tuple[float, ...] = ()) -> Floats:
    """What the program writes, native and interpreted alike."""
    native, slow = (np.full(6, np.nan, np.float32) for _ in range(2))
    code = load_object(compile_program(program, native_target()))
    whole, real = len(program.wholes), len(program.floats)
    types = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * whole + [ctypes.c_float] * real
    function = ctypes.CFUNCTYPE(None, *types, ctypes.c_int64, ctypes.c_int64)
    function(code.address("kernel"))(x.ctypes.data, native.ctypes.data, *arguments, 0, 1)
    interpret(program, {"x": x, "y": slow}, arguments=arguments)
    np.testing.assert_array_equal(native, slow)
    return native


def only(found: list[Family]) -> Family:
    (family,) = found
    return family


@pytest.mark.parametrize(
    "settings",
    [
        [(2, 6, 1.0), (5, 9, 1.0)],
        [(4, 6, 0.1), (4, 6, 0.2)],
        [(4, 8, 0.0), (4, 8, -0.0), (1, 8, 0.0)],  # the loop of the last one does not run
        [(7, 6, 3.0), (3, 7, 0.5), (2, 6, 0.1), (7, 6, 3.0)],
    ],
)
def test_a_family_computes_what_its_members_do(settings: list[Settings]) -> None:
    programs = [sums(*each) for each in settings]
    family = only(list(families(programs)))
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32) * -1.0
    for i, program in enumerate(programs):
        np.testing.assert_array_equal(run(family.program, x, family.arguments[i]), run(program, x))


def test_equal_programs_need_no_arguments() -> None:
    family = only(list(families([sums(4, 6, 1.0), sums(4, 6, 1.0)])))
    assert family.program == sums(4, 6, 1.0)
    assert family.arguments == {0: (), 1: ()}


def test_what_shapes_the_code_is_not_shared() -> None:
    programs = [sums(4, 6, 1.0, unrolled=2), sums(4, 6, 1.0, unrolled=1)]
    assert [family.program for family in families(programs)] == programs
    programs = [doubled(abreast=1), doubled(abreast=2)]
    assert [family.program for family in families(programs)] == programs


def test_zeros_of_either_sign_are_told_apart() -> None:
    family = only(list(families([sums(4, 8, 0.0), sums(4, 8, -0.0)])))
    assert [list(map(repr, numbers)) for numbers in family.arguments.values()] == [
        ["0.0"],
        ["-0.0"],
    ]


def scattered(step: Callable[[int], int]) -> Program:
    """Many numbers that have nothing in common."""
    p = ProgramBuilder("scattered")
    x, y = p.buffer("x"), p.buffer("y")
    for i in range(MOST_ARGUMENTS + 3):
        p.store(y, Index(i), p.load(x, Index(step(i)), 1))
    return p.finish()


def test_too_many_arguments_are_not_worth_it() -> None:
    apart = [scattered(lambda i: i), scattered(lambda i: i * i)]
    assert [family.program for family in families(apart)] == apart
    shifted = only(list(families([scattered(lambda i: i), scattered(lambda i: i + 7)])))
    assert list(shifted.arguments.values()) == [(0,), (7,)]
    assert "whole" in print_program(shifted.program)


TOWER = """
block layer(k) = in -> conv(k, 1) -> relu

model tower {
  input x: f32[N, 32, 7, 7]
  output y = x -> layer(192) -> layer(32) -> layer(288) -> layer(32) -> layer(384) -> layer(32)
  init he(seed=1)
}
"""


def test_layers_of_a_network_share_a_function() -> None:
    graph = load_text(TOWER)
    built = build(graph, Options.of())
    assert len(set(built.module.symbols.values())) < len(built.module.symbols)
    x = np.random.default_rng(1).standard_normal((2, 32, 7, 7)).astype(np.float32)
    got, wanted = (cnnc.compile(graph, exact=exact)(x) for exact in (False, True))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
