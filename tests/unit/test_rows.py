"""In which order threads take the rows of maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cnnc.codegen.host import named_target
from cnnc.codegen.interpret import interpret
from cnnc.codegen.kernels.rows import Walk, bands
from cnnc.ir.loops import FromIndex, ProgramBuilder


def taken(walk: Walk, tid: int = 0, threads: int = 1) -> list[tuple[int, int, int]]:
    """(image, part, row) in the order in which a thread takes them."""
    p = ProgramBuilder("walk")
    out = p.buffer("out")
    number = p.scratch("number", 1, kept=True)
    with walk.parallel(p, "part", "row") as place:
        count = p.load(number, 0, 1)
        n, part, row = place
        at = ((n * walk.parts + part) * walk.rows + row) * 4
        for i, index in enumerate(place):
            p.store(out, at + i, FromIndex(1, index))
        p.store(out, at + 3, count)
        p.store(number, 0, count + 1.0)
    found = np.full(walk.images * walk.parts * walk.rows * 4, -1, np.float32)
    interpret(p.finish(), {"out": found}, tid, threads)
    rows = sorted((row for row in found.reshape(-1, 4).tolist() if row[3] >= 0), key=lambda r: r[3])
    return [(int(n), int(part), int(row)) for n, part, row, _ in rows]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("rows", "count"), [(14, 2), (13, 2), (9, 4), (5, 1)])
def test_all_rows_are_taken_once_band_by_band(images: int, rows: int, count: int) -> None:
    walk = Walk(images, 3, rows, count)
    wanted = [(n, part, row) for n in range(images) for part in range(3) for row in range(rows)]
    found = taken(walk)
    assert found == sorted(wanted, key=lambda at: (at[0], at[2] // walk.height, at[1:]))
    shared = [at for tid in range(3) for at in taken(walk, tid, 3)]
    assert shared == found


def test_half_of_the_work_is_half_of_the_rows_whatever_the_parts() -> None:
    for parts in (1, 5):
        assert {row for _, _, row in taken(Walk(1, parts, 14, 2), 0, 2)} == set(range(7))


@pytest.mark.parametrize(
    ("rows", "cores", "count"),
    [(56, 2, 2), (56, 8, 8), (28, 8, 4), (14, 4, 2), (13, 2, 2), (7, 2, 1), (9, 2, 1), (14, 1, 1)],
)
def test_bands_are_as_many_as_cores_where_these_get_the_same(
    rows: int, cores: int, count: int
) -> None:
    assert bands(rows, replace(named_target("x86-64-v4"), cores=cores)) == count
