# SPDX-License-Identifier: Apache-2.0
"""What parts share that have frames run, or memory measured, in a process of its own."""

from __future__ import annotations

from mint_vni.bench.part import Part, Settings
from mint_vni.bench.runner import Runner

PEAK_MB = 128  # a core: several times what caches hold
PEAK_METHOD = (
    "% peak: the throughput over the machine's peak read plus write bandwidth (all cores,"
    f" {PEAK_MB} MiB each; the best of reading, writing and copying) in the same turn: to be set"
    " beside the paper's 38 % (UDP) and 5.1 % (TCP)."
)


class RunnerPart(Part):
    """A part with a process that carries out its runs."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is started yet."""
        super().__init__(settings)
        self._runner: Runner | None = None

    @property
    def runner(self) -> Runner:
        """The process."""
        self._runner = self._runner or Runner()
        return self._runner

    def close(self) -> None:
        """End it."""
        if self._runner:
            self._runner.close()


class PeakPart(RunnerPart):
    """A part that sets its throughput beside what the machine's memory can do.

    Attributes:
        memcpy: one core's streaming memcpy in this turn, Gbps.
        peak: all cores' peak of reading plus writing in this turn, Gbps.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing is measured yet."""
        super().__init__(settings)
        self.memcpy = self.peak = 0.0

    def each_turn(self) -> dict[str, float]:
        """Memcpy and the memory's peak."""
        noise = super().each_turn()
        span = 0.05 if self.settings.quick else 0.2
        peak = self.runner.do(
            "peak", cpus=list(self.settings.cpus), megabytes=PEAK_MB, seconds=span
        )
        self.memcpy, self.peak = noise["memcpy_gbps"], peak["peak"]
        return noise | {f"memory_{name}_gbps": value for name, value in peak.items()}
