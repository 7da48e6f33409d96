"""Writes `docs/operators.md`: `cd tests && python -m onnx_conformance.page`.

The table follows from the tables of operators, from ONNX's cases and `skips.toml`; only what the
operators run in is found by running the cases.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx.defs import get_all_schemas_with_history
from onnx_conformance.skips import Skips
from onnx_conformance.suite import KINDS, Case, load_cases, run

from cnnc.frontends.onnx.ops import CONTRIB, CONVERTERS, FOLDERS
from cnnc.frontends.onnx.proto import OLDEST

PATH = Path(__file__).parents[2] / "docs" / "operators.md"
_REASONS = 3  # that are shown for an operator

_HEAD = """\
# ONNX operators

What cnnc makes of the operators of ONNX's standard domain, opset {oldest} or later. This page is
made by `cd tests && python -m onnx_conformance.page` from the tables in `frontends/onnx/ops` and
from the cases that the `onnx` package has for single operators. Of all its {all} cases cnnc passes
{passed}.

*Runs* says what computes the operator in the cases that pass: native code, or NumPy where there is
no kernel yet (`strict` refuses those). Nodes of constants are computed when a model is compiled.
Operators that are marked *by others* are expanded to what the standard defines them by.

| operator | opsets | runs | cases | not supported |
|---|---|---|---|---|
"""
_TAIL = """
## Not supported

{missing}.

Of an `If` the branch that is taken is compiled, so its condition must be known by then.

## Of ONNX Runtime's own domain

Models that ONNX Runtime optimised (up to `ORT_ENABLE_EXTENDED`) or quantised have operators of the
domain com.microsoft. These are supported: {contrib}.
"""


@dataclass(frozen=True)
class Row:
    """One operator: its versions, its cases, and why some are not supported."""

    operator: str
    opsets: Sequence[int]
    passed: Sequence[Case]
    count: int
    reasons: Sequence[str]
    note: str

    def text(self, runs: str) -> str:
        """The row of the page."""
        versions = ", ".join(map(str, self.opsets))
        cases = f"{len(self.passed)} of {self.count}" if self.count else "-"
        reasons = "; ".join(self.reasons[:_REASONS]) + ("; ..." if self.reasons[_REASONS:] else "")
        cells = [f"{self.operator}{self.note}", versions, runs, cases, reasons.replace("|", "\\|")]
        return f"| {' | '.join(cells)} |"


def rows(cases: Iterable[Case], skips: Skips) -> list[Row]:
    """The rows of all operators that are supported."""
    alone: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.kind == "node" and len(case.operators) == 1:
            alone[next(iter(case.operators))].append(case)
    found = []
    for operator, opsets in versions().items():
        passed = [case for case in alone[operator] if not skips.entries(case)]
        known = operator in CONVERTERS or operator in FOLDERS
        if not passed and not known:
            continue
        entries = (skips.entries(case) for case in alone[operator])
        reasons = sorted({why for entry in entries for why in entry.values()})
        note = "" if known else " (by others)"
        found.append(Row(operator, opsets, passed, len(alone[operator]), reasons, note))
    return found


def versions() -> dict[str, list[int]]:
    """Operator of the standard domain -> the opsets that changed it, as far as they are read."""
    found: dict[str, list[int]] = defaultdict(list)
    for schema in get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name].append(schema.since_version)
    return {name: _read(sorted(all)) for name, all in sorted(found.items())}


def _read(all: Sequence[int]) -> list[int]:
    """Of the versions those that an opset since `OLDEST` has."""
    first = max((v for v in all if v <= OLDEST), default=all[0])
    return [v for v in all if v >= first]


def page(cases: Sequence[Case], skips: Skips, runs: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        cases: all cases.
        skips: those that are not supported.
        runs: operator -> what computes it.
    """
    table = rows(cases, skips)
    passed = sum(not skips.entries(case) for case in cases)
    head = _HEAD.format(oldest=OLDEST, all=len(cases), passed=passed)
    body = "\n".join(row.text(runs.get(row.operator, "-")) for row in table)
    missing = sorted(versions().keys() - {row.operator for row in table} - {"If"})
    return (
        head
        + body
        + "\n"
        + _TAIL.format(missing=", ".join(missing), contrib=", ".join(sorted(CONTRIB)))
    )


def runs_of(row: Row) -> str:
    """What computes an operator in its cases."""
    models = [run(case) for case in row.passed]
    native = sum(model.is_native for model in models)
    if not models:
        return "-"
    if 0 < native < len(models):
        return f"native in {native}, NumPy in {len(models) - native}"
    return "native" if native else "NumPy"


def read_runs(text: str) -> dict[str, str]:
    """Operator -> what computes it, as a page says it."""
    cells = re.findall(r"^\| (\w+)[^|]* \| [\d, ]* \| ([^|]*) \|", text, re.MULTILINE)
    return dict(cells)


def main() -> None:
    """Runs the cases and writes the page."""
    warnings.simplefilter("ignore")
    cases, skips = load_cases(*KINDS), Skips.load()
    runs = {row.operator: runs_of(row) for row in rows(cases, skips)}
    PATH.write_text(page(cases, skips, runs))


if __name__ == "__main__":
    main()
