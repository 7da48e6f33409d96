"""A linker: LLVM's ELF objects -> one image that runs wherever it lies.

    image = link_objects([compile_object(kernels, target), compile_object(schedule, target)])

Code comes first, then constants, then a stub for each function that none of the objects defines,
and last the table of their addresses, which is filled in on loading (`cnnc.codegen.image`). Symbols
that are global and not hidden are exported. Refused: memory that is written to, absolute addresses,
and kinds of relocation that position-independent code of the small model has no use for.

Source: System V ABI, AMD64 and AArch64 supplements.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cnnc.codegen.image import AARCH64, WORD, X86_64, Image
from cnnc.ir.location import CnncError

_MAGIC = b"\x7fELF\x02\x01\x01"  # 64 bits, little endian, version 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_RELOCATABLE = 1  # file type
_SYMBOLS, _ADDENDS, _EMPTY = 2, 4, 8  # section types
_WRITE, _ALLOC, _EXECUTE = 1, 2, 4  # section flags
_GLOBAL, _HIDDEN = 1, 2  # binding and visibility of symbols
_UNDEFINED, _RESERVED = 0, 0xFF00  # section numbers of symbols


class _Section(NamedTuple):
    """A section header, in the file's order."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_bytes: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int
    exported: bool
    shared: bool  # whether other objects may refer to it


class _Object:
    """An ELF object file, read."""

    def __init__(self, data: bytes) -> None:
        try:
            head = _HEADER.unpack_from(data)
            if not head[0].startswith(_MAGIC) or head[1] != _RELOCATABLE:
                raise ValueError
            self.data, self.machine = data, head[2]
            start, size, count, names = head[6], head[11], head[12], head[13]
            places = range(start, start + size * count, size)
            self.sections = [_Section(*_SECTION.unpack_from(data, at)) for at in places]
            self._names = self.sections[names]
            self.symbols = list(self._read_symbols())
        except (struct.error, ValueError, IndexError):
            raise CnncError("the object code is damaged, or no ELF object") from None

    def name(self, section: int) -> str:
        """The name of a section."""
        return self._text(self._names, self.sections[section].name)

    def content(self, section: int) -> bytes:
        """What a section holds."""
        at = self.sections[section]
        return bytes(at.size) if at.type == _EMPTY else self.data[at.offset : at.offset + at.size]

    def loaded(self) -> Iterator[int]:
        """The sections that running needs; nobody unwinds the stack through the code."""
        for i, section in enumerate(self.sections):
            if section.flags & _ALLOC and self.name(i) != ".eh_frame":
                yield i

    def relocations(self) -> Iterator[tuple[int, int, int, _Symbol, int]]:
        """(section, offset in it, kind, symbol, addend) of every place that is to be filled in."""
        for i, section in enumerate(self.sections):
            if section.type == _ADDENDS:
                for offset, info, addend in _RELOCATION.iter_unpack(self.content(i)):
                    kind, symbol = info & 0xFFFFFFFF, self.symbols[info >> 32]
                    yield section.info, offset, kind, symbol, addend

    def _read_symbols(self) -> Iterator[_Symbol]:
        for i, section in enumerate(self.sections):
            if section.type == _SYMBOLS:
                strings = self.sections[section.link]
                for name, info, other, at, value, _ in _SYMBOL.iter_unpack(self.content(i)):
                    shared = info >> 4 >= _GLOBAL
                    exported = shared and at != _UNDEFINED and other & 3 != _HIDDEN
                    yield _Symbol(self._text(strings, name), at, value, exported, shared)

    def _text(self, strings: _Section, at: int) -> str:
        start = strings.offset + at
        return self.data[start : self.data.index(b"\0", start)].decode()


@dataclass
class _Linker:
    """The image as it grows; places are offsets in it."""

    machine: int
    content: bytearray = field(default_factory=bytearray)
    sections: dict[tuple[int, int], int] = field(default_factory=dict)  # (object, section) -> place
    shared: dict[str, int] = field(default_factory=dict)  # symbol -> place
    exports: dict[str, int] = field(default_factory=dict)
    stubs: dict[str, int] = field(default_factory=dict)  # import -> place of its stub
    words: dict[str, int] = field(default_factory=dict)  # import -> place of its address

    def align(self, alignment: int) -> None:
        self.content += bytes(-len(self.content) % max(alignment, 1))

    def lay_out(self, objects: Sequence[_Object]) -> None:
        """Code, then constants, each section on its own boundary."""
        found = [(o, i, x.sections[i]) for o, x in enumerate(objects) for i in x.loaded()]
        for o, i, section in sorted(found, key=lambda item: not item[2].flags & _EXECUTE):
            if section.flags & _WRITE and section.size:
                raise CnncError(
                    f"cannot link section `{objects[o].name(i)}`: an image has no memory to write"
                )
            self.align(section.alignment)
            self.sections[o, i] = len(self.content)
            self.content += objects[o].content(i)

    def define(self, number: int, object: _Object) -> None:
        """Notes what the object gives to the others."""
        for symbol in object.symbols:
            if not symbol.shared or symbol.section == _UNDEFINED:
                continue
            if symbol.name in self.shared:
                raise CnncError(f"cannot link: two objects define `{symbol.name}`")
            self.shared[symbol.name] = self.place(number, symbol)
            if symbol.exported:
                self.exports[symbol.name] = self.shared[symbol.name]

    def place(self, number: int, symbol: _Symbol) -> int:
        """Where a symbol of the object is that one of the objects defines."""
        if symbol.section == _UNDEFINED:
            return self.shared[symbol.name]
        if symbol.section >= _RESERVED or (number, symbol.section) not in self.sections:
            raise CnncError(f"cannot link `{symbol.name}`: it lies outside of code and constants")
        return self.sections[number, symbol.section] + symbol.value

    def add_imports(self, objects: Sequence[_Object]) -> None:
        """A stub and a word of the table for each symbol that no object defines."""
        wanted = {s.name for o in objects for *_, s, _ in o.relocations() if _is_open(s)}
        names = sorted(wanted - self.shared.keys())
        self.align(16)
        write, stub_bytes = _STUBS[self.machine]
        table = -(-(len(self.content) + len(names) * stub_bytes) // WORD) * WORD
        for i, name in enumerate(names):
            self.stubs[name], self.words[name] = len(self.content), table + WORD * i
            self.content += bytes(stub_bytes)
            write(self.content, self.stubs[name], self.words[name])
        self.align(WORD)
        self.content += bytes(WORD * len(names))

    def fill_in(self, number: int, object: _Object) -> None:
        """Writes what depends on where things lie."""
        kinds = _KINDS[self.machine]
        for section, offset, kind, symbol, addend in object.relocations():
            if (number, section) not in self.sections:
                continue
            how = kinds.get(kind)
            if how is None:
                raise CnncError(f"cannot link `{symbol.name}`: relocation {kind} is not supported")
            at = self.sections[number, section] + offset
            if _is_open(symbol) and symbol.name in self.words:
                places = self.words if how.by_table else self.stubs
                target = places[symbol.name]
            elif how.by_table:
                raise CnncError(f"cannot link `{symbol.name}`: it is defined here but not hidden")
            else:
                target = self.place(number, symbol)
            try:
                how.write(self.content, at, target + addend)
            except (struct.error, OverflowError):
                raise CnncError(f"cannot link `{symbol.name}`: it is too far away") from None


def _is_open(symbol: _Symbol) -> bool:
    return symbol.section == _UNDEFINED and bool(symbol.name)


def link_objects(objects: Sequence[bytes]) -> Image:
    """The image of object files that belong together, in ELF and for one architecture.

    Raises:
        CnncError: an object is damaged or not for such an architecture, symbols clash, or there is
            something in it that an image cannot hold.
    """
    read = [_Object(data) for data in objects]
    machines = {object.machine for object in read}
    if len(machines) != 1 or not machines <= _KINDS.keys():
        raise CnncError("cannot link the object code: it is not for one architecture that is known")
    linker = _Linker(machines.pop())
    linker.lay_out(read)
    for number, object in enumerate(read):
        linker.define(number, object)
    linker.add_imports(read)
    for number, object in enumerate(read):
        linker.fill_in(number, object)
    imports = tuple(linker.words)
    table = len(linker.content) - WORD * len(imports)
    exports = dict(sorted(linker.exports.items()))
    return Image(linker.machine, bytes(linker.content), table, imports, exports)


# -- architectures ---------------------------------------------------------------------------------

_Write = Callable[[bytearray, int, int], None]
"""`write(content, at, target)`: makes what stands at `at` refer to `target`."""


class _Kind(NamedTuple):
    """A kind of relocation; `by_table` if it refers to the word that holds the address."""

    write: _Write
    by_table: bool = False


def _relative32(content: bytearray, at: int, target: int) -> None:
    struct.pack_into("<i", content, at, target - at)


def _relative64(content: bytearray, at: int, target: int) -> None:
    struct.pack_into("<q", content, at, target - at)


def _field(shift: int, bits: int, scale: int) -> _Write:
    """The distance in an instruction, in units of `scale` bytes."""

    def write(content: bytearray, at: int, target: int) -> None:
        distance, rest = divmod(target - at, scale)
        if rest or not -(1 << bits - 1) <= distance < 1 << bits - 1:
            raise OverflowError
        _put(content, at, shift, bits, distance)

    return write


def _low12(scale: int) -> _Write:
    """The place in its page of 4096 bytes, in units of `scale` bytes."""

    def write(content: bytearray, at: int, target: int) -> None:
        if target % scale:
            raise OverflowError
        _put(content, at, 10, 12, target % 4096 // scale)

    return write


def _adr(content: bytearray, at: int, distance: int) -> None:
    if not -(1 << 20) <= distance < 1 << 20:
        raise OverflowError
    _put(content, at, 29, 2, distance & 3)
    _put(content, at, 5, 19, distance >> 2)


def _near(content: bytearray, at: int, target: int) -> None:
    _adr(content, at, target - at)


def _page(content: bytearray, at: int, target: int) -> None:
    _adr(content, at, (target >> 12) - (at >> 12))


def _put(content: bytearray, at: int, shift: int, bits: int, value: int) -> None:
    mask = (1 << bits) - 1
    (word,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, word & ~(mask << shift) | (value & mask) << shift)


_KINDS: Mapping[int, Mapping[int, _Kind]] = {
    X86_64: {
        2: _Kind(_relative32),  # PC32
        4: _Kind(_relative32),  # PLT32
        9: _Kind(_relative32, by_table=True),  # GOTPCREL
        24: _Kind(_relative64),  # PC64
        41: _Kind(_relative32, by_table=True),  # GOTPCRELX
        42: _Kind(_relative32, by_table=True),  # REX_GOTPCRELX
    },
    AARCH64: {
        260: _Kind(_relative64),  # PREL64
        261: _Kind(_relative32),  # PREL32
        273: _Kind(_field(5, 19, 4)),  # LD_PREL_LO19
        274: _Kind(_near),  # ADR_PREL_LO21
        275: _Kind(_page),  # ADR_PREL_PG_HI21
        277: _Kind(_low12(1)),  # ADD_ABS_LO12_NC
        278: _Kind(_low12(1)),  # LDST8_ABS_LO12_NC
        279: _Kind(_field(5, 14, 4)),  # TSTBR14
        280: _Kind(_field(5, 19, 4)),  # CONDBR19
        282: _Kind(_field(0, 26, 4)),  # JUMP26
        283: _Kind(_field(0, 26, 4)),  # CALL26
        284: _Kind(_low12(2)),  # LDST16_ABS_LO12_NC
        285: _Kind(_low12(4)),  # LDST32_ABS_LO12_NC
        286: _Kind(_low12(8)),  # LDST64_ABS_LO12_NC
        299: _Kind(_low12(16)),  # LDST128_ABS_LO12_NC
        311: _Kind(_page, by_table=True),  # ADR_GOT_PAGE
        312: _Kind(_low12(8), by_table=True),  # LD64_GOT_LO12_NC
    },
}


def _jump_x86_64(content: bytearray, at: int, word: int) -> None:
    struct.pack_into("<2si2s", content, at, b"\xff\x25", word - at - 6, b"\xcc\xcc")


def _jump_aarch64(content: bytearray, at: int, word: int) -> None:
    # adrp x16, word; ldr x16, [x16, word]; br x16; and nothing
    struct.pack_into("<4I", content, at, 0x90000010, 0xF9400210, 0xD61F0200, 0)
    _page(content, at, word)
    _low12(8)(content, at + 4, word)


# Architecture -> what writes a jump to the address in a word, and how many bytes that takes.
_STUBS: Mapping[int, tuple[_Write, int]] = {
    X86_64: (_jump_x86_64, 8),
    AARCH64: (_jump_aarch64, 16),
}
