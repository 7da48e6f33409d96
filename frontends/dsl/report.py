"""Collecting diagnostics: every code that the language knows, and the list of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from cnnc.frontends.dsl.tree import Span
from cnnc.ir.location import Diagnostic, ParseError

CODES: dict[str, str] = {
    # Reading
    "E0101": "a token that the grammar does not allow here",
    "E0102": "a character or string that is no token",
    "E0103": "one side of `->` that cannot be a part of a pipeline",
    "E0104": "a bracket that is never closed",
    "E0105": "a bracket that was never opened",
    "E0106": "a source that is no text, or too long",
    "E0107": "a version of the language that is not known",
    # Shapes
    "E0201": "an op that does not fit its operands",
    "E0202": "operands of arithmetic whose shapes differ",
    "E0203": "a symbolic size where a number is needed",
    "E0204": "an input that is declared wrongly",
    "E0205": "a size in the declared range for which the model does not fit",
    "E0207": "operands of `concat` whose shapes differ",
    # Names and arguments
    "E0301": "a name that is not known",
    "E0302": "an argument that the op, block or model does not have",
    "E0303": "an argument that is missing",
    "E0304": "too many arguments, or one given twice",
    "E0305": "an argument whose value is not possible",
    "E0306": "a part of the language that is not supported yet",
    "E0307": "a name that is defined twice",
    "E0308": "a number of tensors that the op or block does not take",
    "E0309": "a statement that cannot stand here, or one that is missing",
    "E0310": "a file that does not hold the one model that was asked for",
    "E0311": "a weight path that is malformed or taken",
    # Values at compile time
    "E0401": "values of a kind that the operation does not take",
    "E0402": "a division by zero",
    "E0403": "an item or member that does not exist",
    "E0404": "a pattern that does not match",
    "E0405": "a requirement that is not met",
    "E0406": "a limit of expansion",
    "E0407": "a nesting that is too deep",
    "E0408": "a value that is too large",
    # Weights and files
    "E0501": "weights that do not match the model",
    "E0502": "a file that does not exist",
    "E0503": "a path that leaves the folder of the model",
    "E0504": "a file that cannot be read",
    "E0505": "an import that cannot be made",
    "E0506": "a second `weights` or `init` statement",
    "E0507": "a map of weight names that cannot be read",
}

MAX_DIAGNOSTICS = 40


class Stop(Exception):
    """What is wrong has been reported: give up this statement and go on with the next."""


class Abort(Exception):
    """Going on makes no sense: give up the whole file and raise what was reported."""


class Reporter:
    """The diagnostics of one run and the texts they point into."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.diagnostics: list[Diagnostic] = []
        self._seen: set[tuple[str, Span]] = set()

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        label: str = "",
        help: str = "",
        notes: Sequence[str] = (),
    ) -> Stop:
        """Reports a problem, once for each code and place; the caller raises what this returns.

        A place in a block is met again in each expansion of the block, hence "once".
        """
        assert code in CODES
        if (code, span) not in self._seen:
            self._seen.add((code, span))
            self.diagnostics.append(
                Diagnostic(message, span.location(), code, label, tuple(notes), help)
            )
        if len(self.diagnostics) >= MAX_DIAGNOSTICS:
            raise Abort
        return Stop()

    def abort(self, code: str, message: str, span: Span, *, help: str = "") -> NoReturn:
        """Reports a problem that ends the run."""
        self.error(code, message, span, help=help)
        raise Abort

    def check(self) -> None:
        """Raises `ParseError` with everything reported so far, if there is anything."""
        if self.diagnostics:
            raise ParseError(self.diagnostics, self.sources)
