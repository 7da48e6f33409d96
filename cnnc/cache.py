"""The cache of compiled models on disk: `compile` with it, and the folder itself.

An entry is a file as `CompiledModel.save` writes it, named by its key (`cnnc.keys`). Entries appear
as a whole, so processes may share the folder without locks. Entries are code that will be run:
the folder must belong to this user, and nobody else may be able to write to it.
"""

from __future__ import annotations

import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnc.ir.location import CnncError, Diagnostic
from cnnc.runtime.artifact import SUFFIX, Artifact, read, save
from cnnc.runtime.files import PART
from cnnc.runtime.memory import give_back, uncollected

if TYPE_CHECKING:
    from cnnc.frontends import Model
    from cnnc.ir.graph import Graph
    from cnnc.model import CompiledModel

_HASH = ".hash"  # suffix of a remembered hash of a file's content
_SETTLED_SECONDS = 2.0  # a file that changed later than this ago may change again unseen
_STALE_SECONDS = 3600.0  # a file that is being written for so long never will be


class CacheWarning(UserWarning):
    """The cache cannot be used; everything is compiled."""


def compile(
    source: Model | Graph,
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> CompiledModel:
    """The model from the cache, else compiled and kept there; see `cnnc.compile`."""
    start = perf_counter()
    if options.get("tune"):
        from cnnc.options import Options
        from cnnc.tune import tune

        tune(source, Options.of(**options), progress)
    place = _place(source, options)
    model = _load(place, options, start)
    if model is None:
        model = _compile(source, place, progress, options)
    if isinstance(source, str | Path):  # what is in memory is not kept there for this

        def tapped(taps: tuple[str, ...]) -> CompiledModel:
            return compile(source, **{**options, "taps": taps})

        model.tapped = tapped
    return model


def _compile(
    source: Model | Graph,
    place: _Place | None,
    progress: Callable[[str], None] | None,
    options: dict[str, Any],
) -> CompiledModel:
    with uncollected():
        from cnnc import driver

        model = driver.compile(source, progress=progress, **options)
    # The files may have changed since their hashes were taken.
    if place is not None and model.is_native and place == _place(source, options):
        if progress is not None:
            progress("writing to the cache")
        model = _keep(place, model, options)
    give_back()
    return model


def find(source: str | Path, **options: Any) -> CompiledModel | None:
    """The model if it is in the cache; arguments as for `compile`."""
    start = perf_counter()
    return _load(_place(source, options), options, start)


class _Place(NamedTuple):
    """Where a compiled model is or would be."""

    cache: Cache
    key: str


def _place(source: Model | Graph, options: dict[str, Any]) -> _Place | None:
    """None if the model has no place in a cache."""
    if not isinstance(source, str | Path) or options.get("cache", True) is not True:
        return None
    from cnnc.keys import key_of

    _check_unkeyed(options)
    try:
        cache = open_cache()
    except CnncError as error:
        _warn(error)
        return None
    key = key_of(source, options, cache.file_hash)
    return None if key is None else _Place(cache, key)


def _load(place: _Place | None, options: dict[str, Any], start: float) -> CompiledModel | None:
    found = None if place is None else place.cache.get(place.key)
    if found is None:
        return None
    from cnnc.link import link

    return link(found, options.get("threads"), start=start)


def _keep(place: _Place, model: CompiledModel, options: dict[str, Any]) -> CompiledModel:
    """Puts the model into the cache. The one that it gives has its weights there, not twice."""
    from cnnc.link import link
    from cnnc.options import Options

    try:
        place.cache.put(place.key, model.artifact, Options.of(**options).cache_bytes)
    except CnncError as error:
        _warn(error)
        return model
    kept = place.cache.get(place.key)
    return model if kept is None else link(kept, options.get("threads"))


def _check_unkeyed(options: dict[str, Any]) -> None:
    """Raises `OptionError` for an option that is wrong, unless the key will tell.

    What stands in the key was checked when the entry was made; of the others `threads` is looked at
    by `link`, because checking it properly takes longer than all the rest.
    """
    from cnnc.keys import RELEVANT

    if not options.keys() <= {*RELEVANT, "threads", "cache"}:
        from cnnc.options import Options

        Options.of(**options)


def _warn(error: CnncError) -> None:
    warnings.warn(str(error).removeprefix("error: "), CacheWarning, stacklevel=5)


# -- the folder ------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cnnc`, by default `~/.cache/cnnc`.

    Raises:
        CnncError: nobody knows where the user's home is.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "cnnc"
    except RuntimeError:
        raise _unusable("there is no home folder") from None


def open_cache() -> Cache:
    """The user's cache; its folder is made if it is not there.

    Raises:
        CnncError: it cannot be made, or others than this user could put code into it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _unusable(f"`{folder}`: {error.strerror or error}") from None
    if not _is_ours(status):
        raise _unusable(f"`{folder}` belongs to another user, or others may write to it")
    return Cache(folder)


def _is_ours(status: os.stat_result) -> bool:
    """Whether the file is this user's, and nobody else may write to it."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.geteuid() and not status.st_mode & others


def _unusable(why: str) -> CnncError:
    return CnncError(
        Diagnostic(
            f"the cache cannot be used: {why}",
            help="set XDG_CACHE_HOME to a folder of your own, chmod it to 700, "
            "or compile with cache=False",
        )
    )


class Entry(NamedTuple):
    """One file of the cache."""

    path: Path
    bytes: int
    used: float  # when it was last used, in seconds since the epoch

    @property
    def model(self) -> str:
        """The name of the model's file."""
        return self.path.stem.rpartition("-")[0]


class Cache(NamedTuple):
    """Compiled models in a folder, by key. Use `open_cache`, which checks the folder."""

    folder: Path

    def get(self, key: str) -> Artifact | None:
        """The entry; None if it is not there, or not whole."""
        path = self.folder / f"{key}{SUFFIX}"
        try:
            with open(path, "rb") as file:
                if not _is_ours(os.fstat(file.fileno())):
                    return None
                # Reading all weights to check them would take longer than all the rest.
                artifact = read(file, str(path), check_weights=False)
            os.utime(path)
        except (OSError, CnncError):
            return None
        return artifact

    def put(self, key: str, artifact: Artifact, limit: int) -> None:
        """Makes or replaces the entry, and removes the oldest ones beyond `limit` bytes.

        Raises:
            CnncError: it cannot be written.
        """
        if artifact.weights.nbytes > limit:
            return
        path = self.folder / f"{key}{SUFFIX}"
        save(path, artifact, private=True)
        self._trim(limit, path)

    def entries(self) -> list[Entry]:
        """The compiled models, the last used one first."""
        return sorted(self._files(SUFFIX), key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Removes everything. Returns how many bytes that were."""
        files = list(self._files(SUFFIX, _HASH, PART))
        for file in files:
            file.path.unlink(missing_ok=True)
        return sum(file.bytes for file in files)

    def file_hash(self, path: Path) -> str:
        """A hash of the file's content; remembered as long as nobody has touched the file.

        Raises:
            OSError: it cannot be read.
        """
        status = path.stat()
        identity = f"{path}\n{status.st_dev} {status.st_ino} {status.st_size} "
        identity += f"{status.st_mtime_ns} {status.st_ctime_ns}"
        memo = self.folder / f"{blake2b(identity.encode(), digest_size=20).hexdigest()}{_HASH}"
        with suppress(OSError, UnicodeDecodeError):
            known = memo.read_text()
            if _is_ours(memo.stat()) and re.fullmatch("[0-9a-f]{64}", known):
                return known
        with open(path, "rb") as file:
            digest = blake2b(digest_size=32)
            while block := file.read(1 << 20):
                digest.update(block)
        if status.st_size > 1 << 20 and _is_settled(status):
            with suppress(OSError):  # then it is computed again
                part = memo.with_suffix(f".{os.getpid()}{PART}")
                part.write_text(digest.hexdigest())
                part.chmod(0o600)
                part.replace(memo)
        return digest.hexdigest()

    def _files(self, *suffixes: str) -> Iterator[Entry]:
        for path in self.folder.iterdir():
            if path.suffix in suffixes:
                with suppress(FileNotFoundError):  # another process has just removed it
                    status = path.stat()
                    yield Entry(path, status.st_size, status.st_mtime)

    def _trim(self, limit: int, newest: Path) -> None:
        """Removes what was not used for longest, down to `limit` bytes, and what was left over."""
        for part in self._files(PART):
            if time.time() - part.used > _STALE_SECONDS:
                part.path.unlink(missing_ok=True)
        total = 0
        files = self._files(SUFFIX, _HASH)
        for entry in sorted(files, key=lambda e: (e.path == newest, e.used), reverse=True):
            total += entry.bytes
            if total > limit and entry.path != newest:
                entry.path.unlink(missing_ok=True)


def _is_settled(status: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
