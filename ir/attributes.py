"""The text form of a dataclass's fields, for ops, kernels and passes alike.

    Conv2d(stride=(2, 2), epilogue=(Step(Relu()),))   <->   {stride=[2,2], epilogue=[relu]}

Everything follows from the fields' type hints: bool, int, float, str, Enum, tuples, Optional,
`Step`, ops, and other dataclasses. Fields that hold their default are omitted; what is left reads
back exactly, floats included (`inf`, `nan` and `-0.0` too).
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from lark import Token, Tree

from cnnc.ir.kernel import Kernel
from cnnc.ir.location import suggest
from cnnc.ir.op import Elementwise, Fusable, Op, Step
from cnnc.ir.ops import OPS
from cnnc.ir.syntax import Source, Syntax

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Fields that many classes share follow those that a class has of its own.
_SHARED = {field.name for owner in (Fusable, Kernel) for field in fields(owner)}


# Behind a step's op: which of its operands the running value is, if not the first.
_PLACES = ("", " swapped", " last")


class _Field(NamedTuple):
    name: str
    hint: Any
    required: bool
    default: str  # its text, if not required


@cache
def _fields(cls: type[DataclassInstance]) -> tuple[_Field, ...]:
    hints = get_type_hints(cls)
    found = []
    for field in sorted(fields(cls), key=lambda f: f.name in _SHARED):
        hint = hints[field.name]
        factory = field.default_factory
        default = factory() if factory is not MISSING else field.default
        required = default is MISSING
        text = "" if required else write_value(default, hint)
        found.append(_Field(field.name, hint, required, text))
    return tuple(found)


# -- writing -------------------------------------------------------------------------------------


def write_fields(value: DataclassInstance) -> str:
    """`{stride=[2,2]}`: the fields that differ from their defaults; empty if none does."""
    texts = [f"{name}={text}" for name, text in field_texts(value).items()]
    return "{" + ", ".join(texts) + "}" if texts else ""


def field_texts(value: DataclassInstance) -> dict[str, str]:
    """Name -> text, of the fields that differ from their defaults."""
    texts = {}
    for name, hint, required, default in _fields(type(value)):
        text = write_value(getattr(value, name), hint)
        if required or text != default:
            texts[name] = text
    return texts


def write_value(value: Any, hint: Any) -> str:
    """One value of the type that `hint` names. Raises `TypeError` for a type without text form."""
    if get_origin(hint) in (Union, UnionType):
        return "none" if value is None else write_value(value, _optional(hint))
    if get_origin(hint) is tuple:
        hints = _element_hints(hint, len(value))
        texts = [write_value(v, h) for v, h in zip(value, hints, strict=True)]
        return "[" + (", " if hints and is_dataclass(hints[0]) else ",").join(texts) + "]"
    if hint is bool:
        return "true" if value else "false"
    if hint is int:
        return str(int(value))
    if hint is float:
        return repr(float(value))
    if hint is str:
        return json.dumps(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return str(value.name).lower()
    if hint is Step:
        return write_value(value.op, Elementwise) + _PLACES[value.at]
    if isinstance(hint, type) and issubclass(hint, Op):
        return str(value.name) + write_fields(value)
    if is_dataclass(hint):
        return write_fields(value) or "{}"
    raise TypeError(f"a field of type {hint} has no text form")


def _optional(hint: Any) -> Any:
    """X of `X | None`."""
    (inner,) = (arg for arg in get_args(hint) if arg is not NoneType)
    return inner


def _element_hints(hint: Any, count: int) -> tuple[Any, ...]:
    args = get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return (args[0],) * count
    return () if args == ((),) else args


# -- reading -------------------------------------------------------------------------------------


def read_fields(cls: type[T], tree: Tree[Token] | None, where: Syntax, source: Source) -> T:
    """A `cls` from a `fields` tree (None for no braces), which stands at `where`.

    Raises:
        ParseError: located; a field is unknown, missing, given twice, or of the wrong type.
    """
    known = {field.name: field for field in _fields(cls)}
    given: dict[str, Any] = {}
    title = getattr(cls, "name", cls.__name__)
    for field in tree.children if tree is not None else ():
        assert isinstance(field, Tree)
        word, value = field.children
        assert isinstance(word, Token)
        if word not in known:
            raise source.fail(f"{title} has no attribute `{word}`", word, suggest(word, known))
        if word in given:
            raise source.fail(f"`{word}` is given twice", word)
        given[str(word)] = read_value(known[word].hint, value, source)
    missing = [f"`{f.name}`" for f in known.values() if f.required and f.name not in given]
    if missing:
        raise source.fail(f"{title} needs {', '.join(missing)}", where)
    return cls(**given)


def read_value(hint: Any, tree: Syntax, source: Source) -> Any:
    """The value of type `hint` that a tree stands for. Raises `ParseError`, located."""
    word, inner, flag = _word(tree)
    if get_origin(hint) in (Union, UnionType):
        return None if word == "none" else read_value(_optional(hint), tree, source)
    if get_origin(hint) is tuple:
        return _read_tuple(hint, tree, source)
    if hint is Step:
        op = _read_op(Elementwise, word, inner, tree, source)
        places = [place.strip() for place in _PLACES[: len(op.operands)]]
        if (flag or "") not in places:
            wanted = " or ".join(f"`{place}`" for place in places[1:]) or "nothing"
            raise source.fail(f"expected {wanted}, found `{flag}`", tree)
        return Step(op, places.index(flag or ""))
    if flag is not None:
        raise source.fail(f"`{flag}` has no meaning here", tree)
    if isinstance(hint, type) and issubclass(hint, Op):
        return _read_op(hint, word, inner, tree, source)
    if inner is None and word is not None and isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.name.lower(): member for member in hint}
        if word in members:
            return members[word]
        raise source.fail(f"`{word}` is no {hint.__name__}", tree, suggest(word, members))
    if isinstance(tree, Tree) and tree.data == "fields" and is_dataclass(hint):
        cls: Any = hint
        return read_fields(cls, tree, tree, source)
    return _read_scalar(hint, word if inner is None else None, tree, source)


def _word(tree: Syntax) -> tuple[str | None, Tree[Token] | None, str | None]:
    """(word, its fields, the word after it) of a `word` tree; Nones for anything else."""
    if isinstance(tree, Token) or tree.data != "word":
        return None, None, None
    words = [str(t) for t in tree.children if isinstance(t, Token)]
    inner = next((t for t in tree.children if isinstance(t, Tree)), None)
    return words[0], inner, words[1] if len(words) > 1 else None


def _read_scalar(hint: Any, word: str | None, tree: Syntax, source: Source) -> Any:
    text = str(tree) if isinstance(tree, Token) else word or ""
    kind = tree.type if isinstance(tree, Token) else None
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint is str and isinstance(tree, Token) and kind == "STRING":
        return source.string(tree)
    if hint is int and kind == "NUMBER" and text.removeprefix("-").isdigit():
        return int(text)
    if hint is float and (kind == "NUMBER" or text in ("inf", "nan")):
        return float(text)
    wanted = getattr(hint, "__name__", str(hint))
    raise source.fail(f"expected a value of type {wanted}", tree)


def _read_tuple(hint: Any, tree: Syntax, source: Source) -> tuple[Any, ...]:
    if isinstance(tree, Token) or tree.data != "list":
        raise source.fail("expected a list such as [1,2]", tree)
    hints = _element_hints(hint, len(tree.children))
    if len(hints) != len(tree.children):
        raise source.fail(f"expected {len(hints)} values, found {len(tree.children)}", tree)
    return tuple(read_value(h, t, source) for h, t in zip(hints, tree.children, strict=True))


def _read_op(
    base: Any, word: str | None, inner: Tree[Token] | None, tree: Syntax, source: Source
) -> Any:
    known = {name: op for name, op in OPS.items() if issubclass(op, base)}
    if word not in known:
        raise source.fail(
            f"expected an op, found `{word}`" if word else "expected an op",
            tree,
            suggest(word or "", known),
        )
    return read_fields(known[word], inner, tree, source)
