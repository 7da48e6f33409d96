"""Rewrites `skips.toml` by what is refused now: `cd tests && python -m onnx_conformance.update`.

Reasons that stand there are kept. New ones are the messages of the errors. Wrong results are told,
never listed.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Container, Mapping

from onnx_conformance.skips import PATH, Skips
from onnx_conformance.suite import KINDS, Case, load_cases, run

from cnnc.ir.location import CnncError

_HEAD = """\
# What cnnc does not support of ONNX's own tests, and why; see skips.py. Made by update.py, which
# keeps the reasons.
"""


def refusals(cases: list[Case], differing: Container[str]) -> dict[str, str]:
    """Case -> why it is refused."""
    refused = {}
    for case in cases:
        if case.id in differing:
            continue
        try:
            run(case)
        except CnncError as error:
            refused[case.id] = error.diagnostics[0].message.partition(" (1 node")[0]
        except Exception as error:  # told, so that it is mended or listed by hand
            print(f"{case.id}: {error!r:.300}", file=sys.stderr)
    return refused


def listed(cases: list[Case], refused: Mapping[str, str], old: Skips) -> Skips:
    """The refused cases by operators and types of which none passes, the rest by name."""
    passing = [case for case in cases if case.id not in refused]
    operators = (
        frozenset().union(*(c.operators for c in cases)).difference(*(c.operators for c in passing))
    )
    types = frozenset().union(*(c.types for c in cases)).difference(*(c.types for c in passing))
    groups = Skips(
        {n: old.operators.get(n, f"operator {n} is not supported yet") for n in sorted(operators)},
        {n: old.types.get(n, f"type {n} is not supported yet") for n in sorted(types)},
        {},
    )
    rest = [case for case in cases if case.id in refused and not groups.entries(case)]
    patterns = {
        name: why
        for name, why in old.cases.items()
        if "*" in name and not any(Skips({}, {}, {name: why}).entries(c) for c in passing)
    }
    known = Skips({}, {}, patterns)
    names = {
        case.id: old.cases.get(case.id, refused[case.id])
        for case in rest
        if not known.entries(case)
    }
    used = Counter(entry for case in rest for entry in known.entries(case))
    kept = {name: why for name, why in patterns.items() if used["cases", name]}
    return Skips(groups.operators, groups.types, {**kept, **names}, old.differs)


def write(skips: Skips) -> None:
    """Writes the file."""
    lines = [_HEAD]
    for table, entries in skips.tables.items():
        rows = (f"{json.dumps(name)} = {json.dumps(why)}" for name, why in entries.items())
        lines += [f"[{table}]", *rows, ""]
    PATH.write_text("\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Runs all cases and writes the file."""
    warnings.simplefilter("ignore")
    cases = load_cases(*KINDS)
    old = Skips.load() if PATH.exists() else Skips({}, {}, {})
    refused = refusals(cases, old.differs)
    write(listed(cases, refused, old))
    print(f"{len(cases) - len(refused)} of {len(cases)} cases pass")


if __name__ == "__main__":
    main()
