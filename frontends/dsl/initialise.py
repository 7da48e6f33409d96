"""Seeded weights: `init he(seed=0)` and its like.

Each weight has a generator of its own, PCG64 keyed by the seed and the weight's path, so a change
in one layer leaves the numbers of all others alone. The running statistics of a `bn` are what
they would be after training: the mean and variance of what reaches it, estimated from the layers
before it, with some random spread. So activations keep their size through any depth, and folding
a `bn` into a convolution has something to fold.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from math import erf, exp, pi, prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from cnnc.frontends.dsl.checks import Count, Positive, Settings
from cnnc.frontends.dsl.layers import Weight
from cnnc.ir import ops
from cnnc.ir.graph import Builder
from cnnc.ir.op import Array

if TYPE_CHECKING:
    from cnnc.frontends.dsl.expand import Slot


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of the elements of a tensor, taken as normally distributed."""

    mean: float
    variance: float

    @property
    def square(self) -> float:
        """The mean of the squares."""
        return self.mean * self.mean + self.variance

    def bounded(self) -> Moments:
        """These, kept where arithmetic on them is safe."""
        return Moments(min(max(self.mean, -1e3), 1e3), min(max(self.variance, 1e-6), 1e6))


UNIT = Moments(0.0, 1.0)


class Initialiser(Settings, ABC):
    """A way to fill the weights of a model; its fields are the arguments of `init`."""

    @abstractmethod
    def fill(self, slots: Mapping[str, Slot], builder: Builder) -> None:
        """Gives every weight of the graph in `builder` its numbers."""


class Random(Initialiser):
    """Normally distributed weights; how wide is for the subclass to say."""

    seed: Count = 0

    @abstractmethod
    def variance(self, inputs: int) -> float:
        """Of the elements of a weight whose outputs sum over `inputs` products."""

    def fill(self, slots: Mapping[str, Slot], builder: Builder) -> None:
        levels = self._levels(slots, builder)

        def draw(path: str) -> Array:
            return self._draw(path, slots[path].weight, levels.get(path, 1.0))

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy draws without Python's lock
            builder.constants.update(zip(slots, threads.map(draw, slots), strict=True))

    def _draw(self, path: str, weight: Weight, level: float) -> Array:
        key = int.from_bytes(sha256(f"{self.seed}:{path}".encode()).digest()[:16], "little")
        generator = np.random.Generator(np.random.PCG64(key))
        if weight.role not in _SPREAD:
            values = generator.standard_normal(weight.shape, np.float32)
            values *= np.float32(sqrt(self.variance(weight.inputs)))
            return values
        centre, spread = _SPREAD[weight.role]
        size = {"mean": sqrt(level), "variance": level}.get(weight.role, 1.0)
        uniform = generator.uniform(centre - spread, centre + spread, weight.shape)
        return np.asarray(uniform * size, np.float32)

    def _levels(self, slots: Mapping[str, Slot], builder: Builder) -> dict[str, float]:
        """The mean square of what reaches each `bn`, by the paths of its statistics."""
        values: dict[str, Moments] = {}
        levels: dict[str, float] = {}
        for node in builder.nodes:
            came = [values.get(o, UNIT) for o in node.operands if o not in builder.constants]
            came = came or [UNIT]
            if isinstance(node.op, ops.Linear):
                inputs = slots[node.operands[1]].weight.inputs
                result = Moments(0.0, came[0].square * self.variance(inputs) * inputs)
            else:
                rule = _RULES.get(type(node.op))
                result = came[0] if rule is None else rule(came)
            if isinstance(node.op, ops.BatchNorm):
                levels.update(dict.fromkeys(node.operands[1:], came[0].square))
            values[node.name] = result.bounded()
        return levels


class He(Random):
    """Keeps the size of activations through ReLUs: normal with variance 2 / inputs."""

    def variance(self, inputs: int) -> float:
        return 2.0 / inputs


class Xavier(Random):
    """Keeps the size of activations through layers alone: normal with variance 1 / inputs."""

    def variance(self, inputs: int) -> float:
        return 1.0 / inputs


class Normal(Random):
    """Normal with a given standard deviation."""

    std: Positive = 0.02

    def variance(self, inputs: int) -> float:
        return self.std**2


class Zeros(Initialiser):
    """Zeros (variances are ones); takes no memory, for looking at shapes and counts."""

    def fill(self, slots: Mapping[str, Slot], builder: Builder) -> None:
        for path, slot in slots.items():
            value = np.float32(slot.weight.role == "variance")
            builder.constants[path] = np.broadcast_to(value, slot.weight.shape)


INITIALISERS: dict[str, type[Initialiser]] = {
    "he": He,
    "xavier": Xavier,
    "normal": Normal,
    "zeros": Zeros,
}

# Role -> (centre, spread) of a uniform distribution; statistics are in units of the level.
_SPREAD = {
    "bias": (0.0, 0.1),
    "scale": (1.0, 0.3),
    "shift": (0.0, 0.2),
    "mean": (0.0, 0.2),
    "variance": (1.0, 0.3),
}


def _rectified(came: list[Moments]) -> Moments:
    """`max(x, 0)` of a normal x."""
    mean, deviation = came[0].mean, sqrt(came[0].variance)
    ratio = mean / deviation
    below = (1 + erf(ratio / sqrt(2))) / 2
    density = exp(-ratio * ratio / 2) / sqrt(2 * pi)
    first = mean * below + deviation * density
    second = came[0].square * below + mean * deviation * density
    return Moments(first, second - first * first)


def _sum(came: list[Moments]) -> Moments:
    return Moments(sum(m.mean for m in came), sum(m.variance for m in came))


def _difference(came: list[Moments]) -> Moments:
    return Moments(came[0].mean - sum(m.mean for m in came[1:]), _sum(came).variance)


def _product(came: list[Moments]) -> Moments:
    mean, square = prod(m.mean for m in came), prod(m.square for m in came)
    return Moments(mean, square - mean * mean)


# What an op does to the moments of its operands; one that is not here leaves the first alone.
_RULES: dict[type[ops.Op], Callable[[list[Moments]], Moments]] = {
    ops.BatchNorm: lambda came: UNIT,
    ops.Normalize: lambda came: UNIT,
    ops.Relu: _rectified,
    ops.Relu6: _rectified,
    ops.LeakyRelu: _rectified,
    ops.Elu: _rectified,
    ops.Silu: _rectified,
    ops.HardSwish: _rectified,
    ops.Sigmoid: lambda came: Moments(0.5, 0.05),
    ops.HardSigmoid: lambda came: Moments(0.5, 0.05),
    ops.Tanh: lambda came: Moments(0.0, min(came[0].square, 0.5)),
    ops.Softmax: lambda came: Moments(0.0, 0.01),
    ops.Add: _sum,
    ops.Sub: _difference,
    ops.Neg: lambda came: Moments(-came[0].mean, came[0].variance),
    ops.Mul: _product,
}
