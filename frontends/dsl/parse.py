"""From text to syntax tree.

A syntax error is reported, its statement taken out, and the rest parsed again, so that one run
tells of all the syntax errors in a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, UnexpectedToken
from lark import Tree as LarkTree
from lark.exceptions import VisitError
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive, v_args

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.layout import Layout, span_of
from cnnc.frontends.dsl.report import Reporter
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.dsl.values import MAX_NUMBER
from cnnc.ir.location import Diagnostic, Location

MAX_TEXT = 1 << 18  # characters
MAX_SYNTAX_ERRORS = 10
MAX_DIGITS = 18
VERSION = 1


def parse(text: str, file: str, reporter: Reporter) -> tree.File | None:
    """The tree of `text`, or None after reporting what is wrong with it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    before = len(reporter.diagnostics)
    if len(text) > MAX_TEXT:
        message = f"the text has {len(text)} characters, at most {MAX_TEXT} are read"
        reporter.abort("E0106", message, Span(file))
    reporter.sources[file] = text
    tokens = Layout(_grammar().lex(text), file, reporter).tokens
    result = None
    for _ in range(MAX_SYNTAX_ERRORS):
        found = _parse_once(tokens)
        if not isinstance(found, int):
            try:
                result = _Builder(file, reporter).transform(found)
            except VisitError as error:
                raise error.orig_exc from None
            break
        at = found
        expected = _expected(tokens, at)
        if not any(d.location.line == tokens[at].line for d in reporter.diagnostics[before:]):
            _report_token(tokens[max(at - 1, 0)], tokens[at], expected, file, reporter)
        start, end = _statement_around(tokens, at)
        tokens = tokens[:start] + tokens[end:]
    reporter.diagnostics[before:] = sorted(reporter.diagnostics[before:], key=_place)
    return None if len(reporter.diagnostics) > before else result


def _place(diagnostic: Diagnostic) -> Location:
    return diagnostic.location


class _KeepTerminals:
    """Tells lark to keep the terminals that no rule uses; they stand for what is no token."""

    always_accept = ("UNCLOSED", "BAD")

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        return stream


@cache
def _grammar() -> Lark:
    return Lark(
        (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        start="file",
        propagate_positions=True,
        maybe_placeholders=True,
        postlex=_KeepTerminals(),
    )


def _parse_once(tokens: list[Token]) -> LarkTree[Token] | int:
    """The tree, or the index of the first token that does not fit."""
    parser = _grammar().parse_interactive()
    for index, token in enumerate(tokens):
        try:
            parser.feed_token(token)
        except UnexpectedToken:
            return index
    result: LarkTree[Token] = parser.feed_eof()  # type: ignore[no-untyped-call]
    return result


def _expected(tokens: list[Token], at: int) -> set[str]:
    parser = _grammar().parse_interactive()
    for token in tokens[:at]:
        parser.feed_token(token)
    return set(parser.accepts())  # type: ignore[no-untyped-call]


def _statement_around(tokens: list[Token], at: int) -> tuple[int, int]:
    """[start, end) of the statement that holds token `at`, its body in braces included."""
    borders = ("_NL", "LBRACE", "RBRACE")
    start = at
    while start > 0 and tokens[start - 1].type not in borders:
        start -= 1
    depth, end = 0, at
    while end < len(tokens):
        kind = tokens[end].type
        if kind == "RBRACE" and depth == 0:
            break
        depth += (kind == "LBRACE") - (kind == "RBRACE")
        end += 1
        if kind == "_NL" and depth == 0:
            break
    end = max(end, at + 1)
    if start > 0 and tokens[start - 1].type == "RBRACE" and end - 1 > at:
        end -= tokens[end - 1].type == "_NL"  # it ends the statement before, too
    return start, end


# -- messages ------------------------------------------------------------------------------------

_VALUE = {"NAME", "INT", "LPAR"}
_STATEMENT = {"INPUT", "REQUIRE", "RETURN"}
_OPERATORS = frozenset(
    "ARROW RANGE OR AND EQ NE LE GE LT GT PLUS MINUS STAR FLOORDIV SLASH PERCENT DOT LSQB".split()
)


def _report_token(
    before: Token, token: Token, expected: set[str], file: str, reporter: Reporter
) -> None:
    what = "the end of the line" if token.type == "_NL" else f"`{token}`"
    help = ""
    if token.type == "EQUAL" and before.type == str(before).upper():
        help = f"`{before}` is a word of the language and cannot be a name"
    elif token.type == str(token).upper() and str(token).isalpha() and "NAME" in expected:
        help = f"`{token}` is a word of the language and cannot be a name"
    elif token.type == "EQUAL" and "EQ" in expected:
        help = "`==` compares"
    elif token.type in ("ELSE", "_NL") and "THEN" in expected:
        help = "as a value: `if condition then a else b`; as a statement: `if condition { ... }`"
    message, label = f"{what} cannot stand here", f"expected {_describe(expected)}"
    reporter.error("E0101", message, span_of(token, file), label=label, help=help)


def _describe(expected: set[str]) -> str:
    if expected >= _STATEMENT:
        return "a statement or `}`"
    if "BLOCK" in expected:
        return "`block`, `model`, `const` or `import`"
    words = ["a value"] if expected >= _VALUE else []
    if not words and "NAME" in expected:
        words.append("a name")
    if "ARROW" in expected:
        words.append("an operator")
    spelled = {t.name: t.pattern.value for t in _grammar().terminals if t.pattern.type == "str"}
    hidden = _OPERATORS | {"NAME"} if words else frozenset[str]()
    if "a value" in words:
        hidden |= {"INT", "LPAR", "YES", "NO", "IN", "NOT"}
    rest = sorted(expected - hidden)
    named = {"_NL": "the end of the line", "INT": "a whole number", "NAME": "a name"}
    named |= {"STRING": "a string", "FLOAT": "a number", "$END": "the end of the file"}
    if "a value" in words:
        rest = [name for name in rest if name not in ("STRING", "FLOAT")]
    words += [named.get(name) or f"`{spelled.get(name, name)}`" for name in rest]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# -- the tree ------------------------------------------------------------------------------------


class _Builder(Transformer_NonRecursive[Token, tree.File]):
    """Makes our tree from lark's; each method is named after a rule of the grammar."""

    def __init__(self, file: str, reporter: Reporter) -> None:
        super().__init__()
        self._file = file
        self._reporter = reporter

    def _span(self, meta: Meta | Token) -> Span:
        if isinstance(meta, Token):
            return span_of(meta, self._file)
        if meta.empty:
            return Span(self._file)
        return Span(self._file, meta.line, meta.column, meta.end_line, meta.end_column)

    def _number(self, token: Token) -> int:
        digits = str(token).replace("_", "")
        if len(digits) > MAX_DIGITS:
            message = f"a number of {len(digits)} digits is too large"
            self._reporter.error("E0408", message, self._span(token))
            return 0
        return int(digits)

    @v_args(meta=True)
    def file(self, meta: Meta, children: list[Any]) -> tree.File:
        return tree.File(self._span(meta), tuple(children))

    @v_args(meta=True)
    def header(self, meta: Meta, children: list[Any]) -> tree.Header:
        return tree.Header(self._span(meta), self._number(children[0]))

    @v_args(meta=True)
    def import_(self, meta: Meta, children: list[Any]) -> tree.Import:
        file, names = children
        return tree.Import(self._span(meta), str(file)[1:-1], names or ())

    def names(self, children: list[Any]) -> tuple[tuple[str, Span], ...]:
        return tuple((str(token), self._span(token)) for token in children)

    @v_args(meta=True)
    def const(self, meta: Meta, children: list[Any]) -> tree.Const:
        return tree.Const(self._span(meta), str(children[0]), children[1])

    @v_args(meta=True)
    def block(self, meta: Meta, children: list[Any]) -> tree.Block:
        return self._block("block", children, ("in",))

    @v_args(meta=True)
    def model(self, meta: Meta, children: list[Any]) -> tree.Block:
        return self._block("model", children, ())

    def _block(self, keyword: str, children: list[Any], implicit: tuple[str, ...]) -> tree.Block:
        name, signature, body = children
        tensors, parameters = signature or (None, ())
        if tensors is not None and keyword == "model":
            self._reporter.error(
                "E0309",
                "a model has no tensor parameters",
                self._span(name),
                help="declare `input` statements in its body",
            )
        for parameter in tensors or ():
            if parameter.default is not None:
                message = f"the tensor parameter `{parameter.name}` cannot have a default"
                self._reporter.error("E0309", message, parameter.span)
        given = implicit if tensors is None else tuple(p.name for p in tensors)
        self._check_names([*(tensors or ()), *parameters])
        return tree.Block(self._span(name), keyword, str(name), given, parameters, body)

    def _check_names(self, parameters: list[tree.Parameter]) -> None:
        seen: set[str] = set()
        for parameter in parameters:
            if parameter.name in seen:
                message = f"two parameters are called `{parameter.name}`"
                self._reporter.error("E0307", message, parameter.span)
            seen.add(parameter.name)

    def implicit(self, children: list[Any]) -> tuple[None, tuple[tree.Parameter, ...]]:
        return None, children[0] or ()

    def explicit(self, children: list[Any]) -> tuple[Any, tuple[tree.Parameter, ...]]:
        return children[0], children[1] or ()

    def params(self, children: list[Any]) -> tuple[tree.Parameter, ...]:
        return tuple(children)

    def param(self, children: list[Any]) -> tree.Parameter:
        name, default = children
        return tree.Parameter(self._span(name), str(name), default)

    def body(self, children: list[Any]) -> tree.Body:
        return tuple(children)

    # Statements

    @v_args(meta=True)
    def input(self, meta: Meta, children: list[Any]) -> tree.Input:
        name, type, layout, value = children
        if value is not None:
            first = tree.Name(self._span(name), str(name))
            rest = value.parts if isinstance(value, tree.Pipe) else (value,)
            value = tree.Pipe(value.span, (first, *rest))
        return tree.Input(self._span(name), str(name), type, str(layout or ""), value)

    @v_args(meta=True)
    def output(self, meta: Meta, children: list[Any]) -> tree.Output:
        attributes, name, value = children
        return tree.Output(self._span(name), attributes, str(name), value)

    @v_args(meta=True)
    def assign(self, meta: Meta, children: list[Any]) -> tree.Assign:
        attributes, target, value = children
        return tree.Assign(self._span(meta), attributes, target, value)

    def attributes(self, children: list[Any]) -> tuple[tree.Attribute, ...]:
        return tuple(children)

    @v_args(meta=True)
    def attribute(self, meta: Meta, children: list[Any]) -> tree.Attribute:
        return tree.Attribute(self._span(meta), str(children[0]), children[1] or ())

    @v_args(meta=True)
    def targets(self, meta: Meta, children: list[Any]) -> tree.Pattern:
        if len(children) == 1:
            return children[0]  # type: ignore[no-any-return]
        return tree.Pattern(self._span(meta), "", tuple(children))

    @v_args(meta=True)
    def single(self, meta: Meta, children: list[Any]) -> tree.Pattern:
        return tree.Pattern(self._span(meta), str(children[0]))

    @v_args(meta=True)
    def several(self, meta: Meta, children: list[Any]) -> tree.Pattern:
        return tree.Pattern(self._span(meta), "", tuple(children))

    @v_args(meta=True)
    def share(self, meta: Meta, children: list[Any]) -> tree.Share:
        return tree.Share(self._span(meta), str(children[0]), children[1])

    @v_args(meta=True)
    def return_(self, meta: Meta, children: list[Any]) -> tree.Return:
        return tree.Return(self._span(meta), children[0])

    @v_args(meta=True)
    def for_(self, meta: Meta, children: list[Any]) -> tree.For:
        return tree.For(self._span(meta), *children)

    @v_args(meta=True)
    def if_(self, meta: Meta, children: list[Any]) -> tree.If:
        condition, yes, no = children
        otherwise = (no,) if isinstance(no, tree.If) else no or ()
        return tree.If(self._span(meta), condition, yes, otherwise)

    @v_args(meta=True)
    def weights(self, meta: Meta, children: list[Any]) -> tree.Weights:
        file, *clauses = children
        found = {"by": "", "map": ""}
        for word, value in clauses:
            text = str(value).strip('"')
            good = value.type == "STRING" if word == "map" else text in ("name", "order")
            if word not in found or found[word] or not good:
                self._reporter.error(
                    "E0101",
                    f"`{word} {value}` cannot stand here",
                    self._span(word),
                    label='expected `by name`, `by order` or `map "file"`, each at most once',
                )
                continue
            found[word] = text
        return tree.Weights(self._span(file), str(file)[1:-1], found["by"] or "name", found["map"])

    def clause(self, children: list[Any]) -> tuple[Token, Token]:
        return children[0], children[1]

    @v_args(meta=True)
    def init(self, meta: Meta, children: list[Any]) -> tree.Init:
        return tree.Init(self._span(meta), str(children[0]), children[1] or ())

    @v_args(meta=True)
    def require(self, meta: Meta, children: list[Any]) -> tree.Require:
        condition, message = children
        return tree.Require(condition.span, condition, str(message or "")[1:-1])

    # Types

    @v_args(meta=True)
    def type(self, meta: Meta, children: list[Any]) -> tree.Type:
        return tree.Type(self._span(meta), str(children[0]), tuple(children[1:]))

    @v_args(meta=True)
    def dim_number(self, meta: Meta, children: list[Any]) -> tree.Dim:
        return tree.Dim(self._span(meta), self._number(children[0]))

    @v_args(meta=True)
    def dim_name(self, meta: Meta, children: list[Any]) -> tree.Dim:
        name, *numbers = children
        divisor, low, high = (None if n is None else self._number(n) for n in numbers)
        span = self._span(meta)
        return tree.Dim(span, str(name), 1 if divisor is None else divisor, low, high)

    @v_args(meta=True)
    def dim_expr(self, meta: Meta, children: list[Any]) -> tree.Dim:
        return tree.Dim(self._span(meta), children[0])

    # Expressions

    @v_args(meta=True)
    def choice(self, meta: Meta, children: list[Any]) -> tree.Choice:
        return tree.Choice(self._span(meta), *children)

    @v_args(meta=True)
    def pipe(self, meta: Meta, children: list[Any]) -> tree.Pipe:
        return tree.Pipe(self._span(meta), tuple(children))

    @v_args(meta=True)
    def binary(self, meta: Meta, children: list[Any]) -> tree.Binary:
        left, operator, right = children
        return tree.Binary(self._span(meta), str(operator), self._span(operator), left, right)

    @v_args(meta=True)
    def unary(self, meta: Meta, children: list[Any]) -> tree.Unary:
        return tree.Unary(self._span(meta), str(children[0]), children[1])

    @v_args(meta=True)
    def member(self, meta: Meta, children: list[Any]) -> tree.Member:
        return tree.Member(self._span(meta), children[0], str(children[1]))

    @v_args(meta=True)
    def index(self, meta: Meta, children: list[Any]) -> tree.Index:
        return tree.Index(self._span(meta), children[0], children[1])

    @v_args(meta=True)
    def integer(self, meta: Meta, children: list[Any]) -> tree.Literal:
        return tree.Literal(self._span(meta), self._number(children[0]))

    @v_args(meta=True)
    def real(self, meta: Meta, children: list[Any]) -> tree.Literal:
        value = float(str(children[0]).replace("_", ""))
        if value > MAX_NUMBER:
            message = f"the number {children[0]} is too large"
            self._reporter.error("E0408", message, self._span(meta))
        return tree.Literal(self._span(meta), value)

    @v_args(meta=True)
    def text(self, meta: Meta, children: list[Any]) -> tree.Literal:
        return tree.Literal(self._span(meta), str(children[0])[1:-1])

    @v_args(meta=True)
    def yes(self, meta: Meta, children: list[Any]) -> tree.Literal:
        return tree.Literal(self._span(meta), True)

    @v_args(meta=True)
    def no(self, meta: Meta, children: list[Any]) -> tree.Literal:
        return tree.Literal(self._span(meta), False)

    @v_args(meta=True)
    def name(self, meta: Meta, children: list[Any]) -> tree.Name:
        return tree.Name(self._span(meta), str(children[0]))

    @v_args(meta=True)
    def call(self, meta: Meta, children: list[Any]) -> tree.Call:
        name, arguments = children
        return tree.Call(self._span(meta), str(name), self._span(name), arguments or ())

    @v_args(meta=True)
    def items(self, meta: Meta, children: list[Any]) -> tree.Items:
        return tree.Items(self._span(meta), tuple(children))

    def args(self, children: list[Any]) -> tuple[tree.Argument, ...]:
        return tuple(children)

    @v_args(meta=True)
    def arg(self, meta: Meta, children: list[Any]) -> tree.Argument:
        name, value = children
        return tree.Argument(self._span(meta), str(name or ""), value)
