"""Imports point one way: rooms import `cnnc.ir` alone, and importing cnnc is cheap."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("ir", "passes", "codegen", "frontends", "runtime")
HEAVY = {"numpy", "llvmlite", "pydantic", "lark", "rich", "PIL"}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_itself_and_ir(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    allowed = (f"cnnc.{room}.", "cnnc.ir.")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] == "cnnc" and not f"{name}.".startswith(allowed)
    ]
    assert not wrong


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python holds after running `code`."""
    program = f"{code}\nimport json, sys; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("code", ["import cnnc", "import cnnc; cnnc.CnncError", "import cnnc.cli"])
def test_import_loads_no_heavy_package(code: str) -> None:
    assert not HEAVY & loaded_by(code)


def test_heavy_packages_are_those_that_a_compilation_loads() -> None:
    """Else the test above could pass because a name in its list is wrong."""
    code = "import cnnc.driver, cnnc.frontends.dsl.load; cnnc.driver.resolve_target('native')"
    assert HEAVY - {"rich", "PIL"} <= loaded_by(code)
