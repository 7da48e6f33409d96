"""`docs/language.md`: its table has all ops with their parameters, and its examples are models."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from cnnc.frontends.dsl.layers import Row
from cnnc.frontends.dsl.load import load_text
from cnnc.frontends.dsl.ops import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```cnn\n(.*?)```", PAGE, re.DOTALL)
END = (1 << 31) - 1  # of an axis


def shown(default: Any) -> str:
    """A default as one writes it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, Enum):
        return str(default.value)
    if isinstance(default, tuple) and len(set(default)) == 1:
        return str(default[0])
    return "end" if default == END else "k" if default is None else str(default)


def signature(word: str, row: Row) -> str:
    """How to write the op."""
    parts = []
    for name, field in row.settings.model_fields.items():
        parts.append(name if field.is_required() else f"{name}={shown(field.default)}")
    return f"{word}({', '.join(parts)})" if parts else word


def test_every_op_is_in_the_table() -> None:
    wanted = [signature(word, row) for word, row in OPERATIONS.items()]
    table = PAGE.partition("## Ops")[2]
    assert sorted(re.findall(r"^\| `(.*?)` \| ", table, re.MULTILINE)) == sorted(wanted)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_models(text: str) -> None:
    assert load_text(text, init="zeros").nodes


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 2
