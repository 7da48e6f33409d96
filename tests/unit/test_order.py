"""Topological order."""

from __future__ import annotations

import pytest

from cnnc.ir.order import Cycle, in_order


def test_what_is_in_order_stays_so() -> None:
    assert in_order({"b": [], "a": [], "c": ["a", "b"], "d": []}) == ["b", "a", "c", "d"]


def test_makers_come_first() -> None:
    order = in_order({"sum": ["right", "left"], "left": ["root"], "right": ["root"], "root": []})
    assert order == ["root", "left", "right", "sum"]


def test_a_cycle_is_named() -> None:
    with pytest.raises(Cycle, match="^(b -> c|c -> b)$"):
        in_order({"a": [], "b": ["a", "c"], "c": ["b"]})
