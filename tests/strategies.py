"""Hypothesis strategies: legal uses of every op, and random networks.

    @given(graphs())
    def test(graph: Graph) -> None: ...

    @given(operands_for("conv2d"))
    def test(use: tuple[Op, tuple[TensorType, ...]]) -> None: ...

Networks have a symbolic batch that no op mixes, finite values for inputs in -1..1, shared weights,
several outputs, outputs that are read inside, residuals and dead ends.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from draws import Draw, Use, Uses, epilogue, pair, sizes, smaller, unary
from elementwise_cases import ARITHMETIC, TAME
from hypothesis import strategies as st
from map_draws import MAPS, ROWS
from move_draws import MOVES

from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import Location
from cnnc.ir.op import Array, Binary, Fusable, Op, Unary
from cnnc.ir.ops import (
    OPS,
    Add,
    AffineGrid,
    BatchNorm,
    Concat,
    Conv2d,
    Coordinates,
    CumSum,
    Dense,
    Dropout,
    Exp,
    Flatten,
    Gather,
    GlobalAvgPool,
    GridSample,
    How,
    Interpolation,
    LeakyRelu,
    Linear,
    MatMul,
    Mul,
    Normalize,
    Padding,
    Pointwise,
    Reduction,
    Reshape,
    Resize,
    ResizedAxis,
    Sigmoid,
    Softmax,
    Sqrt,
    Sub,
)
from cnnc.ir.types import DType, Shape, Sym, TensorType

BATCH = Sym("N")
# These make so much of small differences that networks are better without.
_STEEP: tuple[type[Unary], ...] = (Exp, Sqrt)


def _dense(draw: Draw, x: TensorType) -> Use:
    out = draw(st.integers(1, 4))
    own: tuple[Shape, ...] = ((out, *sizes(x)),)
    own += ((out,),) if draw(st.booleans()) else ()
    return epilogue(draw, Dense(), own, x)


def _batch_norm(draw: Draw, x: TensorType) -> Use:
    return BatchNorm(epsilon=draw(st.sampled_from([1e-5, 1e-3]))), (x.shape[1:2],) * 4


def _softmax(draw: Draw, x: TensorType) -> Use:
    axes = [axis for axis in range(-x.rank, x.rank) if axis % x.rank]
    return Softmax(axis=draw(st.sampled_from(axes))), ()


def _axes(draw: Draw, x: TensorType) -> tuple[int, ...]:
    """Some axes, not the batch; in any order, counted from either end."""
    axes = draw(st.lists(st.sampled_from(range(1, x.rank)), unique=True, min_size=1))
    return tuple(axis - x.rank if draw(st.booleans()) else axis for axis in axes)


def _reduction(draw: Draw, x: TensorType) -> Use:
    axes = _axes(draw, x)
    keep = len(axes) == x.rank - 1 or draw(st.booleans())
    how = draw(st.sampled_from((How.MEAN, How.MAX, How.MIN, How.L2)))
    return epilogue(draw, Reduction(how=how, axes=axes, keep=keep), (), x)


def _normalize(draw: Draw, x: TensorType) -> Use:
    op = Normalize(axes=_axes(draw, x), epsilon=0.1, centred=draw(st.booleans()))
    return epilogue(draw, op, (), x)


def _cum_sum(draw: Draw, x: TensorType) -> Use:
    op = CumSum(axis=_axes(draw, x)[0], exclusive=draw(st.booleans()), reverse=draw(st.booleans()))
    return op, ()


def _pointwise(draw: Draw, x: TensorType) -> Use:
    return epilogue(draw, Pointwise(), (), x)


def _concat(draw: Draw, x: TensorType) -> Use:
    return Concat(axis=draw(st.integers(1, x.rank - 1))), (x.shape,) * draw(st.integers(0, 2))


def _flatten(draw: Draw, x: TensorType) -> Use:
    return Flatten(), ()


def _reshape(draw: Draw, x: TensorType) -> Use:
    channels, *rest = sizes(x)
    product = int(np.prod(rest))
    options = [(0, -1), (0, channels, product), (0, -1, product), (0, channels * product)]
    return Reshape(shape=draw(st.sampled_from([*options, (0, *sizes(x))]))), ()


def _dropout(draw: Draw, x: TensorType) -> Use:
    return Dropout(rate=draw(st.sampled_from([0.0, 0.2]))), ()


def _matmul(draw: Draw, x: TensorType) -> Use:
    op = MatMul(transpose_b=draw(st.booleans()))
    depth, columns = sizes(x)[-1], draw(st.integers(1, 5))
    shared = draw(st.sampled_from([(), sizes(x)[:-2]]))
    matrix = (columns, depth) if op.transpose_b else (depth, columns)
    return epilogue(draw, op, ((*shared, *matrix),), x)


def _resize(draw: Draw, x: TensorType) -> Use:
    scales = st.sampled_from([0.0, 0.5, 1.5, 2.0])
    axes = [
        ResizedAxis(axis=axis, size=int(size * scale) or draw(st.integers(1, 6)), scale=scale)
        for axis, size in enumerate(sizes(x), 1)
        if draw(st.booleans())
        for scale in [draw(scales)]
        if not scale or int(size * scale)
    ]
    op = Resize(
        axes=tuple(axes),
        mode=draw(st.sampled_from(Interpolation)),
        coordinates=draw(st.sampled_from(Coordinates)),
        antialias=draw(st.booleans()),
    )
    return op, ()


def _gather(draw: Draw, x: TensorType) -> Use:
    axis = draw(st.integers(1, x.rank - 1))
    size = sizes(x)[axis - 1]
    places = st.integers(-size, size - 1)
    ranks = {2: [1], 3: [1, 0, 2], 4: [1, 0]}[x.rank]
    shape = [draw(st.integers(1, 3)) for _ in range(draw(st.sampled_from(ranks)))]
    indices = np.array([draw(places) for _ in range(math.prod(shape))], np.int64)
    return Gather(axis=axis), (indices.reshape(shape),)


_ANY_RANK: Uses = {
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "reduce": _reduction,
    "normalize": _normalize,
    "cum_sum": _cum_sum,
    "pointwise": _pointwise,
    "concat": _concat,
    "flatten": _flatten,
    "reshape": _reshape,
    "dropout": _dropout,
    "matmul": _matmul,
    "resize": _resize,
    "gather": _gather,
    **MOVES,
}
# The ranks of the first operand, if not any.
_RANKS = {**dict.fromkeys(MAPS, (4,)), "conv": (3, 4), "col2im": (3,), "dense": (2,)}
DRAWN_OPS = (
    *MAPS,
    *ROWS,
    *_ANY_RANK,
    "dense",
    *(op.name for op in TAME + _STEEP),
    *(op.name for op in ARITHMETIC),
)
# Only as a whole that makes sense.
DRAWN_TOGETHER = ("affine_grid", "grid_sample")


def fits(name: str, rank: int) -> bool:
    """Whether an op takes a first operand of that rank."""
    return rank in _RANKS.get(name, (rank,))


def draw_use(draw: Draw, name: str, x: TensorType) -> Use:
    """Attributes and further operands for an op on x."""
    uses = MAPS | ROWS | _ANY_RANK | {"dense": _dense}
    if name in uses:
        return uses[name](draw, x)
    op = OPS[name]
    if issubclass(op, Binary):
        return op(), (smaller(draw, x),)
    assert issubclass(op, Unary)
    return (LeakyRelu(alpha=0.2) if op is LeakyRelu else op()), ()


def _operand_type(operand: Shape | Array) -> TensorType:
    if isinstance(operand, np.ndarray):
        return TensorType(operand.shape, DType(operand.dtype.name))
    return TensorType(operand)


@st.composite
def operands_for(draw: Draw, name: str) -> tuple[Op, tuple[TensorType, ...]]:
    """An op of that name and operand types, all sizes being numbers, that fit it."""
    rank = draw(st.sampled_from([rank for rank in (4, 3, 2) if fits(name, rank)]))
    x = TensorType(tuple(draw(st.integers(1, 5)) for _ in range(rank)))
    op, others = draw_use(draw, name, x)
    return op, (x, *map(_operand_type, others))


class _Network:
    """A network being drawn: the builder and the values to go on from."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.builder = Builder("net")
        self.pool = [self._input(f"x{i}") for i in range(draw(st.sampled_from([1, 1, 2])))]
        self.shared: dict[object, str] = {}
        self.products = 2  # of values: more of them would overflow

    def _input(self, name: str) -> str:
        channels, side = self.draw(st.integers(1, 4)), st.integers(1, 6)
        shape = (BATCH, channels, self.draw(side), self.draw(side))
        return self.builder.input(name, TensorType(shape))

    def type(self, value: str) -> TensorType:
        return self.builder.types[value]

    def pick(self) -> str:
        """The latest value, or now and then any."""
        latest = self.draw(st.integers(0, 3))
        return self.pool[-1] if latest else self.draw(st.sampled_from(self.pool))

    def constant(self, shape: Shape | Array, role: str) -> str:
        """A constant of random numbers, or one drawn before with the same shape and role.

        An array is a constant itself.
        """
        if isinstance(shape, np.ndarray):
            name = self.builder.fresh(f"{role}{len(self.builder.constants)}")
            return self.builder.constant(name, shape)
        key = (shape, role)
        if key not in self.shared or self.draw(st.booleans()):
            name = self.builder.fresh(f"{role}{len(self.builder.constants)}")
            self.shared[key] = self.builder.constant(name, self._array(shape, role))
        return self.shared[key]

    def _array(self, shape: Shape, role: str) -> Array:
        dims = TensorType(shape).dims
        values = self.rng.uniform(0.5, 1.5, dims)
        if role in ("zero", "one"):
            values = np.full(dims, float(role == "one"))
        elif role != "variance":
            values *= self.rng.choice([-1, 1], dims)
        if role == "weight":
            values /= np.sqrt(np.prod(dims[1:]))
        return values.astype(np.float32)

    def apply(self, op: Op, *operands: str) -> str:
        """Adds the op, unless the result would be too large: then its first operand is kept."""
        result = op.infer(*map(self.type, operands))
        assert isinstance(result, TensorType)
        if np.prod(sizes(result)) > 400:
            return operands[0]
        name = self.builder.fresh(f"v{len(self.builder.nodes)}")
        at = Location("net.cnn", len(self.builder.nodes) + 1, 3, 9, name)
        return self.builder.add(op, operands, name, [at])

    def use(self, name: str, x: str, plain: bool = False) -> str:
        """The op on x, its other operands constants; `plain` leaves out the epilogue."""
        op, shapes = draw_use(self.draw, name, self.type(x))
        if plain and isinstance(op, Fusable):
            shapes = tuple(op.split(shapes)[0])
            op = replace(op, epilogue=())
        return self.apply(op, x, *map(self.constant, shapes, self._roles(op, len(shapes))))

    def _roles(self, op: Op, count: int) -> list[str]:
        if isinstance(op, BatchNorm):
            shift = self.draw(st.sampled_from(["shift", "zero"]))
            return ["scale", shift, "zero" if shift == "zero" else "mean", "variance"]
        if isinstance(op, Binary) and self.draw(st.integers(0, 3)) == 0:
            return ["zero" if isinstance(op, Add | Sub) else "one"] * count
        first = ["weight"] if isinstance(op, Linear | MatMul) else []
        return (first + ["factor"] * count)[:count]

    # -- moves ---------------------------------------------------------------------------------

    def single(self, x: str) -> str:
        """Any op with constants."""
        left_out = ("concat", *(op.name for op in _STEEP))
        names = [n for n in DRAWN_OPS if n not in left_out and fits(n, self.type(x).rank)]
        return self.use(self.draw(st.sampled_from(names)), x)

    def combine(self, x: str) -> str:
        """An elementwise op of two values whose shapes fit."""
        partners = [v for v in self.pool if self._broadcasts(v, x)]
        pair = [x, self.draw(st.sampled_from(partners))]
        op: Binary = self.draw(st.sampled_from([Add, Sub]))()
        if self.products and self.draw(st.booleans()):
            op, self.products = Mul(), self.products - 1
        return self.apply(op, *(pair if self.draw(st.booleans()) else pair[::-1]))

    def _broadcasts(self, v: str, x: str) -> bool:
        a, b = self.type(v).shape, self.type(x).shape
        return len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))

    def concat(self, x: str) -> str:
        """Values side by side along the channels."""
        shape = self.type(x).shape
        similar = [v for v in self.pool if self.type(v).shape[2:] == shape[2:]]
        others = self.draw(st.lists(st.sampled_from(similar), max_size=2))
        return self.apply(Concat(), x, *others)

    def normalised(self, x: str) -> str:
        """Batch norm after or before a convolution or dense layer."""
        layer = {4: "conv2d", 2: "dense"}.get(self.type(x).rank, "dropout")
        if self.draw(st.booleans()):
            plain = self.draw(st.integers(0, 3)) > 0
            return self.use("batch_norm", self.use(layer, x, plain))
        x = self.use("batch_norm", x)
        if layer != "conv2d" or self.draw(st.booleans()):
            return self.use(layer, x)
        channels = sizes(self.type(x))[0]
        groups = self.draw(st.sampled_from([g for g in (2, 1, channels) if channels % g == 0]))
        shape = (2 * groups, channels // groups, 1, 1)
        return self.apply(Conv2d(groups=groups), x, self.constant(shape, "weight"))

    def residual(self, x: str) -> str:
        """x and a convolution of it, added and activated."""
        if self.type(x).rank != 4:
            return self.apply(unary(self.draw), x)
        channels = sizes(self.type(x))[0]
        weight = self.constant((channels, channels, 3, 3), "weight")
        body = self.apply(Conv2d(pad=(1, 1, 1, 1)), x, weight)
        pair = (body, x) if self.draw(st.booleans()) else (x, body)
        return self.apply(unary(self.draw), self.apply(Add(), *pair))

    def gated(self, x: str) -> str:
        """x times a gate made of x itself, or of the means of its maps."""
        if self.type(x).rank == 4 and self.draw(st.booleans()):
            channels = sizes(self.type(x))[0]
            squeezed = self.apply(GlobalAvgPool(keep=True), x)
            weight = self.constant((channels, channels, 1, 1), "weight")
            gate = self.apply(Sigmoid(), self.apply(Conv2d(), squeezed, weight))
        else:
            gate = self.apply(OPS[self.draw(st.sampled_from(["sigmoid", "hsigmoid"]))](), x)
        return self.apply(Mul(), *((x, gate) if self.draw(st.booleans()) else (gate, x)))

    def padded(self, x: str) -> str:
        """Explicit padding, then an op that could pad itself."""
        if self.type(x).rank != 4:
            return self.use("flatten", x)
        after = self.draw(st.sampled_from(["conv2d", "avg_pool2d", "max_pool2d", "pad"]))
        return self.use(after, self.use("pad", x))

    def sampled(self, x: str) -> str:
        """x read at the places that an affine map of its own tells."""
        if self.type(x).rank != 4:
            return self.use("matmul", x)
        flat = self.apply(Flatten(), x)
        weight = self.constant((6, *sizes(self.type(flat))), "weight")
        theta = self.apply(Dense(), flat, weight, self.constant((6,), "bias"))
        theta = self.apply(Reshape(shape=(0, 2, 3)), theta)
        size, corners = pair(self.draw, 1, 5), self.draw(st.booleans())
        grid = self.apply(AffineGrid(size=size, align_corners=corners), theta)
        mode = self.draw(st.sampled_from([Interpolation.LINEAR, Interpolation.CUBIC]))
        padding = self.draw(st.sampled_from(Padding))
        op = GridSample(mode=mode, padding=padding, align_corners=corners)
        return self.apply(op, x, grid)

    def biased(self, x: str) -> str:
        """A layer without bias, then a constant for each channel added, itself a sum or not."""
        rank = self.type(x).rank
        if rank == 3:
            return self.headed(x)
        channels = sizes(self.type(x))[0]
        shape: Shape = (channels, channels, 1, 1) if rank == 4 else (channels, channels)
        layer = Conv2d() if rank == 4 else Dense()
        y = self.apply(layer, x, self.constant(shape, "weight"))
        inner: Shape = (channels, 1, 1) if rank == 4 else (channels,)
        bias = self.constant(self.draw(st.sampled_from([inner, (1, *inner)])), "bias")
        if self.draw(st.booleans()):
            name = self.builder.fresh(f"v{len(self.builder.nodes)}")
            bias = self.builder.add(Mul(), (bias, self.constant((1,), "factor")), name)
        op: Binary = self.draw(st.sampled_from([Add, Sub]))()
        return self.apply(op, *((y, bias) if self.draw(st.booleans()) else (bias, y)))

    def headed(self, x: str) -> str:
        """The end of a classifier: means or reshapes to a matrix, then a dense layer."""
        if self.type(x).rank == 4 and self.draw(st.booleans()):
            x = self.apply(GlobalAvgPool(keep=True), x)
        if self.draw(st.booleans()):
            x = self.use("reshape", x)
        x = self.use("flatten", x)
        return self.use("dense", x) if self.draw(st.booleans()) else x

    def twice(self, x: str) -> str:
        """Two activations in a row."""
        return self.apply(unary(self.draw), self.apply(unary(self.draw), x))


@st.composite
def graphs(draw: Draw, most_moves: int = 12) -> Graph:
    """A random network: a portable graph that keeps every law of `cnnc.ir.verify`."""
    network = _Network(draw)
    moves = (
        network.single,
        network.single,
        network.single,
        network.biased,
        network.headed,
        network.twice,
        network.normalised,
        network.residual,
        network.gated,
        network.padded,
        network.sampled,
        network.combine,
        network.concat,
    )
    for _ in range(draw(st.sampled_from(range(1, most_moves + 1)))):
        network.pool.append(draw(st.sampled_from(moves))(network.pick()))
    network.builder.output("out0", network.pool[-1])
    for i in range(draw(st.sampled_from([0, 0, 1, 2]))):
        network.builder.output(f"out{i + 1}", draw(st.sampled_from(network.pool)))
    return network.builder.finish()
