"""Topological order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


class Cycle(Exception):
    """Things that depend on each other.

    Attributes:
        members: each depends on the one before it, the first on the last.
    """

    def __init__(self, members: list[object]) -> None:
        super().__init__(" -> ".join(map(str, members)))
        self.members = members


def in_order(dependencies: Mapping[T, Iterable[T]]) -> list[T]:
    """The keys, each after those that it depends on, and otherwise as they were.

    Raises:
        Cycle: there is none.
    """
    sorter = TopologicalSorter(dependencies)
    try:
        sorter.prepare()
    except CycleError as error:
        raise Cycle(error.args[1][:-1]) from None
    keys, place = list(dependencies), {key: i for i, key in enumerate(dependencies)}
    ready: list[int] = []
    found = []
    while sorter.is_active():
        for key in sorter.get_ready():
            heappush(ready, place[key])
        found.append(keys[heappop(ready)])
        sorter.done(found[-1])
    return found
