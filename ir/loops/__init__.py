"""The loop IR: what a kernel computes and how, on one page.

A `Program` is a loop nest over buffers of float32, or of truth values: bytes 0 and 1 in memory,
0.0 and 1.0 as values, where all but zero is stored as 1. It knows no op. Three kinds of things are
in it:

* `Index`: whole-number arithmetic on loop variables, kept as a linear form so that addresses stay
  simple and constant parts can be folded;
* `Value`: a float32 vector of a fixed number of lanes (1 is a scalar): loads, register reads and
  arithmetic;
* `Statement`: loops (serial, parallel, unrolled), register tiles, assignments, stores, conditions.

What runs, and which of two buffers is read, may depend on what is computed through a `Flag` only.

Register tiles are arrays of vector registers; after unrolling, every index into one is a number.
Loads and stores may touch fewer than all lanes (`count`): the others read as zero and are not
written. A parallel loop's iterations are independent and shared out among the threads.

Kernels are written with `ProgramBuilder`, which reads like the loop nest itself:

    p = ProgramBuilder("scale")
    x, y = p.buffer("x"), p.buffer("y")
    with p.parallel("i", 0, 64) as i:
        p.store(y, i * 16, p.load(x, i * 16, 16) * 2.0)
    program = p.finish()
"""

from cnnc.ir.loops.build import ProgramBuilder, TileRef
from cnnc.ir.loops.index import Atom, Call, Index, Lookup, Var
from cnnc.ir.loops.statements import (
    Assign,
    Choose,
    Flag,
    Kind,
    Let,
    Loop,
    Prefetch,
    Program,
    Statement,
    Store,
    Table,
    Tile,
    When,
)
from cnnc.ir.loops.text import print_program
from cnnc.ir.loops.values import (
    FUNCTIONS,
    Apply,
    Argument,
    Constant,
    FromIndex,
    Load,
    Pick,
    Read,
    Reduce,
    Shuffle,
    Splat,
    Value,
    apply,
    as_value,
    fma,
    shuffle,
)

__all__ = [
    "Apply",
    "Argument",
    "Assign",
    "Atom",
    "Call",
    "Choose",
    "Constant",
    "FUNCTIONS",
    "Flag",
    "FromIndex",
    "Index",
    "Kind",
    "Let",
    "Load",
    "Lookup",
    "Loop",
    "Prefetch",
    "Program",
    "ProgramBuilder",
    "Read",
    "Reduce",
    "Pick",
    "Shuffle",
    "Splat",
    "Statement",
    "Store",
    "Table",
    "Tile",
    "TileRef",
    "Value",
    "Var",
    "When",
    "apply",
    "as_value",
    "fma",
    "print_program",
    "shuffle",
]
