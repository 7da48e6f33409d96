"""Structural names: where in the model an op or a weight stands.

A path is made of what the source says: the names of blocks and ops with a count from 0 in their
scope, and the name of the statement that made them:

    stage[1].bottleneck[0].main.conv[2].weight

Rules:
    1. An op or block applied in a scope is `name[k]`, the k-th of its name there. A block opens a
       scope of its own.
    2. `name = ...` opens the scope `name`, unless its value uses the old `name` (`x = x -> f`).
       `output`, `return` and `if`/`for` open none.
    3. `share name = ...` opens the scope `name` for what it holds, wherever it is used.
    4. `@name("p")` puts `p` for the statement's own part of the path. If the statement applies a
       single layer or block, that is called `p` itself, without a count.

So a change in one statement or block leaves the paths of all others alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PATH = re.compile(r"[A-Za-z0-9_]+(\[[0-9]+\])?(\.[A-Za-z0-9_]+(\[[0-9]+\])?)*")


def join(path: str, name: str) -> str:
    """`path.name`, or `name` at the top."""
    return f"{path}.{name}" if path else name


@dataclass(eq=False)
class Scope:
    """One level of names. `shared`: weights of this path may exist already and are used again."""

    path: str = ""
    shared: bool = False
    sole: bool = False  # rule 4: the next layer or block is called like the scope itself
    _counts: dict[str, int] = field(default_factory=dict)
    _named: dict[str, Scope] = field(default_factory=dict)

    def place(self, name: str, *, layer: bool) -> str:
        """The path of an op or block called `name`; `layer` if it is a block or has weights."""
        if layer and self.sole:
            return self.path
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return join(self.path, f"{name}[{count}]")

    def inside(self, path: str) -> Scope:
        """The scope of a block that stands at `path`."""
        return Scope(path, self.shared)

    def statement(self, name: str) -> Scope:
        """The scope of the statements `name = ...`, one for all of them."""
        return self._named.setdefault(name, Scope(join(self.path, name), self.shared))

    def renamed(self, name: str, *, sole: bool) -> Scope:
        """The scope of a statement with `@name(name)`."""
        return Scope(join(self.path, name), self.shared, sole)

    def share(self, name: str) -> str:
        """The path of `share name = ...`; met again (in a loop), it is another one."""
        count = self._counts.get(f"share {name}", 0)
        self._counts[f"share {name}"] = count + 1
        return join(self.path, f"{name}[{count}]" if count else name)
