"""Linked code: an image as a value, as bytes, and loaded into this process. Needs no LLVM.

    code = load_image(image, {"cnnc_take": 0x7f...})
    code.address("run")

An image is one piece of machine code and constants that runs wherever it lies. Only the table at
its end depends on the process: the addresses of the functions that the code calls. They are filled
in when the image is loaded, before its memory becomes executable; memory is never writable and
executable at the same time.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cnnc.ir.location import CnncError, Diagnostic

X86_64, AARCH64 = 62, 183  # ELF's numbers of the architectures
_HERE: Mapping[str, int] = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}

WORD = 8  # bytes of an address
_LENGTH = struct.Struct("<Q")  # of the description in front of the content
_READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC


@dataclass(frozen=True, slots=True)
class Image:
    """Linked code.

    `content` is loaded at the start of a page. It holds from `table` on one word for the address of
    each of the `imports`. `exports` says where what others may call starts. `machine` is ELF's
    number of the architecture.
    """

    machine: int
    content: bytes
    table: int
    imports: tuple[str, ...]
    exports: Mapping[str, int]

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        words = {
            "machine": self.machine,
            "table": self.table,
            "imports": self.imports,
            "exports": dict(self.exports),
        }
        text = json.dumps(words, sort_keys=True).encode()
        return _LENGTH.pack(len(text)) + text + self.content

    @staticmethod
    def from_bytes(data: bytes) -> Image:
        """The way back. Raises `CnncError` if these are not the bytes of an image."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            start = _LENGTH.size + length
            words = json.loads(data[_LENGTH.size : start])
            image = Image(
                words["machine"],
                data[start:],
                words["table"],
                tuple(words["imports"]),
                words["exports"],
            )
            within = all(0 <= at < image.table for at in image.exports.values())
            whole = image.table + WORD * len(image.imports) == len(image.content)
            if image.table % WORD or not within or not whole:
                raise ValueError
        except (struct.error, ValueError, LookupError, TypeError, AttributeError):
            raise CnncError("the object code is damaged") from None
        return image


class Code:
    """Code in this process; addresses stay valid as long as the value lives."""

    def __init__(self, memory: mmap.mmap, start: int, exports: Mapping[str, int]) -> None:
        self._memory = memory  # is unmapped with this value
        self._start, self._exports = start, exports

    def address(self, symbol: str) -> int:
        """The address of a symbol that the image exports. Raises `CnncError` if it does not."""
        if symbol not in self._exports:
            raise CnncError(f"cannot load `{symbol}`: the object code does not define it")
        return self._start + self._exports[symbol]


def load_image(image: Image, symbols: Mapping[str, int] | None = None) -> Code:
    """Loads an image into this process.

    Args:
        image: code for this processor and system.
        symbols: addresses of functions that the code calls, beyond those of the C library.

    Raises:
        CnncError: the image is for another architecture, it calls a function that is not in this
            process, or the system refuses executable memory.
    """
    if image.machine != _HERE.get(os.uname().machine.lower()):
        raise CnncError("the object code was compiled for another architecture")
    known, library = symbols or {}, ctypes.CDLL(None, use_errno=True)
    table = [known.get(name) or _address(library, name) for name in image.imports]
    memory = mmap.mmap(-1, max(len(image.content), 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(image.content)] = image.content
    struct.pack_into(f"<{len(table)}Q", memory, image.table, *table)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    # Linux makes a page's instructions visible to all cores when the page becomes executable.
    if library.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), _READ_EXECUTE):
        reason = os.strerror(ctypes.get_errno())
        raise CnncError(
            Diagnostic(
                f"the system refuses executable memory: {reason}",
                help="allow it for this program (MemoryDenyWriteExecute of systemd, execmem of "
                "SELinux)",
            )
        )
    if hasattr(library, "sys_icache_invalidate"):  # macOS leaves that to the program
        library.sys_icache_invalidate(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)))
    return Code(memory, start, image.exports)


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise CnncError(f"cannot load the object code: it calls `{name}`, not found here") from None
