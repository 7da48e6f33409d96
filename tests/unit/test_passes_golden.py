"""Golden files of the passes: `// RUN: ...`, a graph, `// EXPECT`, the graph after.

The first line has `--passes`, and a `--target` for passes that ask which kernels are faster; it is
given units to spare for additions.
Constants that a text only names are random. `pytest --update-golden` rewrites what is expected.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from graph_harness import TARGET, assert_same_answers, read

from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.parser import parse_graph
from cnnc.ir.printer import print_graph
from cnnc.passes import PASSES, PIPELINES, Context, Pipeline

FILES = sorted((Path(__file__).parents[1] / "golden" / "passes").glob("*.cnnc"))
RUN, EXPECT = "// RUN: ", "// EXPECT\n"
LAYING_OUT = {"choose-kernels", "group-images", "plan-memory"}  # change no operation
OPTIONS = ArgumentParser()
OPTIONS.add_argument("--passes", required=True)
OPTIONS.add_argument("--target")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[str, str], None]) -> None:
    text = path.read_text(encoding="utf-8").partition(EXPECT)[0]
    first = text.splitlines()[0]
    assert first.startswith(RUN)
    options = OPTIONS.parse_args(first.removeprefix(RUN).split())
    pipeline = Pipeline.parse(options.passes, PASSES, PIPELINES)
    context = Context(target=TARGET)
    if options.target:
        target = named_target(options.target)
        adding = replace(target, spare_adds_per_cycle=target.fma_per_cycle)
        context = Context(target=adding, kernels=KERNELS)
    graph = read(text)
    after, _ = pipeline.run(graph, context, check_changes=True)
    golden(f"passes/{path.name}", text + EXPECT + print_graph(after))
    assert_same_answers(graph, after)
    assert parse_graph(print_graph(after), after.constants) == after


def test_every_pass_that_changes_operations_has_a_golden_file() -> None:
    names = {step.name for step in Pipeline.parse("default", PASSES, PIPELINES).passes}
    assert {name.replace("-", "_") for name in names - LAYING_OUT} <= {path.stem for path in FILES}
