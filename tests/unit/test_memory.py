"""What a compilation holds."""

from __future__ import annotations

import numpy as np

from cnnc.driver import build
from cnnc.options import Options


def test_a_lean_build_forgets_constants_and_packs_the_same() -> None:
    options = Options.of()
    whole, lean = build("lenet", options), build("lenet", options, lean=True)
    assert sum(a.nbytes for a in whole.planned.constants.values()) > 200_000
    kept = [a.base if a.base is not None else a for a in lean.planned.constants.values()]
    assert sum(a.nbytes for a in kept) < 1000
    np.testing.assert_array_equal(lean.module.weights, whole.module.weights)
    assert lean.report.parameters == whole.report.parameters == 61_706
