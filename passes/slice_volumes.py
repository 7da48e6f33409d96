"""slice-volumes: convolutions of volumes as convolutions of maps, which have faster algorithms.

    %y = conv(%x, %w) : f32[N,64,8,56,56]        with a kernel of 3x3x3

      = %s = stack_slices(%x') {depth=8, window=3, pad=[1,1]} : f32[8*N,192,56,56]
        %y' = conv2d(%s, %w') {pad=[1,1,1,1]}                 : f32[8*N,64,56,56]

What a kernel sees along the depth becomes channels of a slice. Where it sees nothing else, as with
3x1x1, the volume's rows are a map with the depth as height, and nothing is stacked:

    %y' = conv2d(%x', %w') {pad=[1,0,1,0]}                    : f32[N,64,8,3136]

A region of convolutions and what is between them (elementwise ops, pools, concatenation, resizing)
is changed as one: values stay in the form in which they are made, and are put into the other one
where somebody reads that. Pools come as ops on maps, [N, C * D, H, W] and [N, C, D, H * W], between
reshapes, and become such of slices and rows. Whether it pays is asked of the kernels.

| what                                         | why it stays                                      |
|----------------------------------------------|---------------------------------------------------|
| weights that are no constants                | they would be moved in every run                  |
| groups, with a kernel that sees the depth    | stacked channels of a group are not side by side  |
| an epilogue's operand as large as a slice    | it is neither a volume nor one number a channel   |
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node, fresh_name
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import (
    AvgPool2d,
    Border,
    Concat,
    Conv2d,
    ConvNd,
    Coordinates,
    Expand,
    Filling,
    MaxPool2d,
    Pointwise,
    Reshape,
    Resize,
    RowsToSlices,
    SlicesToRows,
    StackSlices,
)
from cnnc.ir.types import DType, Shape, TensorType, known
from cnnc.passes.base import Context, Pass, merge_locations
from cnnc.passes.choices import change_where_faster

Sizes = tuple[int, int, int, int]  # C, D, H, W

_LEAST_SAVED = 0.1  # of the time of a region


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceVolumes(Pass):
    """Compute convolutions of volumes as such of slices or rows where that is faster."""

    name: ClassVar[str] = "slice-volumes"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return change_where_faster(graph, context, _sliced, _LEAST_SAVED)


class _Form(Enum):
    """How a volume of [N, C, D, H, W] is held."""

    WHOLE = "whole"  # as it is
    ROWS = "rows"  # [N, C, D, H * W]
    SLICES = "slices"  # [N * D, C, H, W]


def _sliced(graph: Graph, node: Node) -> Graph | None:
    """The graph with the region that begins with a convolution changed, if it is such a one."""
    if graph.producers.get(node.name) != node or not _is_convolution(graph, node):
        return None
    volumes = _volumes(graph)
    region = _region(graph, volumes, node)
    first = next(n for n in graph.nodes if n.name in region and _is_convolution(graph, n))
    return _Change(graph, volumes, region).apply() if first == node else None


def _volumes(graph: Graph) -> dict[str, Sizes]:
    """Value -> (C, D, H, W) of the volume that it is, whole or as maps for its planes or rows."""
    found: dict[str, Sizes] = {}
    for name in graph.inputs:
        _add_volume(found, name, graph.types[name])
    for node in graph.nodes:
        result, sizes = (
            graph.types[node.name],
            found.get(node.operands[0]) if node.operands else None,
        )
        _add_volume(found, node.name, result)
        if result.rank != 4 or result.dtype is not DType.F32 or sizes is None:
            continue
        c, d, h, w = sizes
        if isinstance(node.op, Reshape) and _view(result, sizes):
            found[node.name] = sizes
        elif isinstance(node.op, MaxPool2d | AvgPool2d):
            x, (_, _, rows, columns) = graph.types[node.operands[0]], result.image.dims
            view = _view(x, sizes)
            if view is _Form.SLICES:
                found[node.name] = (c, d, rows, columns)
            elif view is _Form.ROWS and columns == h * w and node.op.span[1] == 1:
                found[node.name] = (c, rows, h, w)
    return found


def _add_volume(found: dict[str, Sizes], name: str, type: TensorType) -> None:
    """Notes a value that is a whole volume."""
    if _is_volume(type):
        _, c, d, h, w = type.image.dims
        found[name] = (c, d, h, w)


def _view(type: TensorType, sizes: Sizes) -> _Form | None:
    """As what a value with as many elements holds a volume of these sizes: as it is, as its planes
    [N, C * D, H, W], which are maps as slices are, or as its rows."""
    c, d, h, w = sizes
    views: dict[Shape, _Form] = {
        (c, d, h, w): _Form.WHOLE,
        (c, d, h * w): _Form.ROWS,
        (c * d, h, w): _Form.SLICES,
    }
    return views.get(type.shape[1:])


def _region(graph: Graph, volumes: Mapping[str, Sizes], start: Node) -> set[str]:
    """The names of the nodes that work on volumes and read each other's."""
    found, pending = {start.name}, [start]
    while pending:
        node = pending.pop()
        makers = (graph.producers.get(name) for name in node.operands)
        for other in (*filter(None, makers), *graph.users[node.name]):
            if other.name not in found and _takes_part(graph, volumes, other):
                found.add(other.name)
                pending.append(other)
    return found


def _takes_part(graph: Graph, volumes: Mapping[str, Sizes], node: Node) -> bool:
    """Whether a node may be part of a region."""
    result, op = graph.types[node.name], node.op
    if node.name not in volumes or not node.operands:
        return False
    x, *others = node.operands
    match op:
        case Pointwise():
            same = x not in graph.constants and graph.types[x] == result
            return same and all(_fits(graph, name, result) for name in others)
        case Reshape():
            return volumes.get(x) == volumes[node.name]
        case MaxPool2d() | AvgPool2d():
            return x in volumes
        case Concat():
            return op.axis == 1 and result.rank == 5 and all(n in volumes for n in node.operands)
        case Resize():
            inner = all(part.axis >= 2 for part in op.axes)
            return x in volumes and inner and op.coordinates is not Coordinates.TF_CROP_AND_RESIZE
    return _is_border(graph, node) or _is_convolution(graph, node)


def _is_volume(type: TensorType) -> bool:
    """Whether this is f32[N, C, D, H, W] with something in it, its sizes being numbers but N."""
    sizes = [known(size) for size in type.shape[1:]]
    return type.rank == 5 and type.dtype is DType.F32 and all(sizes) and type.shape[0] != 0


def _is_border(graph: Graph, node: Node) -> bool:
    """Whether a node puts zeros around volumes, as a convolution's border is."""
    op = node.op
    if not isinstance(op, Border) or op.mode is not Filling.CONSTANT or op.value != 0:
        return False
    if any((*op.before[:2], *op.after[:2])) or min(*op.before, *op.after) < 0:
        return False
    (x,) = node.operands
    return x not in graph.constants and _is_volume(graph.types[x])


def _is_convolution(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution of volumes that can be one of maps."""
    op, result = node.op, graph.types[node.name]
    if not isinstance(op, ConvNd) or not _is_volume(result):
        return False
    (x, *parameters), extras = op.split(node.operands)
    if x in graph.constants or not all(name in graph.constants for name in parameters):
        return False
    window = _seen(graph, node, op).window
    stacks = window.form is _Form.SLICES and window.weight.shape[2] > 1
    return (op.groups == 1 or not stacks) and all(_fits(graph, name, result) for name in extras)


def _fits(graph: Graph, name: str, result: TensorType) -> bool:
    """Whether an operand beside a volume can be had beside its slices and rows: it is a volume as
    large, or has one number for each channel, be it a constant's or an image's."""
    if name in graph.constants:
        return _numbers(graph.constants[name]) is not None
    return graph.types[name] in (result, _gate(result))


def _gate(type: TensorType) -> TensorType:
    """[N, C, 1, 1, 1], of a volume's type."""
    return replace(type, shape=(*type.shape[:2], 1, 1, 1))


def _numbers(array: Array) -> Array | None:
    """[..., C, 1, 1, 1] as [C, 1, 1], or None if the array is not that."""
    shape = (1,) * (5 - array.ndim) + array.shape
    return array.reshape(-1, 1, 1) if shape == (1, array.size, 1, 1, 1) else None


@dataclass(frozen=True, slots=True)
class _Window:
    """A convolution's weight [OC, C, KD, KH, KW], and the rest for the depth, rows and columns."""

    weight: Array
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def form(self) -> _Form | None:
        """What it works on; None if either will do, as it sees single elements."""
        beside = (*self.before[1:], *self.after[1:])
        if self.weight.shape[3:] != (1, 1) or self.stride[1:] != (1, 1) or any(beside):
            return _Form.SLICES
        along = self.weight.shape[2] * self.stride[0] + self.before[0] + self.after[0]
        return _Form.ROWS if along > 1 else None

    def stack(self, depth: int) -> StackSlices:
        """What it sees of that many slices."""
        return StackSlices(
            depth=depth,
            window=self.weight.shape[2],
            stride=self.stride[0],
            dilation=self.dilation[0],
            pad=(self.before[0], self.after[0]),
        )

    def trimmed(self, depth: int) -> _Window:
        """Without what is in the border along the depth wherever the window stands."""
        if not np.isfinite(self.weight).all():  # times the zeros there it makes NaN
            return self
        stack, taps = self.stack(depth), self.weight.shape[2]
        met = [tap for tap in range(taps) if stack.met(tap)] or [0, taps - 1]
        first = min(met[0], stack.pad[0] // stack.dilation)
        last = min(taps - 1 - met[-1], stack.pad[1] // stack.dilation)
        return replace(
            self,
            weight=self.weight[:, :, first : taps - last],
            before=(stack.pad[0] - first * stack.dilation, *self.before[1:]),
            after=(stack.pad[1] - last * stack.dilation, *self.after[1:]),
        )

    def on_maps(self, form: _Form, op: ConvNd) -> tuple[Conv2d, Array]:
        """(the convolution of slices or rows, its weight)."""
        if form is _Form.ROWS:
            down, weight = 0, self.weight[:, :, :, 0]
        else:
            out, _, _, *kernel = self.weight.shape
            down, weight = 1, self.weight.swapaxes(1, 2).reshape(out, -1, *kernel)
        conv = Conv2d(
            stride=(self.stride[down], self.stride[2]),
            dilation=(self.dilation[down], self.dilation[2]),
            pad=(self.before[down], self.before[2], self.after[down], self.after[2]),
            groups=op.groups,
            epilogue=op.epilogue,
        )
        return conv, np.ascontiguousarray(weight)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a convolution reads: the volume inside of its border, if it has one, and how."""

    x: str
    border: Node | None
    depth: int
    window: _Window


def _seen(graph: Graph, node: Node, op: ConvNd) -> _Seen:
    """What a convolution of volumes reads."""
    x, weight, *_ = node.operands
    before: tuple[int, ...] = (0, 0, 0)
    after = before
    maker, border = graph.producers.get(x), None
    if maker is not None and isinstance(maker.op, Border) and _is_border(graph, maker):
        (x,), border = maker.operands, maker
        before, after = maker.op.before[2:], maker.op.after[2:]
    depth = graph.types[x].image.dims[2]
    window = _Window(graph.constants[weight], op.stride, op.dilation, before, after)
    return _Seen(x, border, depth, window.trimmed(depth))


class _Change:
    """Makes the graph anew, a region of it in other forms."""

    def __init__(self, graph: Graph, volumes: Mapping[str, Sizes], region: Container[str]) -> None:
        self.graph, self.region = graph, region
        self.volumes = dict(volumes)
        self.builder = Builder(graph.name)
        self.forms: dict[str, dict[_Form, str]] = {}

    def apply(self) -> Graph:
        """The graph."""
        graph, builder = self.graph, self.builder
        for name in graph.inputs:
            builder.input(name, graph.types[name])
        for name, array in graph.constants.items():
            builder.constant(name, array)
        for node in graph.nodes:
            if node.name not in self.region:
                operands = [self.get(name, _Form.WHOLE) for name in node.operands]
                builder.add(node.op, operands, node.results, node.locations)
            else:
                self.change(node)
        for public, value in graph.outputs:
            builder.output(public, self.get(value, _Form.WHOLE))
        builder.sweep(graph.constants)
        return builder.finish()

    def change(self, node: Node) -> None:
        """Adds a node of the region; borders and reshapes are added where they are read whole."""
        op, form = node.op, self.made(node.operands)
        match op:
            case ConvNd():
                self.convolve(node, op)
            case Resize():
                self.resize(node, op)
            case Pointwise() | Concat():
                names = [self.beside(name, node, form) for name in node.operands]
                self.add(op, names, node, form)
            case MaxPool2d() | AvgPool2d():
                (x,) = node.operands
                if form is not _Form.WHOLE:
                    form = _view(self.graph.types[x], self.volumes[x]) or form
                self.add(op, [self.get(x, form)], node, form)

    def resize(self, node: Node, op: Resize) -> None:
        """Adds what resizes rows, along the depth, and then what resizes slices."""
        (x,) = node.operands
        depth = tuple(part for part in op.axes if part.axis == 2)
        maps = tuple(replace(part, axis=part.axis - 1) for part in op.axes if part.axis > 2)
        if not maps:
            return self.add(op, [self.get(x, _Form.ROWS)], node, _Form.ROWS)
        if depth:
            c, _, h, w = self.volumes[x]
            deep = self.fresh(node.name, "deep")
            rows = replace(op, axes=depth)
            self.builder.add(rows, [self.get(x, _Form.ROWS)], deep, node.locations)
            self.volumes[deep], self.forms[deep] = (c, depth[0].size, h, w), {_Form.ROWS: deep}
            x = deep
        self.add(replace(op, axes=maps), [self.get(x, _Form.SLICES)], node, _Form.SLICES)

    def convolve(self, node: Node, op: ConvNd) -> None:
        """Adds a convolution of maps in a convolution's place."""
        (_, weight, *bias), extras = op.split(node.operands)
        seen = _seen(self.graph, node, op)
        window, stack = seen.window, seen.window.stack(seen.depth)
        if seen.border is not None:
            node = replace(node, locations=merge_locations(node, seen.border))
        form = window.form or self.made([seen.x, *extras], _Form.ROWS)
        source = self.get(seen.x, form)
        if form is _Form.SLICES and stack != StackSlices(depth=seen.depth, window=1):
            name = self.fresh(seen.x, "stacked")
            source = self.builder.add(stack, [source], name, node.locations)
        conv, array = window.on_maps(form, op)
        taps = self.builder.constant(self.fresh(weight, form.value), array)
        others = [self.beside(name, node, form) for name in extras]
        self.add(conv, [source, taps, *bias, *others], node, form)

    def add(self, op: Op, operands: Sequence[str], node: Node, form: _Form) -> None:
        """Adds an op that makes a node's result in some form."""
        name = node.name if form is _Form.WHOLE else self.fresh(node.name, form.value)
        self.forms[node.name] = {form: self.builder.add(op, operands, name, node.locations)}

    def made(self, names: Iterable[str], default: _Form = _Form.WHOLE) -> _Form:
        """The form that the first of these values was made in which was not made whole."""
        forms = (form for name in names for form in self.forms.get(self.origin(name), ()))
        return next((form for form in forms if form is not _Form.WHOLE), default)

    def beside(self, name: str, node: Node, form: _Form) -> str:
        """An operand of an elementwise op that works on volumes in some form."""
        array, depth = self.graph.constants.get(name), self.volumes[node.name][1]
        if form is _Form.SLICES and name in self.volumes and self.volumes[name][1] != depth:
            rows = self.get(name, _Form.ROWS)  # a number for all slices of a volume
            deep = self.builder.add(
                Expand(shape=(1, 1, depth, 1)), [rows], self.fresh(name, "deep")
            )
            return self.builder.add(RowsToSlices(height=1), [deep], self.fresh(name, "gate"))
        if array is None or form is _Form.WHOLE:
            return self.get(name, form)
        return self.builder.constant(self.fresh(name, "numbers"), array.reshape(-1, 1, 1))

    def get(self, name: str, form: _Form) -> str:
        """A value in a form, which is made if it is not there."""
        if form is not _Form.WHOLE:
            name = self.origin(name)
        elif name in self.builder.types:
            return name
        forms = self.forms.setdefault(name, {})
        if form not in forms:
            forms[form] = self.make(name, form, forms)
        return forms[form]

    def make(self, name: str, form: _Form, forms: Mapping[_Form, str]) -> str:
        """Adds what puts a volume into another form."""
        maker = self.graph.producers.get(name)
        locations = maker.locations if maker else ()
        c, d, h, w = self.volumes[name]
        if form is _Form.WHOLE:
            op: Op = Reshape(shape=(0, *self.graph.types[name].image.dims[1:]))
            source = name
            if maker is not None and self.is_late(maker):
                source = maker.operands[0]
                if isinstance(maker.op, Border) or self.made([source]) is _Form.WHOLE:
                    operands = [self.get(source, form)]
                    return self.builder.add(maker.op, operands, name, locations)
            return self.builder.add(op, [self.get(source, _Form.ROWS)], name, locations)
        if form is _Form.SLICES:
            op, source = RowsToSlices(height=h), self.get(name, _Form.ROWS)
        elif _Form.SLICES in forms:
            op, source = SlicesToRows(depth=d), forms[_Form.SLICES]
        else:
            op, source = Reshape(shape=(0, c, d, h * w)), self.get(name, _Form.WHOLE)
        return self.builder.add(op, [source], self.fresh(name, form.value), locations)

    def is_late(self, node: Node) -> bool:
        """Whether what a node makes is not there until somebody reads it whole."""
        return node.name in self.region and isinstance(node.op, Border | Reshape)

    def origin(self, name: str) -> str:
        """The value that the same volume has before it was reshaped."""
        maker = self.graph.producers.get(name)
        while maker is not None and self.is_late(maker) and isinstance(maker.op, Reshape):
            name = maker.operands[0]
            maker = self.graph.producers.get(name)
        return name

    def fresh(self, name: str, what: str) -> str:
        """A name that neither graph has."""
        return fresh_name(f"{name}.{what}", self.graph.types, self.builder.types)
