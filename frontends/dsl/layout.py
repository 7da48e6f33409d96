"""From tokens as written to tokens as the grammar wants them.

Drops the line ends that end no statement, and repairs brackets: one that is not closed is reported
where it opens and closed where the statement ends, so the parser sees balanced text and does not
report the same mistake again somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lark import Token

from cnnc.frontends.dsl.report import Reporter
from cnnc.frontends.dsl.tree import Span

MAX_BRACKETS = 60

CLOSER = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
TEXT = {"LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "LBRACE": "{", "RBRACE": "}"}
# A line that ends in one of these goes on in the next.
CONTINUES = frozenset(
    "ARROW RANGE OR AND NOT EQ NE LE GE LT GT PLUS MINUS STAR FLOORDIV SLASH PERCENT "
    "COMMA EQUAL SEMICOLON COLON LPAR LSQB THEN ELSE".split()
)
# A line that starts with one of these goes on from the one before.
LEADS = frozenset({"ARROW", "ELSE", "THEN"})
DECLARES = frozenset({"BLOCK", "MODEL", "CONST", "IMPORT"})
STATES = DECLARES | frozenset("INPUT OUTPUT SHARE RETURN FOR WEIGHTS INIT REQUIRE AT".split())


def span_of(token: Token, file: str) -> Span:
    """Where a token stands."""
    line, column = token.line or 1, token.column or 1
    return Span(file, line, column, token.end_line or line, token.end_column or column + 1)


class Layout:
    """One walk over the tokens of a file; `tokens` is the result."""

    def __init__(self, source: Iterable[Token], file: str, reporter: Reporter) -> None:
        self.file = file
        self.reporter = reporter
        self.tokens: list[Token] = []
        self._open: list[Token] = []
        given = [token for token in map(self._mend, source) if token.type != "BAD"]
        fresh_line = False
        for index, token in enumerate(given):
            if token.type == "_NL":
                fresh_line = True
                continue
            after = given[index + 1].type if index + 1 < len(given) else ""
            if fresh_line:
                self._start_line(token, after)
            fresh_line = False
            self._take(token)
        self._close_until(0)
        self._end_statement()

    def _mend(self, token: Token) -> Token:
        """Reports a token that is none; an unclosed string is taken as closed."""
        span = span_of(token, self.file)
        if token.type == "UNCLOSED":
            self.reporter.error("E0102", "this string is never closed", span, help='add a `"`')
            return Token.new_borrow_pos("STRING", f'{token}"', token)
        if token.type == "BAD":
            self.reporter.error("E0102", f"{str(token)!r} means nothing here", span)
        return token

    def _start_line(self, token: Token, after: str) -> None:
        if token.type in DECLARES:
            self._close_until(0)
        elif self._in_brackets():
            goes_on = self.tokens[-1].type in CONTINUES
            starts = token.type in STATES or (token.type == "NAME" and after == "EQUAL")
            if goes_on or not starts:
                return
            self._close_brackets()
        if token.type not in LEADS and self.tokens and self.tokens[-1].type not in CONTINUES:
            self._end_statement()

    def _take(self, token: Token) -> None:
        if token.type in ("LBRACE", "RBRACE"):
            self._close_brackets()
        if token.type in CLOSER:
            if len(self._open) >= MAX_BRACKETS:
                self.reporter.abort(
                    "E0407",
                    f"more than {MAX_BRACKETS} brackets in one another",
                    span_of(token, self.file),
                    help="give the inner parts names, or make them blocks",
                )
            self._open.append(token)
        elif token.type in CLOSER.values() and not self._match(token):
            return
        self.tokens.append(token)

    def _match(self, token: Token) -> bool:
        if not self._open or (token.type != "RBRACE" and self._open[-1].type == "LBRACE"):
            self._report("E0105", f"`{token}` closes a bracket that was never opened", token)
            return False
        wanted = next((i for i in self._inner() if CLOSER[self._open[i].type] == token.type), None)
        if wanted is not None:
            self._close_until(wanted + 1)
        opened = self._open.pop()
        if wanted is None:
            message = f"`{opened}` is closed by `{token}`"
            self._report("E0104", message, opened, help=f"write `{TEXT[CLOSER[opened.type]]}`")
            self._append(CLOSER[opened.type])
            return False
        if token.type == "RBRACE":
            self._end_statement()
        return True

    def _inner(self) -> Iterator[int]:
        """The indices of the open brackets up to and with the innermost brace, innermost first."""
        for index in reversed(range(len(self._open))):
            yield index
            if self._open[index].type == "LBRACE":
                return

    def _in_brackets(self) -> bool:
        return bool(self._open) and self._open[-1].type != "LBRACE"

    def _close_brackets(self) -> None:
        while self._in_brackets():
            self._close_until(len(self._open) - 1)

    def _close_until(self, depth: int) -> None:
        while len(self._open) > depth:
            opened = self._open.pop()
            closer = CLOSER[opened.type]
            help = f"add the missing `{TEXT[closer]}`"
            self._report("E0104", f"this `{opened}` is never closed", opened, help=help)
            if closer == "RBRACE":
                self._end_statement()
            self._append(closer)

    def _end_statement(self) -> None:
        if self.tokens and self.tokens[-1].type not in ("_NL", "LBRACE"):
            self._append("_NL")

    def _append(self, type: str) -> None:
        """Adds a token that is not in the text, placed where the last one ends."""
        last = self.tokens[-1]
        place = {"line": last.end_line, "column": last.end_column}
        place |= {"end_line": last.end_line, "end_column": (last.end_column or 1) + 1}
        self.tokens.append(Token(type, TEXT.get(type, "\n"), **place))

    def _report(self, code: str, message: str, token: Token, help: str = "") -> None:
        self.reporter.error(code, message, span_of(token, self.file), help=help)
