"""What tests of kernels draw, and how they compare a kernel with the meaning of its op."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from kernel_harness import assert_close, largest_on_the_way, planned, run_interpreted, run_native

from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.op import Array

halos = st.sampled_from([NO_HALO, NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0), (3, 0, 0, 1)])


def numbers(seed: int, *shape: int) -> Array:
    """float32 numbers, normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_specials(x: Array, seed: int) -> Array:
    """Some elements replaced by what spreads."""
    random = np.random.default_rng(seed)
    x = x.copy()
    for special in (np.nan, np.inf, -np.inf):
        x[random.random(x.shape) < 0.04] = special
    return x


def check(
    kernel: Kernel,
    site: Site,
    arrays: Sequence[Array],
    halo: Halo = NO_HALO,
    spare: int = 0,
    exact: bool = False,
) -> None:
    """Native, and in place of each operand that allows it, against the op's meaning."""
    with np.errstate(all="ignore"):
        expected = np.asarray(site.op.evaluate(*arrays))
    size = largest_on_the_way(site.op, arrays)

    def compare(found: Array) -> None:
        if exact:
            np.testing.assert_array_equal(found, expected)
        else:
            assert_close(found, expected, on_the_way=size)

    compare(run_native(kernel, site, arrays, halo=halo, spare=spare))
    final = planned(kernel, site)
    for i in kernel.in_place(final):
        if final.operands[i].layout == final.result.layout and not site.constant[i]:
            compare(run_native(kernel, site, arrays, in_place=i))
    cycles = kernel.cycles(site)
    assert cycles >= 0 and math.isfinite(cycles)


def check_slowly(
    kernel: Kernel, site: Site, arrays: Sequence[Array], halo: Halo = NO_HALO, spare: int = 0
) -> None:
    """Native against the interpreter, which checks every access."""
    found = run_native(kernel, site, arrays, halo=halo, spare=spare)
    slow = run_interpreted(kernel, site, arrays, halo=halo, spare=spare)
    assert_close(found, slow, 1e-5)
