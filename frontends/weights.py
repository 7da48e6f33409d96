"""Weight files, and what a graph's constants are for.

Reads `.safetensors` and `.npz` files of float32 (float16 is widened, which is exact). Nothing in
such a file is executed: pickled objects are refused.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open

from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError, Diagnostic
from cnnc.ir.op import Array, Fusable

SUFFIXES = (".safetensors", ".npz")

# Operands that training changes; running statistics (mean, variance) are only measured.
TRAINED = frozenset({"weight", "bias", "scale", "shift"})


def read_tensors(path: Path) -> dict[str, Array]:
    """The tensors of a weight file by name, in the order in which they lie in it, as float32.

    Raises:
        CnncError: the file's suffix is not known, it is damaged, or it holds other types.
    """
    if path.suffix not in SUFFIXES:
        known = " and ".join(SUFFIXES)
        raise CnncError(
            Diagnostic(f"`{path.name}` is no weight file", help=f"{known} files can be read")
        )
    try:
        tensors = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (SafetensorError, BadZipFile, OSError, ValueError, KeyError, TypeError, EOFError) as e:
        raise CnncError(f"cannot read `{path.name}`: {e}") from None
    wrong = [f"`{n}` is {a.dtype}" for n, a in tensors.items() if a.dtype not in _EXACT]
    if wrong:
        raise CnncError(
            Diagnostic(
                f"`{path.name}` holds tensors that are not float32: {', '.join(wrong[:5])}"
                + (", ..." if len(wrong) > 5 else ""),
                help="store them as float32 (or float16)",
            )
        )
    return {name: np.asarray(array, np.float32, order="C") for name, array in tensors.items()}


_EXACT = (np.dtype(np.float32), np.dtype(np.float16))


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path: Path) -> dict[str, Array]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}


def trainable(graph: Graph) -> int:
    """Number of trainable parameters: weights, biases, scales and shifts, each counted once.

    The constants of an epilogue are scales and shifts.
    """
    found: set[str] = set()
    for node in graph.nodes:
        op = node.op
        own, extras = op.split(node.operands) if isinstance(op, Fusable) else (node.operands, ())
        roles = zip(op.operands, own, strict=False)
        found.update(operand for role, operand in roles if role.rstrip("?*") in TRAINED)
        found.update(extras)
    return sum(graph.constants[name].size for name in found & graph.constants.keys())
