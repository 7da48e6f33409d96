"""ONNX graph -> portable graph, node by node.

`CONVERTERS` put a node into the graph. A node of which every input is known (initializers,
constants, shapes and what is computed from them) is converted into a graph of its own, which is
evaluated at once: it leaves a known value. Sizes in known values may be symbolic; operators that
compute with those, or that have no converter, are in `FOLDERS`, which are asked first. Nodes that
no output needs are left out.

A node that cannot be converted does not stop the others: everything that is wrong is told at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import zip_longest

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, ValuesNeeded, fix_size
from cnnc.frontends.onnx.compute import evaluate
from cnnc.frontends.onnx.inline import MAX_DEPTH, MAX_NODES, Bodies, Body
from cnnc.frontends.onnx.ops import CONTRIB, CONVERTERS, FOLDERS, HINTS, Converter
from cnnc.frontends.onnx.proto import DOMAINS, MICROSOFT, Source, opset_of
from cnnc.frontends.onnx.tensors import TensorReader, text
from cnnc.frontends.onnx.unroll import LOOPS
from cnnc.ir.graph import Builder, Graph, fresh_name
from cnnc.ir.location import Diagnostic, Location, ParseError, ShapeError
from cnnc.ir.op import Array
from cnnc.ir.order import Cycle, in_order
from cnnc.ir.types import DType, Sym, TensorType

_SHOWN = 5  # names in one message
_FOLDED_BYTES = 1 << 28  # of computed constants, beyond four times the model's own
_LAYOUTS = (
    "it is for one kind of processors: save the optimised model with graph_optimization_level="
    "ORT_ENABLE_EXTENDED, or give the original"
)
_GENERIC = "replace it in the model by operators that are supported, or compute it outside"


def convert(source: Source, types: Mapping[str, TensorType], values: Mapping[str, Array]) -> Graph:
    """The portable graph of a model whose inputs have these types.

    Args:
        source: the model.
        types: input name -> type.
        values: input name -> its elements, where they are known; the graph does not take these.

    Raises:
        ValuesNeeded: nodes need the values of inputs at import.
        ParseError: names that are missing or defined twice, a cycle, damaged tensors, and all
            nodes that cannot be converted.
    """
    importer = Importer(source)
    for name, type in types.items():
        importer.reserve(name, "an input")
        if name in values:
            importer.known[name] = values[name]
        else:
            importer.define(name, importer.builder.input(name, type))
    importer.read_tensors()
    importer.run()
    return importer.finish()


class Importer:
    """The state of one conversion.

    Attributes:
        known: ONNX value -> its elements, where they are known; of type `object` if there are
            symbolic sizes among them.
        builder: the graph as far as it is converted; while a node of known numbers is computed,
            the graph of that node.
        computing: whether such a node is computed, so that its elements may have any type.
    """

    def __init__(self, source: Source) -> None:
        self.graph = source.model.graph
        self.file, self.places = source.file, source.places
        self.opset = opset_of(source.model, source.file)
        self.reader = TensorReader(source.file, source.folder)
        self.builder = Builder(source.name)
        self.computing = False
        self.known: dict[str, Array] = {}
        self._values: dict[str, str] = {}  # ONNX value -> value of the graph
        self._owners: dict[str, str] = {}  # ONNX value -> what defines it
        self._makers: dict[str, Call] = {}  # ONNX value -> the node that makes it
        self._needed: dict[str, None] = {}  # model inputs whose values are needed
        self._failed: set[str] = set()  # ONNX values that could not be converted
        self._problems: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._budget = _FOLDED_BYTES
        self._bodies = Bodies(source.model)
        self._open: list[tuple[str, ...]] = []  # the bodies that are being converted
        self._scopes: Counter[str] = Counter()
        self._inlined = 0  # nodes of bodies so far
        self._calls = [Call(self, node, self.opset) for node in self.graph.node]
        self._used = {name for call in self._calls for name in call.reads} | set(self._outputs())

    # -- names -----------------------------------------------------------------------------------

    def reserve(self, name: str, owner: str) -> None:
        """Notes what defines an ONNX value. Raises `ParseError` if something else does, too."""
        if name in self._owners:
            message = f"`{name}` is defined twice: it is {self._owners[name]} and {owner}"
            raise ParseError(Diagnostic(message, Location(self.file, name=name)))
        self._owners[name] = owner

    def fresh(self, hint: str) -> str:
        """A name for a value inside a node, which no value of the model has."""
        return fresh_name(hint, self.builder.types, self._owners)

    def define(self, name: str, value: str) -> None:
        """Says which value of the graph an ONNX value is."""
        self._values[name] = value

    def value(self, name: str) -> str:
        """The graph's value for an ONNX value; a known one becomes a constant of the graph."""
        if name in self._values:
            return self._values[name]
        array = self.known[name]
        if array.dtype == object:
            raise Unsupported(f"`{name}` holds symbolic sizes, which are no tensor here")
        if array.dtype.name not in (d.value for d in DType):
            raise Unsupported(f"`{name}` holds {array.dtype}", "store it as float32")
        if 0 not in array.strides:  # else it is one number that is repeated: no memory
            array = np.asarray(array, order="C")
        self._values[name] = self.builder.constant(self.fresh_constant(name), array)
        return self._values[name]

    def inputs_behind(self, name: str) -> list[str]:
        """The inputs of the model that decide on an ONNX value, if it is one or made of small ones.

        Small are single numbers, and lists of whole numbers or truth values, as shapes and axes
        are; none are given where larger ones are behind the value, too.
        """
        if name in self.builder.inputs:
            return [name]
        found, pending, seen = [], [name], {name}
        while pending:
            name = pending.pop()
            if name in self.builder.inputs:
                type = self.builder.types[name]
                if type.rank > 1 or (type.rank and type.dtype.is_float):
                    return []
                found.append(name)
            elif name in self._makers:
                read = set(filter(None, self._makers[name].reads)) - seen - self.known.keys()
                seen |= read
                pending += read
        return sorted(found)

    def fresh_constant(self, name: str) -> str:
        """The constant's own name, unless a value inside a node took it."""
        return name if name not in self.builder.types else self.fresh(name)

    # -- running ---------------------------------------------------------------------------------

    def read_tensors(self) -> None:
        """Reads the initializers. Those that are also listed as inputs are constants."""
        if self.graph.sparse_initializer:
            raise ParseError(
                Diagnostic("sparse initializers are not supported", Location(self.file))
            )
        for tensor, place in zip_longest(self.graph.initializer, self.places):
            name = text(tensor.name)
            self.reserve(name, "an initializer")
            self.known[name] = self.reader.array(tensor, place=place)
            self._budget += 4 * self.known[name].nbytes

    def run(self) -> None:
        """Converts every node that an output needs."""
        producers: dict[str, int] = {}
        for index, call in enumerate(self._calls):
            for name in filter(None, call.outputs):
                self.reserve(name, f"a result of `{call.name}`")
                producers[name] = index
                self._makers[name] = call
        with np.errstate(all="ignore"):
            for index in self._order(producers):
                call = self._calls[index]
                try:
                    self._try(call)
                except Unsupported as error:
                    self._needed |= dict.fromkeys(error.needs)
                    self._fail(call, error.reason, error.help)

    def _order(self, producers: Mapping[str, int]) -> list[int]:
        """The nodes that outputs need, each after those it reads, else as in the model."""
        needs: dict[int, set[int]] = {}
        pending = [producers[n] for n in self._outputs() if n in producers]
        while pending:
            index = pending.pop()
            if index in needs:
                continue
            call = self._calls[index]
            for name in call.reads:
                if name not in self._owners:
                    message = f"`{call.name}` reads `{name}`, which nothing defines"
                    raise ParseError(Diagnostic(message, call.location))
            needs[index] = {producers[n] for n in call.reads if n in producers}
            pending += needs[index]
        try:
            return in_order({index: needs[index] for index in sorted(needs)})
        except Cycle as cycle:
            stuck = [self._calls[index] for index in sorted(needs) if index in cycle.members]
            message = f"the graph has a cycle through {_names([call.name for call in stuck])}"
            raise ParseError(Diagnostic(message, stuck[0].location)) from None

    def _outputs(self) -> Iterable[str]:
        return [text(info.name) for info in self.graph.output]

    def _try(self, call: Call) -> None:
        """Converts a node. Raises `Unsupported`, without reason for an unknown operator."""
        try:
            self._convert(call)
        except ShapeError as error:
            first, sizes = error.diagnostics[0], self._open_sizes()
            help = fix_size(sizes) if first.help and sizes else first.help
            raise Unsupported(first.message, help) from None

    def _open_sizes(self) -> list[str]:
        """The symbolic sizes of the inputs, but for batches."""
        types = [self.builder.types[name] for name in self.builder.inputs]
        dims = [dim for type in types for dim in type.shape[1:] if isinstance(dim, Sym)]
        return list(dict.fromkeys(dim.name for dim in dims))

    def _convert(self, call: Call) -> None:
        if call.opset < 6:
            call.ignore("consumed_inputs")
        local = self._bodies.is_local(call)
        standard = call.domain in DOMAINS and not local
        converter = None if local else _converter(call)
        folder = FOLDERS.get(call.kind) if standard else None
        loop = LOOPS.get(call.kind) if standard else None
        if not (converter or folder or loop or self._bodies.has(call)):
            raise Unsupported("", _hint(call))
        if any(name in self._failed for name in call.reads):
            self._failed.update(call.outputs)  # the reason is told already
            return None
        inputs = list(filter(None, call.inputs))
        constant = all(name in self.known for name in inputs)
        symbolic = any(self._is_symbolic(name) for name in inputs)
        if folder is not None and (constant or self._is_typed(call)):
            try:
                self._keep(call.output(0), folder(call))
                return self._check(call)
            except Unsupported:
                if converter is None or symbolic:
                    raise
        if converter is None:
            if folder is not None:
                needs = {need for name in inputs for need in self.inputs_behind(name)}
                raise Unsupported("its inputs are not known at import", _GENERIC, sorted(needs))
            if loop is not None:
                return loop(self, call)
            body = self._bodies.find(call)
            if body is not None:
                return self.inline(call, body)
            raise Unsupported("", _hint(call))
        if constant and not symbolic:
            self._compute(call, converter)
        else:
            converter(call)
        return self._check(call)

    def _is_typed(self, call: Call) -> bool:
        """Whether a node reads but the types of its inputs, apart from known elements."""
        return call.kind in ("Shape", "Size") or call.kind == "CastLike" and call.is_known(0)

    def _is_symbolic(self, name: str) -> bool:
        return name in self.known and self.known[name].dtype == object

    def inline(self, call: Call, body: Body) -> None:
        """Converts the nodes that stand for a node."""
        if body.key and body.key in self._open:
            raise Unsupported("its function calls itself")
        if len(self._open) == MAX_DEPTH:
            raise Unsupported(f"functions and branches are nested more than {MAX_DEPTH} deep")
        self._inlined += len(body.nodes)
        if self._inlined > MAX_NODES:
            raise Unsupported(f"the functions of the model have more than {MAX_NODES} nodes")
        placed = body.placed(self._scope(call), call.outputs)
        calls = [Call(self, node, body.opset) for node in placed.nodes]
        self._used.update(placed.outputs, call.outputs, *(inner.reads for inner in calls))
        for name, tensor in placed.constants:
            self.reserve(name, "an initializer")
            self.known[name] = self.reader.array(tensor)
        self._open.append(body.key)
        for inner in calls:
            self._convert_inner(call, inner)
        self._open.pop()
        for outer, name in zip(call.outputs, placed.outputs, strict=False):
            if not outer or outer not in self._used:
                continue
            if not self.is_made(name):
                raise Unsupported(f"nothing inside makes its output `{name}`")
            if outer != name and name in self.known:
                self.known[outer] = self.known[name]
            elif outer != name:
                self.define(outer, self.value(name))
        call.ignore(*call.unread())

    def _scope(self, call: Call) -> str:
        """What the names of values inside a node start with; no two nodes have the same."""
        name = next(filter(None, call.outputs), call.name)
        self._scopes[name] += 1
        return name if self._scopes[name] == 1 else f"{name}/{self._scopes[name]}"

    def _convert_inner(self, call: Call, inner: Call) -> None:
        for name in inner.reads:
            if not self.is_made(name):
                raise Unsupported(f"inside, `{inner.name}` reads `{name}`, which nothing defines")
        for name in filter(None, inner.outputs):
            if name not in call.outputs:
                self.reserve(name, f"a result of `{inner.name}`")
            elif self.is_made(name):
                raise Unsupported(f"inside, two nodes make its output `{name}`")
            self._makers.setdefault(name, inner)
        try:
            self._try(inner)
        except Unsupported as error:
            reason = error.reason
            if not reason:
                reason = f"inside, operator {inner.kind} is not supported"
            elif not reason.startswith("inside, "):  # else it names the innermost node already
                reason = f"inside, {inner.kind}: {reason}"
            raise Unsupported(reason, error.help, error.needs) from None

    def is_made(self, name: str) -> bool:
        """Whether an ONNX value is known, or a value of the graph."""
        return name in self.known or name in self._values

    def _compute(self, call: Call, converter: Converter) -> None:
        """Converts a node in a graph of its own and keeps what that evaluates to."""
        outer = self.builder, self._values
        self.builder, self._values, self.computing = Builder(call.name), {}, True
        try:
            converter(call)
            found = {name: self._values[name] for name in call.outputs if name in self._values}
            arrays = evaluate(self.builder, found.values(), self._budget)
        finally:
            (self.builder, self._values), self.computing = outer, False
        for name, array in zip(found, arrays, strict=True):
            self._keep(name, array)

    def _keep(self, name: str, array: Array) -> None:
        if array.dtype == object and all(isinstance(d, int) for d in array.ravel()):
            array = array.astype(np.int64)
        if array.base is None:
            self._budget -= array.nbytes
        if self._budget < 0:
            raise Unsupported("the constants that the model computes are absurdly large")
        self.known[name] = array

    def _check(self, call: Call) -> None:
        unread = call.unread()
        if unread:
            raise Unsupported(f"attribute {_names(unread)} is not known here")
        for index, name in enumerate(call.outputs):
            if name in self._used and name not in self._values and name not in self.known:
                raise Unsupported(f"output {index} (`{name}`) is not supported")

    # -- the end ---------------------------------------------------------------------------------

    def _fail(self, call: Call, reason: str, help: str) -> None:
        kind = call.kind if call.domain in DOMAINS else f"{call.domain}.{call.kind}"
        self._problems[kind, reason, help].append(call.name)
        self._failed.update(call.outputs)

    def finish(self) -> Graph:
        """The graph. Raises `ParseError` with everything that could not be converted."""
        if self._needed:
            raise ValuesNeeded(self._diagnostics(), self._needed)
        if self._problems:
            raise ParseError(self._diagnostics())
        names = list(self._outputs())
        twice = [name for name, count in Counter(names).items() if count > 1]
        for name in names:
            at = Location(self.file, name=name)
            if name not in self._owners:
                raise ParseError(Diagnostic(f"nothing defines the output `{name}`", at))
            if twice:
                raise ParseError(Diagnostic(f"two outputs are called `{twice[0]}`", at))
            try:
                self.builder.output(name, self.value(name))
            except Unsupported as error:
                raise ParseError(
                    Diagnostic(f"output {error.reason}", at, help=error.help)
                ) from None
        if not names:
            raise ParseError(Diagnostic("the model has no outputs", Location(self.file)))
        return self.builder.finish()

    def _diagnostics(self) -> Iterable[Diagnostic]:
        """Unknown operators first, then what is wrong with known ones."""
        for (kind, reason, help), names in sorted(self._problems.items(), key=_is_known):
            count = f"{len(names)} nodes" if len(names) > 1 else "1 node"
            what = f"{kind}: {reason}" if reason else f"operator {kind} is not supported"
            message = f"{what} ({count}: {_names(names)})"
            yield Diagnostic(message, Location(self.file, name=names[0]), help=help)


def _converter(call: Call) -> Converter | None:
    """What converts nodes of that kind, if something does."""
    if call.domain == MICROSOFT:
        return CONTRIB.get(call.kind)
    return CONVERTERS.get(call.kind) if call.domain in DOMAINS else None


def _hint(call: Call) -> str:
    """What to do about an operator that is not supported."""
    by_domain = {f"{MICROSOFT}.nchwc": _LAYOUTS}
    return by_domain.get(call.domain) or HINTS.get(call.kind, _GENERIC)


def _is_known(problem: tuple[tuple[str, str, str], list[str]]) -> bool:
    return problem[0][1] != ""


def _names(names: Iterable[str]) -> str:
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
