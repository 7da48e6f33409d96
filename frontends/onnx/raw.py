"""Large tensors of a model's file, which stay there until they are read one by one.

A protobuf is parsed as a whole: its tensors would be in memory three times, as the file's bytes, in
the message, and as bytes that the message gives. So the message is made without them.

    parts = split_model(file, size)
    parts.message    # of the model, in which large initializers have no data
    parts.places     # where the data of each initializer lies in the file
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

LARGE = 1 << 16  # bytes of data that are left in the file
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # numbers of fields in onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint


class Place(NamedTuple):
    """Bytes of a file."""

    offset: int
    length: int


class Parts(NamedTuple):
    """A model's message, and where the data lies that was left out of it, by initializer."""

    message: bytes
    places: list[Place | None]


class _Unusual(Exception):
    """What is not written as every writer of models does; protobuf has to judge it."""


def split_model(file: BinaryIO, size: int, least: int = LARGE) -> Parts:
    """The parts of a model of `size` bytes; data of less than `least` bytes stays in the message.

    What is no protobuf, or has its graph in several parts, stays as it is.
    """
    try:
        return _Splitter(file, least).model(size)
    except _Unusual:
        file.seek(0)
        return Parts(file.read(), [])


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    head: int  # of which kind, and for bytes how many there are, before this place
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class _Splitter:
    file: BinaryIO
    least: int

    def model(self, size: int) -> Parts:
        fields = list(self.fields(0, size))
        if sum(field.number == _GRAPH for field in fields) != 1:
            raise _Unusual
        places: list[Place | None] = []
        return Parts(b"".join(self._model_field(field, places) for field in fields), places)

    def _model_field(self, field: _Field, places: list[Place | None]) -> bytes:
        if (field.number, field.kind) != (_GRAPH, _BYTES):
            return self.bytes(field.start, field.end)
        parts = []
        for inner in self.fields(field.value, field.end):
            if (inner.number, inner.kind) == (_INITIALIZER, _BYTES):
                text, place = self.tensor(inner)
                parts.append(text)
                places.append(place)
            else:
                parts.append(self.bytes(inner.start, inner.end))
        return self.framed(field, b"".join(parts))

    def tensor(self, field: _Field) -> tuple[bytes, Place | None]:
        """A tensor's field, without its data if that is large, and where the data lies."""
        if field.end - field.value < self.least:
            return self.bytes(field.start, field.end), None
        fields = list(self.fields(field.value, field.end))
        raw = [inner for inner in fields if inner.number == _RAW_DATA]
        if len(raw) != 1 or raw[0].kind != _BYTES or raw[0].end - raw[0].value < self.least:
            return self.bytes(field.start, field.end), None
        kept = [self.bytes(inner.start, inner.end) for inner in fields if inner != raw[0]]
        return self.framed(field, b"".join(kept)), Place(raw[0].value, raw[0].end - raw[0].value)

    def framed(self, field: _Field, content: bytes) -> bytes:
        """The field with another content."""
        return self.bytes(field.start, field.head) + _varint(len(content)) + content

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of a message that lies there in the file."""
        at = start
        while at < end:
            self.file.seek(at)
            text = self.file.read(min(2 * _LONGEST, end - at))
            tag, used = _number(text, 0)
            number, kind = tag >> 3, tag & 7
            head = value = at + used
            if kind == _BYTES:
                length, used = _number(text, used)
                value = at + used
            elif kind == _VARINT:
                length = _number(text, used)[1] - used
            elif kind in (_FIXED32, _FIXED64):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise _Unusual
            if value + length > end:
                raise _Unusual
            yield _Field(number, kind, at, head, value, value + length)
            at = value + length

    def bytes(self, start: int, end: int) -> bytes:
        self.file.seek(start)
        return self.file.read(end - start)


def _number(text: bytes, at: int) -> tuple[int, int]:
    """(a varint that starts there, where it ends)."""
    found = 0
    for used, byte in enumerate(text[at : at + _LONGEST]):
        found |= (byte & 127) << 7 * used
        if byte < 128:
            return found, at + used + 1
    raise _Unusual


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
