"""Programs as indented text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cnnc.ir.loops.statements import (
    Assign,
    Choose,
    Flag,
    Let,
    Loop,
    Prefetch,
    Program,
    Statement,
    Store,
    Tile,
    When,
)
from cnnc.ir.loops.values import span_text


def print_program(program: Program) -> str:
    """The program as indented text."""
    shared = program.buffers[: len(program.buffers) - len(program.scratch)]
    own = zip(program.buffers[len(shared) :], program.scratch, strict=True)
    elements = dict(program.elements)
    shown = (f"{elements[name]} {name}" if name in elements else name for name in shared)
    parameters = [*shown, *(f"{_word(name, program)} {name}[{length}]" for name, length in own)]
    parameters += [f"whole {name}" for name in program.wholes]
    parameters += [f"float {name}" for name in program.floats]
    lines = [f"kernel {program.name}({', '.join(parameters)})"]
    for table in program.tables:
        lines.append(f"  table {table.name} = [{', '.join(map(str, table.numbers))}]")
    lines += _print_body(program.body, 1)
    return "\n".join(lines) + "\n"


def _word(name: str, program: Program) -> str:
    return "kept" if name in program.kept else "scratch"


def _print_body(body: Sequence[Statement], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for s in body:
        match s:
            case Loop():
                turns = f", {s.abreast} abreast" if s.abreast > 1 else ""
                yield f"{pad}{s.kind.value} {s.variable} in {s.start}..{s.stop}{turns}:"
                yield from _print_body(s.body, depth + 1)
            case When():
                yield f"{pad}when {s.low} <= {s.index} < {s.high}:"
                yield from _print_body(s.body, depth + 1)
            case Let():
                yield f"{pad}let {s.variable} = {s.index}"
            case Flag():
                yield f"{pad}flag {s.variable} = {s.scalar} > 0"
            case Choose():
                yield f"{pad}choose {s.buffer} = {s.other} if {s.index} else {s.one}"
            case Tile():
                dims = "".join(f"[{d}]" for d in s.shape)
                yield f"{pad}tile {s.name}{dims}: f32x{s.lanes}"
            case Assign():
                yield f"{pad}{s.tile}{''.join(f'[{i}]' for i in s.at)} = {s.value}"
            case Store():
                span = span_text(s.offset, s.value.lanes, s.stride, s.count)
                yield f"{pad}{s.buffer}[{span}] = {s.value}"
            case Prefetch():
                marks = " soon" * s.soon + " write" * s.write
                yield f"{pad}prefetch {s.buffer}[{s.offset}]{marks}"
