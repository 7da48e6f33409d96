"""Which of ONNX's cases cnnc does not support, and why: `skips.toml`.

    [operators]   # every case that has such a node
    LSTM = "recurrent networks are not supported"
    [types]       # every case that takes, gives or casts to such a type
    string = "only numbers are computed with"
    [cases]       # by name; `*` stands for anything
    test_dropout_random = "..."
    [differs]     # by name; written by hand
    test_resize_odd = "..."

A case that is listed must be refused, with an error that says why; one under `differs` must give
something else, for the reason that stands there. Any other must pass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path

from onnx_conformance.suite import Case

PATH = Path(__file__).with_name("skips.toml")


@dataclass(frozen=True)
class Skips:
    """The tables of the file: what is not supported -> why."""

    operators: Mapping[str, str]
    types: Mapping[str, str]
    cases: Mapping[str, str]
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Mapping[str, str]]:
        """The tables by their names in the file."""
        return {table.name: getattr(self, table.name) for table in fields(self)}

    @staticmethod
    def load() -> Skips:
        """What the file says."""
        return Skips(**tomllib.loads(PATH.read_text()))

    def entries(self, case: Case) -> dict[tuple[str, str], str]:
        """(table, name) -> reason, for all entries that the case is skipped by."""
        if case.id in self.differs:
            return {("differs", case.id): self.differs[case.id]}
        return {
            **{("cases", n): why for n, why in self.cases.items() if fnmatchcase(case.id, n)},
            **{("operators", n): self.operators[n] for n in case.operators & self.operators.keys()},
            **{("types", n): self.types[n] for n in case.types & self.types.keys()},
        }

    def unused(self, cases: Iterable[Case]) -> list[str]:
        """The entries that no case has need of."""
        used = {entry for case in cases for entry in self.entries(case)}
        entries = [(table, name) for table, names in self.tables.items() for name in names]
        return [f"[{table}] {name}" for table, name in entries if (table, name) not in used]
