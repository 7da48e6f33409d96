"""Choosing one alternative per node so that node costs plus edge costs are least (PBQP).

Nodes with one or two neighbours are eliminated exactly (their best answer is folded into what is
left), which solves every series-parallel graph to the optimum; what remains is decided greedily,
one node at a time, as the heuristic reduction of Scholz and Eckstein does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cnnc.ir.op import Array


@dataclass
class Problem:
    """Alternatives with costs; `solve` empties it."""

    costs: dict[Hashable, Array] = field(default_factory=dict)
    edges: dict[Hashable, dict[Hashable, Array]] = field(default_factory=dict)

    def node(self, name: Hashable, costs: Array) -> None:
        """A choice among `len(costs)` alternatives."""
        self.costs[name] = np.asarray(costs, np.float64)
        self.edges[name] = {}

    def edge(self, a: Hashable, b: Hashable, costs: Array) -> None:
        """`costs[i, j]` is paid when a takes i and b takes j; several edges add up."""
        if a == b:
            self.costs[a] = self.costs[a] + np.diagonal(costs)
            return
        total = self.edges[a].get(b, 0) + np.asarray(costs, np.float64)
        self.edges[a][b], self.edges[b][a] = total, total.T

    def solve(self) -> Mapping[Hashable, int]:
        """The alternative for every node."""
        decided: list[tuple[Hashable, Array, dict[Hashable, Array]]] = []
        degrees: dict[int, dict[Hashable, None]] = {0: {}, 1: {}, 2: {}, 3: {}}
        for name, around in self.edges.items():
            degrees[min(len(around), 3)][name] = None
        while any(degrees.values()):
            degree = next(d for d in range(4) if degrees[d])
            name = next(iter(degrees[degree]))
            around = dict(self.edges[name])
            decided.append((name, self.costs[name], around))
            self._remove(name, around, exact=degree < 3)
            for d in degrees.values():
                d.pop(name, None)
                for other in around:
                    d.pop(other, None)
            for other in around:
                degrees[min(len(self.edges[other]), 3)][other] = None
        answer: dict[Hashable, int] = {}
        for name, costs, around in reversed(decided):
            total = costs
            for other, matrix in around.items():
                if other in answer:
                    total = total + matrix[:, answer[other]]
            answer[name] = int(np.argmin(total))
        return answer

    def _remove(self, name: Hashable, around: dict[Hashable, Array], exact: bool) -> None:
        costs = self.costs[name]
        for other in around:
            del self.edges[other][name]
        self.edges[name] = {}
        if not exact:
            # Decide now, as if each neighbour could still follow with its best alternative.
            best = costs + sum((m + self.costs[o]).min(axis=1) for o, m in around.items())
            pick = int(np.argmin(best))
            self.costs[name] = np.where(np.arange(len(costs)) == pick, costs, np.inf)
            costs[:] = self.costs[name]
            for other, matrix in around.items():
                self.costs[other] = self.costs[other] + matrix[pick]
            return
        match list(around.items()):
            case [(a, matrix)]:
                self.costs[a] = self.costs[a] + (costs[:, None] + matrix).min(axis=0)
            case [(a, left), (b, right)]:
                through = (costs[:, None, None] + left[:, :, None] + right[:, None, :]).min(axis=0)
                self.edge(a, b, through)
