"""cnnc passes ONNX's own tests for backends, apart from what `skips.toml` lists."""

from __future__ import annotations

import pytest
from onnx_conformance.page import PATH, page, read_runs
from onnx_conformance.skips import Skips
from onnx_conformance.suite import KINDS, Case, load_cases, run

from cnnc.ir.location import CnncError

QUICK = "test_squeezenet"  # of the networks
_UPDATE = "cd tests && python -m onnx_conformance.update && python -m onnx_conformance.page"
CASES = load_cases(*KINDS)
SKIPS = Skips.load()


def _parameter(case: Case) -> object:
    # What a case is expanded to is imported for the case itself, too, or has cases of its own.
    slow = case.name != QUICK if case.kind == "real" else case.name.endswith("_expanded")
    return pytest.param(case, id=case.id, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, where cases compute NaN
@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_case(case: Case) -> None:
    skipped = SKIPS.entries(case)
    if not skipped:
        try:
            run(case)
        except CnncError as error:
            error.add_note(f"if that is meant: {_UPDATE}")
            raise
        return
    expected = AssertionError if case.id in SKIPS.differs else CnncError
    try:
        run(case)
    except expected:
        return
    names = ", ".join(f"[{table}] {name}" for table, name in skipped)
    pytest.fail(f"passes, but skips.toml lists it: {names}; {_UPDATE}")


def test_the_page_of_operators_is_up_to_date() -> None:
    """Apart from what computes them, which takes running."""
    text = PATH.read_text()
    fix = "cd tests && python -m onnx_conformance.page"
    assert text == page(CASES, SKIPS, read_runs(text)), fix


def test_every_entry_is_used() -> None:
    unused = SKIPS.unused(CASES)
    assert not unused, f"skips.toml lists {', '.join(unused)} in vain: {_UPDATE}"
