"""Golden files of the passes: `// RUN: --passes ...`, a graph, `// EXPECT`, the graph after.

Constants that a text only names are random. `pytest --update-golden` rewrites what is expected.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from graph_harness import TARGET, assert_same_answers, read

from cnnc.ir.parser import parse_graph
from cnnc.ir.printer import print_graph
from cnnc.passes import PASSES, PIPELINES, Context, Pipeline

FILES = sorted((Path(__file__).parents[1] / "golden" / "passes").glob("*.cnnc"))
RUN, EXPECT = "// RUN: --passes ", "// EXPECT\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[str, str], None]) -> None:
    text = path.read_text(encoding="utf-8").partition(EXPECT)[0]
    first = text.splitlines()[0]
    assert first.startswith(RUN)
    pipeline = Pipeline.parse(first.removeprefix(RUN), PASSES, PIPELINES)
    graph = read(text)
    after, _ = pipeline.run(graph, Context(target=TARGET), check_changes=True)
    golden(f"passes/{path.name}", text + EXPECT + print_graph(after))
    assert_same_answers(graph, after)
    assert parse_graph(print_graph(after), after.constants) == after


def test_every_portable_pass_has_a_golden_file() -> None:
    portable = Pipeline.parse(PIPELINES["portable"], PASSES).passes
    assert {step.name.replace("-", "_") for step in portable} <= {path.stem for path in FILES}
