"""Target: what the compiler knows of a machine. Only numbers; detection is `codegen.host`."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One CPU, as the planning passes and kernels see it.

    Choices depend on these nominal numbers alone, never on a measurement of the moment, so the
    same model on the same machine always compiles to the same code. `ghz` turns cycles into
    predicted times for display.
    """

    name: str
    triple: str
    cpu: str
    features: str = ""
    vector_bytes: int = 64  # width of one vector register
    registers: int = 32  # number of vector registers
    cores: int = 4  # that may share the work; kernels cut it into parts for them
    fma_per_cycle: float = 2.0  # full-width fused multiply-adds that one core starts per cycle
    spare_adds_per_cycle: float = 0.0  # full-width additions beside as many multiply-adds
    load_per_cycle: float = 2.0  # full-width loads per cycle from L1
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024  # per core
    l3_bytes: int = 16 * 1024 * 1024
    l2_bytes_per_cycle: float = 48.0
    l3_bytes_per_cycle: float = 10.0
    memory_bytes_per_cycle: float = 8.0
    weights_bytes: int = 0  # of the network at hand, which reads them once a run
    ghz: float = 3.0

    @property
    def lanes(self) -> int:
        """float32 elements in one vector register."""
        return self.vector_bytes // 4

    def microseconds(self, cycles: float) -> float:
        """The time of so many cycles, as plans and tables show it: to a hundredth."""
        return round(cycles / self.ghz / 1000, 2)

    def stream_bytes_per_cycle(self, working_set_bytes: float) -> float:
        """Bandwidth for streaming over a working set of that size."""
        if working_set_bytes <= self.l2_bytes:
            return self.l2_bytes_per_cycle
        if working_set_bytes <= self.l3_bytes:
            return self.l3_bytes_per_cycle
        return self.memory_bytes_per_cycle

    def weight_bytes_per_cycle(self, weights: int) -> float:
        """Bandwidth for the first reading of so many bytes of weights in a run. All of a network's
        push each other out of L2 from run to run, and out of L3, which is shared, if they take
        more than half of it.
        """
        if max(weights, self.weights_bytes) > self.l3_bytes // 2:
            return self.memory_bytes_per_cycle
        return self.l3_bytes_per_cycle

    def move_cycles(self, read: int, written: int) -> float:
        """Cycles to read a map of so many bytes that was written just before, and write another.

        A line that is written moves twice: it is fetched, to be changed, and goes back. Where half
        of L2 is too small for both maps it has what it can hold of the one that is read, and
        nothing of the other, whose memory was last used long before.
        """
        far = self.stream_bytes_per_cycle(2 * (read + written))
        near = min(read, self.l2_bytes)
        return near / self.l2_bytes_per_cycle + (read - near + 2 * written) / far

    def keeping(self, weights: int) -> Target:
        """The target as a network with so many bytes of weights sees it.

        If they stay in L2 from run to run, nothing ever comes from farther away.
        """
        if weights > self.l2_bytes // 2:
            return replace(self, weights_bytes=weights)
        near = self.l2_bytes_per_cycle
        return replace(self, l3_bytes_per_cycle=near, memory_bytes_per_cycle=near)
