"""Arrays for a model's inputs, as the command line names them, and files for its outputs."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cnnc.ir.location import Diagnostic, InputError, suggest
from cnnc.ir.op import Array
from cnnc.ir.types import DType, TensorType
from cnnc.runtime.files import replacing
from cnnc.runtime.inputs import random_inputs

GENERATED = ("random", "zeros")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

# Channels -> what Pillow calls them.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_inputs(specs: Sequence[str], types: Mapping[str, TensorType]) -> dict[str, Array]:
    """The arrays that `specs` name.

    Args:
        specs: each `[NAME=]WHAT`, where WHAT is `random`, `zeros`, or a `.npy`, `.npz` or image
            file. NAME may be left out for the only input, and for an `.npz` that holds all.
        types: what the model takes, by input name.

    Raises:
        InputError: a spec that cannot be read, or that names an input twice or none at all. Whether
            shapes fit is for the model to say.
    """
    found: dict[str, Array] = {}
    for spec in specs:
        name, what = _split(spec, types)
        arrays = _archive(what) if name is None else {name: _read(what, name, types[name])}
        twice = found.keys() & arrays.keys()
        if twice:
            raise InputError(f"input `{min(twice)}` is given twice")
        found |= arrays
    return found


def put_batch(
    types: Mapping[str, TensorType], symbols: Iterable[str], batch: int
) -> dict[str, TensorType]:
    """The types for `batch` images, counted by `symbols`. Raises `InputError` if it is fixed."""
    sizes = dict.fromkeys(symbols, batch)
    if batch > 1 and not sizes:
        taken = ", ".join(map(str, types.values())) or "no inputs"
        what = f"the model takes {taken}: its batch is fixed"
        raise InputError(Diagnostic(what, help="leave out --batch"))
    return {name: type.bind(sizes) for name, type in types.items()}


def _split(spec: str, types: Mapping[str, TensorType]) -> tuple[str | None, str]:
    """(input name, what to read); no name for an archive of several inputs."""
    name, equals, what = spec.partition("=")
    if equals and not Path(spec).exists():
        if name not in types:
            raise InputError(Diagnostic(f"there is no input `{name}`", help=suggest(name, types)))
        return name, what
    if Path(spec).suffix == ".npz":
        return None, spec
    if len(types) != 1:
        some = f"--input {next(iter(types), 'name')}={spec}"
        names = ", ".join(f"`{n}`" for n in types)
        raise InputError(
            Diagnostic(f"which input is `{spec}` for? the model takes {names}", help=f"say {some}")
        )
    return next(iter(types)), spec


def _read(what: str, name: str, type: TensorType) -> Array:
    suffix = Path(what).suffix.lower()
    if what in GENERATED:
        open_dims = [d.name for d in type.shape if not isinstance(d, int)]
        if open_dims:
            sizes = " ".join(f"--size {name}=..." for name in open_dims)
            raise InputError(
                Diagnostic(f"how large is `{name}`? it is {type}", help=f"say {sizes}")
            )
        if what == "random":
            return random_inputs({name: type})[name]
        return np.zeros(type.dims, type.dtype.numpy)
    if suffix == ".npy":
        return _numpy(what)
    if suffix == ".npz":
        arrays = _archive(what)
        if name not in arrays:
            raise InputError(
                Diagnostic(f"`{what}` has no array `{name}`", help=suggest(name, arrays))
            )
        return arrays[name]
    if suffix in IMAGES:
        return read_image(what, type)
    kinds = ", ".join((*GENERATED, ".npy", ".npz", *IMAGES))
    raise InputError(Diagnostic(f"cannot read `{what}` as an input", help=f"known: {kinds}"))


def _numpy(path: str) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"`{path}` is not a NumPy array: {error}") from None
    if not isinstance(loaded, np.ndarray):
        raise InputError(Diagnostic(f"`{path}` is an archive", help="call it .npz"))
    return loaded


def _archive(path: str) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path):  # np.load would take other files for a pickle
            pass
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"`{path}` is not a NumPy archive: {error}") from None


def read_image(path: str, type: TensorType) -> Array:
    """An image as float32[1, C, H, W] between 0 and 1, resized and with the input's channels.

    Nothing else happens to it: no cropping, no subtraction of a mean.

    Raises:
        InputError: not an image, or the input does not take one.
    """
    from PIL import Image

    sizes = [d for d in type.shape[1:] if isinstance(d, int)]
    if type.rank != 4 or len(sizes) != 3 or sizes[0] not in _MODES or type.dtype is not DType.F32:
        known = " or ".join(map(str, _MODES))
        raise InputError(
            f"`{path}` is an image, but the input is {type}, not f32[N,C,H,W] with {known} channels"
        )
    channels, height, width = sizes
    try:
        with Image.open(path) as image:
            fitted = image.convert(_MODES[channels]).resize(
                (width, height), Image.Resampling.BILINEAR
            )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.filename:  # no such file: Python's words name it
            raise
        raise InputError(f"`{path}` is not an image that can be read: {error}") from None
    pixels = np.asarray(fitted, np.float32).reshape(height, width, channels) / np.float32(255)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def write_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Writes all outputs to an `.npz`, by name. Raises `CnncError` if that is impossible."""
    # Not np.savez: an output may have the name of one of its parameters.
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
