"""Topological order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush

from cnnc.ir.location import CnncError


def in_order(dependencies: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys, each after those that it depends on, and otherwise as they were.

    Raises:
        CnncError: there is a cycle.
    """
    sorter = TopologicalSorter(dependencies)
    try:
        sorter.prepare()
    except CycleError as error:
        loop = " -> ".join(error.args[1][:-1])
        raise CnncError(f"the graph has a cycle: {loop}") from None
    names, place = list(dependencies), {name: i for i, name in enumerate(dependencies)}
    ready: list[int] = []
    found = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(ready, place[name])
        found.append(names[heappop(ready)])
        sorter.done(found[-1])
    return found
