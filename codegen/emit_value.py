"""The emitter's middle: values, as SSA names of vectors."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cnnc.codegen.emit_index import IndexEmitter, Register
from cnnc.codegen.emit_text import (
    ALIGN,
    ELEMENTS,
    SUFFIX,
    float_text,
    mask_text,
    memory_type,
    vector_type,
)
from cnnc.ir.loops import (
    Apply,
    Argument,
    Constant,
    FromIndex,
    Index,
    Load,
    Pick,
    Read,
    Reduce,
    Shuffle,
    Splat,
    Value,
)

_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
# The bits of 2 ** (j / 16), less what the low bits of j do to the exponent: see `pow2_16ths`.
_SIXTEENTHS = tuple(
    struct.unpack("i", struct.pack("f", 2 ** (j / 16)))[0] - (j << 19) for j in range(16)
)
_ORDERS = {"less": "olt", "less_equal": "ole", "equal": "oeq"}


class ValueEmitter(IndexEmitter):
    """Writes values; what they read of memory and registers is already there."""

    def value(self, value: Value) -> str:
        match value:
            case Apply():  # the frequent ones first
                return self.apply(value)
            case Read():
                return self.registers[self.register(value.tile, value.at)]
            case Load():
                return self.load(value)
            case Splat():
                return self.splat(self.value(value.scalar), value.lanes)
            case Constant():
                return self.constant(value.number, value.lanes)
            case Shuffle():
                return self.shuffle(value)
            case Pick():
                return self.pick(value)
            case Argument():
                name = f"%{value.name}"
                return name if value.lanes == 1 else self.splat(name, value.lanes)
            case FromIndex():
                name = self.value_line(f"sitofp i64 {self.operand(value.index)} to float")
                return name if value.lanes == 1 else self.splat(name, value.lanes)
            case Reduce():
                return self.reduce(value)
        raise AssertionError(f"unknown value {value}")

    def register(self, tile: str, at: tuple[Index, ...]) -> Register:
        numbers = []
        for index in at:
            number = self.whole(index)
            assert isinstance(number, int), f"{self.program.name}: {tile} is indexed by a variable"
            numbers.append(number)
        return tile, tuple(numbers)

    @staticmethod
    def constant(number: float, lanes: int) -> str:
        text = float_text(number)
        return text if lanes == 1 else "splat (float " + text + ")"

    def splat(self, scalar: str, lanes: int) -> str:
        if scalar.startswith("0x"):
            return f"splat (float {scalar})"
        vector = vector_type(lanes)
        first = self.value_line(f"insertelement {vector} poison, float {scalar}, i64 0")
        mask = f"<{lanes} x i32> zeroinitializer"
        return self.value_line(f"shufflevector {vector} {first}, {vector} poison, {mask}")

    def shuffle(self, shuffle: Shuffle) -> str:
        vector = vector_type(shuffle.lanes)
        a, b = self.value(shuffle.a), self.value(shuffle.b)
        mask = ", ".join(f"i32 {i}" for i in shuffle.picks)
        return self.value_line(
            f"shufflevector {vector} {a}, {vector} {b}, <{shuffle.lanes} x i32> <{mask}>"
        )

    def load(self, load: Load) -> str:
        found = self.loaded(load)
        if load.buffer not in self.elements:
            return found
        element, convert = ELEMENTS[self.elements[load.buffer]]
        numbers, vector = memory_type(element, load.lanes), vector_type(load.lanes)
        return self.value_line(f"{convert} {numbers} {found} to {vector}")

    def loaded(self, load: Load) -> str:
        """What is in memory, in its own type."""
        count, element = load.count or load.lanes, self.element(load.buffer)
        vector, align = memory_type(element, load.lanes), ALIGN[element]
        if load.lanes == 1:
            address = self.address(load.buffer, load.offset)
            return self.value_line(f"load {vector}, ptr {address}, align {align}")
        if load.stride == 1:
            return self.neighbours(load, 0, count)
        if load.stride == 2:
            both = [self.neighbours(load, k * load.lanes, 2 * count - 1) for k in range(2)]
            picks = ", ".join(f"i32 {2 * lane}" for lane in range(load.lanes))
            operands = ", ".join(f"{vector} {one}" for one in both)
            return self.value_line(f"shufflevector {operands}, <{load.lanes} x i32> <{picks}>")
        result = "zeroinitializer"
        for lane in range(count):
            address = self.address(load.buffer, load.offset, lane * load.stride)
            one = self.value_line(f"load {element}, ptr {address}, align {align}")
            result = self.value_line(
                f"insertelement {vector} {result}, {element} {one}, i64 {lane}"
            )
        return result

    def neighbours(self, load: Load, first: int, count: int) -> str:
        """A vector of the elements from the `first` one behind the load's place on, which is zero
        from the element `count` on."""
        element, lanes = self.element(load.buffer), load.lanes
        vector, inside = memory_type(element, lanes), min(count - first, lanes)
        if inside <= 0:
            return "zeroinitializer"
        address = self.address(load.buffer, load.offset, first)
        if inside == lanes:
            return self.value_line(f"load {vector}, ptr {address}, align {ALIGN[element]}")
        mask = (f"<{lanes} x i1>", mask_text(inside, lanes))
        name = f"masked.load.v{lanes}{SUFFIX[element]}.p0"
        pointer, other = ("ptr", address), (vector, "zeroinitializer")
        return self.value_line(self.intrinsic(name, vector, pointer, mask, other))

    def apply(self, apply: Apply) -> str:
        type = vector_type(apply.lanes)
        args = [self.value(a) for a in apply.args]
        if apply.function in ("add", "sub", "mul", "div"):
            return self.value_line(f"f{apply.function} {type} {args[0]}, {args[1]}")
        typed = [(type, a) for a in args]
        suffix = "f32" if apply.lanes == 1 else f"v{apply.lanes}f32"
        match apply.function:
            case "neg":
                return self.value_line(f"fneg {type} {args[0]}")
            case "fma":
                return self.value_line(self.intrinsic(f"fmuladd.{suffix}", type, *typed))
            case "abs" | "sqrt":
                name = "fabs" if apply.function == "abs" else apply.function
                return self.value_line(self.intrinsic(f"{name}.{suffix}", type, *typed))
            case "floor" | "ceil" | "round" | "copysign":
                rounder = "rint" if apply.function == "round" else apply.function
                return self.value_line(self.intrinsic(f"{rounder}.{suffix}", type, *typed))
            case "exponent" | "fraction":
                return self.split(apply.function, args[0], apply.lanes)
            case "max" | "min":
                order = "ogt" if apply.function == "max" else "olt"
                return self.select(apply.lanes, order, *args, *args)
            case "maximum":
                # Two instructions with AVX-512, where llvm.maximum is six: it orders zeros too.
                a, b = args
                return self.select(
                    apply.lanes, "ord", a, a, self.select(apply.lanes, "ogt", a, b, a, b), a
                )
            case "less" | "less_equal" | "equal":
                return self.select(apply.lanes, _ORDERS[apply.function], *args)
            case "pow2":
                return self.pow2(args[0], apply.lanes)
            case "pow2_16ths":
                return self.pow2_16ths(args[0], apply.lanes)
        raise AssertionError(f"unknown function {apply.function}")

    def select(self, lanes: int, order: str, a: str, b: str, then: str, other: str) -> str:
        """`then` in the lanes where a and b compare so, else `other`."""
        type, bits = vector_type(lanes), "i1" if lanes == 1 else f"<{lanes} x i1>"
        condition = self.value_line(f"fcmp {order} {type} {a}, {b}")
        return self.value_line(f"select {bits} {condition}, {type} {then}, {type} {other}")

    def pow2(self, power: str, lanes: int) -> str:
        type = vector_type(lanes)
        bits = "i32" if lanes == 1 else f"<{lanes} x i32>"
        shift = "23" if lanes == 1 else "splat (i32 23)"
        # The low bits of 2 ** 23 + 127 + power are the biased exponent; the shift drops the rest.
        biased = self.value_line(f"fadd {type} {power}, {self.constant(2.0**23 + 127, lanes)}")
        whole = self.value_line(f"bitcast {type} {biased} to {bits}")
        raised = self.value_line(f"shl {bits} {whole}, {shift}")
        return self.value_line(f"bitcast {bits} {raised} to {type}")

    def pow2_16ths(self, power: str, lanes: int) -> str:
        """The low bits choose the fraction, the others are added to its exponent."""
        type, bits = vector_type(lanes), memory_type("i32", lanes)
        shift = "19" if lanes == 1 else "splat (i32 19)"
        whole = self.value_line(f"bitcast {type} {power} to {bits}")
        fraction = self.entries("i32", [str(n) for n in _SIXTEENTHS], whole, lanes)
        raised = self.value_line(f"shl {bits} {whole}, {shift}")
        total = self.value_line(f"add {bits} {fraction}, {raised}")
        return self.value_line(f"bitcast {bits} {total} to {type}")

    def pick(self, pick: Pick) -> str:
        lanes, bits = pick.lanes, memory_type("i32", pick.lanes)
        by = self.value(pick.by)
        whole = self.value_line(f"bitcast {vector_type(lanes)} {by} to {bits}")
        first = str(pick.first) if lanes == 1 else f"splat (i32 {pick.first})"
        low = self.value_line(f"lshr {bits} {whole}, {first}")
        return self.entries("float", [float_text(n) for n in pick.table], low, lanes)

    def entries(self, element: str, table: Sequence[str], whole: str, lanes: int) -> str:
        """Entries of a table of 16 by the low four bits: one instruction with AVX-512."""
        bits, type = memory_type("i32", lanes), memory_type(element, lanes)
        typed = (f"<16 x {element}>", f"<{', '.join(f'{element} {n}' for n in table)}>")
        if self.avx512 and lanes == 16:
            name = f"x86.avx512.permvar.{'si' if element == 'i32' else 'sf'}.512"
            return self.value_line(self.intrinsic(name, type, typed, (bits, whole)))
        result = "poison"
        for lane in range(lanes):
            one = whole
            if lanes > 1:
                one = self.value_line(f"extractelement {bits} {whole}, i64 {lane}")
            low = self.value_line(f"and i32 {one}, 15")
            entry = self.value_line(f"extractelement {' '.join(typed)}, i32 {low}")
            if lanes == 1:
                return entry
            result = self.value_line(
                f"insertelement {type} {result}, {element} {entry}, i64 {lane}"
            )
        return result

    def split(self, function: str, x: str, lanes: int) -> str:
        """Exponent or fraction, from the bits of x over those of sqrt(1/2)."""
        type, bits = vector_type(lanes), memory_type("i32", lanes)

        def whole(number: int) -> str:
            return str(number) if lanes == 1 else f"splat (i32 {number})"

        cast = self.value_line(f"bitcast {type} {x} to {bits}")
        over = self.value_line(f"sub {bits} {cast}, {whole(_SQRT_HALF)}")
        if function == "exponent":
            shifted = self.value_line(f"ashr {bits} {over}, {whole(23)}")
            return self.value_line(f"sitofp {bits} {shifted} to {type}")
        low = self.value_line(f"and {bits} {over}, {whole(0x7FFFFF)}")
        back = self.value_line(f"add {bits} {low}, {whole(_SQRT_HALF)}")
        return self.value_line(f"bitcast {bits} {back} to {type}")

    def reduce(self, reduce: Reduce) -> str:
        """Combines halves until one lane is left: the same order for every vector width."""
        lanes = reduce.vector.lanes
        current = self.value(reduce.vector)
        while lanes > 1:
            half = lanes // 2
            whole, part = vector_type(lanes), vector_type(half)
            if half == 1:
                low = self.value_line(f"extractelement {whole} {current}, i64 0")
                high = self.value_line(f"extractelement {whole} {current}, i64 1")
            else:
                picks = [", ".join(f"i32 {i}" for i in range(s, s + half)) for s in (0, half)]
                low, high = (
                    self.value_line(
                        f"shufflevector {whole} {current}, {whole} poison, <{half} x i32> <{p}>"
                    )
                    for p in picks
                )
            suffix = "f32" if half == 1 else f"v{half}f32"
            if reduce.function in ("add", "mul"):
                current = self.value_line(f"f{reduce.function} {part} {low}, {high}")
            else:
                text = self.intrinsic(f"maximum.{suffix}", part, (part, low), (part, high))
                current = self.value_line(text)
            lanes = half
        return current
