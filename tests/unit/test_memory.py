"""What a compilation holds, and where arrays are."""

from __future__ import annotations

import numpy as np

from cnnc.driver import build
from cnnc.options import Options
from cnnc.runtime.memory import address


def test_a_lean_build_forgets_constants_and_packs_the_same() -> None:
    options = Options.of()
    whole, lean = build("lenet", options), build("lenet", options, lean=True)
    assert sum(a.nbytes for a in whole.planned.constants.values()) > 200_000
    kept = [a.base if a.base is not None else a for a in lean.planned.constants.values()]
    assert sum(a.nbytes for a in kept) < 1000
    np.testing.assert_array_equal(lean.module.weights, whole.module.weights)
    assert lean.report.parameters == whole.report.parameters == 61_706


def test_the_address_of_any_array() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    fixed = array.copy()
    fixed.flags.writeable = False
    one, none = np.array(1.0, np.float32), np.zeros((2, 0), np.bool_)
    rows = [array, fixed, array[1:], array[:0], one, none]
    for each in rows:
        assert address(each) == each.ctypes.data
