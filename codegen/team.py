"""The thread team: native threads that run one function together.

    Team(4).run(function, context)    # void function(i64 tid, i64 threads, ptr team, ptr context)

The function runs on the threads of the team, the caller being thread 0; a worker that wakes too
late is not waited for. Inside, `cnnc_take`, `cnnc_done` and `cnnc_wait` share out the work. Between
runs the workers spin for a moment, because the next run often follows at once, and then sleep: an
idle team takes no processor time.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from cnnc.codegen.cores import usable_cores
from cnnc.codegen.image import Code, Image, load_image
from cnnc.codegen.team_text import team_text
from cnnc.ir.location import CnncError, Diagnostic, OptionError

if TYPE_CHECKING:
    from cnnc.ir.target import Target

# How long a worker looks for the next run before it sleeps. Between two runs of a network of some
# milliseconds 50 to 200 us pass, for Python's own code and data have left the caches.
_SPIN_NS = 200_000
_CROWDED_SPIN_NS = 2_000  # the same where threads outnumber processors and spinning delays others


@dataclass(frozen=True)
class _Native:
    """The team's functions in this process."""

    image: bytes
    code: Code
    create: Callable[[int, int], int | None]
    run: Callable[[int | None, int, int], None]
    call: Callable[[object], None]
    destroy: Callable[[int], None]


def _native() -> _Native:
    if not _LOADED:
        from cnnc.codegen.host import native_target

        provide_team(_compiled(native_target()))
    return _LOADED[0]


@cache
def team_image(target: Target) -> bytes:
    """The team's linked code for the target: what `provide_team` takes in another process."""
    from cnnc.codegen.host import native_target

    same = (target.triple, target.cpu, target.features)
    host = native_target()
    if same == (host.triple, host.cpu, host.features):
        return _native().image
    return _compiled(target)


def _compiled(target: Target) -> bytes:
    # Running what is compiled needs neither.
    from cnnc.codegen.elf import link_objects
    from cnnc.codegen.llvm import compile_object

    code = compile_object(team_text(target.triple), target, optimise=True)
    return link_objects([code]).to_bytes()


def provide_team(image: bytes) -> None:
    """Spares this process the compilation of the team; without effect if it has one already.

    Args:
        image: what `team_image` gave, for a target that can run here.

    Raises:
        CnncError: the image is damaged, or made for another architecture.
    """
    if not _LOADED:
        code, handle = load_image(Image.from_bytes(image)), ctypes.c_void_p
        create = ctypes.CFUNCTYPE(handle, ctypes.c_int64, ctypes.c_int64)
        run, destroy = (
            ctypes.CFUNCTYPE(None, handle, handle, handle),
            ctypes.CFUNCTYPE(None, handle),
        )
        native = _Native(
            image,
            code,
            create(code.address("cnnc_team_create")),
            run(code.address("cnnc_team_run")),
            ctypes.CFUNCTYPE(None)(code.address("cnnc_team_call")),  # checks no arguments
            destroy(code.address("cnnc_team_destroy")),
        )
        _LOADED.append(native)


class Team:
    """Native threads that run one function together.

    Workers start with the first run, are started anew in a forked child, and end with the team or
    the program. Any number of Python threads may call `run`; they take turns. A team of one thread
    has no workers and no turns: everyone runs on their own thread.

    Args:
        threads: how many threads run the function, the caller's included; >= 1.

    Raises:
        OptionError: `threads` is less than 1.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise OptionError(f"threads must be at least 1, got {threads}")
        self.threads = threads
        self._turn = threading.Lock()
        self._handle = self._start() if threads == 1 else None
        _LIVE.add(self)

    def run(self, function: int, context: int) -> None:
        """Calls `void function(i64 tid, i64 threads, ptr team, ptr context)` on every thread.

        Returns when all have returned. Other Python threads run meanwhile. The function must not
        run the same team.

        Args:
            function: the address of the function.
            context: the address that it gets.

        Raises:
            CnncError: the system does not give that many threads.
        """
        if self.threads == 1:
            _native().run(self._handle, function, context)
            return
        with self._turn:
            if self._handle is None:
                self._handle = self._start()
            _native().run(self._handle, function, context)

    def prepare(self, function: int, context: int) -> Callable[[], None]:
        """`run` of this function with this context, to be called many times.

        One thread is called at half the cost: a small network is done in microseconds.
        """
        if self.threads > 1:
            return partial(self.run, function, context)
        # All teams of one thread are alike; the process's own stays.
        request = (ctypes.c_void_p * 3)(team(1)._handle, function, context)
        return partial(_native().call, ctypes.byref(request))

    def close(self) -> None:
        """Ends the workers, after the run under way; a later run starts new ones."""
        if self.threads == 1:
            return
        with self._turn:
            if self._handle is not None:
                self._finalizer.detach()
                _native().destroy(self._handle)
                self._handle = None

    def _start(self) -> int:
        spin_ns = _SPIN_NS if self.threads <= usable_cores() else _CROWDED_SPIN_NS
        handle = _native().create(self.threads, spin_ns)
        if handle is None:
            raise CnncError(
                Diagnostic(
                    f"cannot start {self.threads - 1} threads",
                    help="ask for fewer threads, or raise the limit on processes (`ulimit -u`)",
                )
            )
        self._finalizer = weakref.finalize(self, _destroy, handle, self._turn)
        return handle

    def _forget(self) -> None:
        """In a forked child the workers are not there, and nobody may be left to give the turn."""
        if self.threads > 1:
            if self._handle is not None:
                self._finalizer.detach()
            self._handle, self._turn = None, threading.Lock()


def _destroy(handle: int, turn: threading.Lock) -> None:
    # A daemon thread may still be in a run when the program ends: then its team ends with it.
    if turn.acquire(timeout=1.0):
        _native().destroy(handle)


def _forget_all() -> None:
    for team in list(_LIVE):
        team._forget()


_LOADED: list[_Native] = []  # the first one counts: threads may be loading it at the same time

# Every team, for the fork, and the shared ones.
_LIVE: weakref.WeakSet[Team] = weakref.WeakSet()
_SHARED: dict[int, Team] = {}
os.register_at_fork(after_in_child=_forget_all)


def team(threads: int) -> Team:
    """The process's team of that size; models share it, so that threads do not multiply."""
    return _SHARED.get(threads) or _SHARED.setdefault(threads, Team(threads))


def team_symbols() -> dict[str, int]:
    """What the functions that a team runs may call: symbol -> address, for `load_image`."""
    names = ("cnnc_take", "cnnc_done", "cnnc_wait")
    return {name: _native().code.address(name) for name in names}
