"""Einsum: a transpose, a sum or a product of matrices for each pair of operands, from the left.

"bij,bjk->bik" -> matmul        "i,j->ij" -> mul        "ij->" -> sum        "ii->i" -> slice
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_letters

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.ir.op import product
from cnnc.ir.ops import How, MatMul, Mul, Reduction, Slice, Transpose
from cnnc.ir.types import Dim


@dataclass(frozen=True)
class _Term:
    """A value of the graph with a label for each of its axes."""

    value: str
    labels: tuple[str, ...]


def einsum(call: Call) -> None:
    """Einsum."""
    operands = call.operands()
    inputs, wanted = _parse(call.word("equation"), [call.type(o).rank for o in operands])
    terms = [_diagonal(call, _Term(o, t)) for o, t in zip(operands, inputs, strict=True)]
    term = terms[0]
    for i, other in enumerate(terms[1:], 2):
        needed = set(wanted).union(*(later.labels for later in terms[i:]))
        term = _joined(call, term, other, needed)
    term = _ordered(call, _summed(call, term, wanted), wanted)
    call.alias(term.value)


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """(the labels of each operand, those of the result); the axes of `...` are called by numbers.

    The last axis of `...` is -1, as these broadcast.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    words = left.split(",")
    if len(words) != len(ranks):
        raise Unsupported(f"equation={equation} for {len(ranks)} operands")
    terms = [_labels(word, rank, equation) for word, rank in zip(words, ranks, strict=True)]
    hidden = sorted({n for term in terms for n in term if n not in ascii_letters}, key=int)
    if arrow:
        wanted = _labels(right, len(right.replace("...", "")) + len(hidden), equation)
    else:
        counts = Counter("".join(words))
        once = sorted(n for n in ascii_letters if counts[n] == 1)
        wanted = (*hidden, *once)
    known = {n for term in terms for n in term}
    if len(set(wanted)) < len(wanted) or not known >= set(wanted):
        raise Unsupported(f"equation={equation} has no such result")
    return terms, wanted


def _labels(word: str, rank: int, equation: str) -> tuple[str, ...]:
    """The labels of a word like `b...ij` for so many axes."""
    before, dots, after = word.partition("...")
    more = rank - len(before) - len(after)
    if more < 0 or (more and not dots) or not all(n in ascii_letters for n in before + after):
        raise Unsupported(f"equation={equation}: `{word}` for {rank} axes")
    return (*before, *(str(i - more) for i in range(more)), *after)


def _diagonal(call: Call, term: _Term) -> _Term:
    """The term without labels that come twice: of those axes the diagonal is left."""
    twice = [n for n, count in Counter(term.labels).items() if count > 1]
    if not twice:
        return term
    first = term.labels.index(twice[0])
    second = term.labels.index(twice[0], first + 1)
    rest = [i for i in range(len(term.labels)) if i not in (first, second)]
    x = call.add(Transpose(perm=(*rest, first, second)), term.value)
    *outer, size, other = call.type(x).shape
    if not isinstance(size, int) or size != other or not size:
        raise Unsupported(f"the diagonal of {size} x {other} elements")
    x = call.add(call.reshape(x, (*outer, size * size)), x)
    cut = Slice(axes=(len(outer),), starts=(0,), stops=(size * size,), steps=(size + 1,))
    labels = (*(term.labels[i] for i in rest), twice[0])
    return _diagonal(call, _Term(call.add(cut, x), labels))


def _summed(call: Call, term: _Term, kept: Collection[str]) -> _Term:
    """The term summed up over all axes but those."""
    axes = tuple(i for i, n in enumerate(term.labels) if n not in kept)
    if not axes:
        return term
    value = call.add(Reduction(how=How.SUM, axes=axes), term.value)
    return _Term(value, tuple(n for n in term.labels if n in kept))


def _ordered(call: Call, term: _Term, labels: Sequence[str]) -> _Term:
    """The term with its axes in that order."""
    perm = tuple(term.labels.index(n) for n in labels)
    if perm == tuple(range(len(perm))):
        return term
    return _Term(call.add(Transpose(perm=perm), term.value), tuple(labels))


def _spread(call: Call, term: _Term, labels: Sequence[str]) -> str:
    """The term's value with axes of one element for the labels that it lacks."""
    own = [n for n in labels if n in term.labels]
    x = _ordered(call, term, own).value
    if len(own) == len(labels):
        return x
    sizes = dict(zip(own, call.type(x).shape, strict=True))
    return call.add(call.reshape(x, [sizes.get(n, 1) for n in labels]), x)


def _joined(call: Call, a: _Term, b: _Term, needed: Collection[str]) -> _Term:
    """The product of two terms, summed up over what is not needed later."""
    a = _summed(call, a, {*needed, *b.labels})
    b = _summed(call, b, {*needed, *a.labels})
    shared = [n for n in a.labels if n in b.labels]
    batch, inner = [n for n in shared if n in needed], [n for n in shared if n not in needed]
    rows = [n for n in a.labels if n not in shared]
    columns = [n for n in b.labels if n not in shared]
    labels = (*batch, *rows, *columns)
    if not inner:
        return _Term(call.add(Mul(), _spread(call, a, labels), _spread(call, b, labels)), labels)
    left = _matrices(call, a, batch, rows, inner)
    right = _matrices(call, b, batch, inner, columns)
    y = call.add(MatMul(), left, right)
    outer = call.type(y).shape[: len(batch)]
    dims = (*outer, *_sizes(call, a, rows), *_sizes(call, b, columns))
    return _Term(call.add(call.reshape(y, dims), y), labels)


def _sizes(call: Call, term: _Term, labels: Sequence[str]) -> list[Dim]:
    """The sizes of some of the term's axes."""
    found = dict(zip(term.labels, call.type(term.value).shape, strict=True))
    return [found[n] for n in labels]


def _matrices(
    call: Call, term: _Term, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> str:
    """The term as [batch..., rows, columns]."""
    x = _ordered(call, term, (*batch, *rows, *columns)).value
    groups = (_sizes(call, term, labels) for labels in (rows, columns))
    dims = (*_sizes(call, term, batch), *map(product, groups))
    return call.add(call.reshape(x, dims), x)
