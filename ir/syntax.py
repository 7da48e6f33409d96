"""Reading text with the grammar in `graph.lark`: trees with places, and errors that show them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lark import Lark, Token, Tree, UnexpectedInput
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from cnnc.ir.location import Diagnostic, Location, ParseError

Syntax = Tree[Token] | Token

# What a reader calls the terminals; literals stand for themselves.
_TERMINALS = {
    "SYMBOL": "a name such as @net",
    "VALUE": "a value such as %x",
    "TYPE": "a type such as f32[N,3,8,8]",
    "PLACE": "a place such as @arena+0",
    "WORD": "a word",
    "STRING": "a string",
    "NUMBER": "a number",
    "INT": "a whole number",
    "$END": "the end",
}


@cache
def _lark(start: str) -> Lark:
    """The parser for one of the grammar's rules; of the others only what it needs is prepared."""
    grammar = Path(__file__).with_name("graph.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        start=start,
        parser="lalr",
        propagate_positions=True,
        maybe_placeholders=False,
    )


@dataclass(frozen=True, slots=True)
class Source:
    """A text to read and the name to call it by in errors."""

    text: str
    filename: str

    def tree(self, start: str) -> Tree[Token]:
        """The syntax tree from the grammar's rule `start`. Raises `ParseError`, located."""
        try:
            return _lark(start).parse(self.text)
        except UnexpectedInput as error:
            raise self._unexpected(error, start) from None

    def at(self, where: Syntax) -> Location:
        """The place of a token or tree; of its first line, if it spans several."""
        place = where if isinstance(where, Token) else where.meta
        if isinstance(where, Tree) and where.meta.empty:
            return Location(self.filename)
        line, column = place.line or 1, place.column or 1
        one_line = place.end_line == line
        return Location(self.filename, line, column, (place.end_column or 0) if one_line else 0)

    def fail(
        self, message: str, where: Syntax, help: str = "", notes: Iterable[str] = ()
    ) -> ParseError:
        """A located error: `raise source.fail("...", tree)`."""
        problem = Diagnostic(message, self.at(where), help=help, notes=tuple(notes))
        return ParseError(problem, {self.filename: self.text})

    def string(self, token: Token) -> str:
        """The value of a quoted string, with JSON's escapes."""
        try:
            return str(json.loads(token))
        except json.JSONDecodeError as error:
            raise self.fail(f"the string cannot be read: {error.msg}", token) from None

    def name(self, token: Token) -> str:
        """The name in `%x`, `%"x y"`, `@net` or `@"my net"`."""
        text = token[1:]
        return self.string(token.update(value=text)) if text.startswith('"') else str(text)

    def _unexpected(self, error: UnexpectedInput, start: str) -> ParseError:
        if isinstance(error, UnexpectedToken):
            token, wanted = error.token, error.accepts
            found = "the end" if token.type == "$END" else f"`{token}`"
        else:
            assert isinstance(error, UnexpectedCharacters)
            token, wanted = Token("?", error.char), error.allowed
            found = f"`{error.char}`"
            token.line, token.column = error.line, error.column
            token.end_line, token.end_column = error.line, error.column + 1
        if token.type == "$END":
            rows = self.text.rstrip().splitlines() or [""]
            token.line = token.end_line = len(rows)
            token.column = token.end_column = len(rows[-1]) + 1
        expected = " or ".join(sorted(_terminal(name, start) for name in wanted or ()))
        return self.fail(f"expected {expected}, found {found}", token)


def _terminal(name: str, start: str) -> str:
    literals = {t.name: t.pattern.value for t in _lark(start).terminals}
    return _TERMINALS.get(name) or f"`{literals.get(name, name)}`"
