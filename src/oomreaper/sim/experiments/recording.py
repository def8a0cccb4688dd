"""What is kept of a run, for a timeline: what happened, in a line each, and memory from time to time.

It hangs on the machine's hooks and on one timer, changes nothing, and takes no choice: a run that is recorded goes as
one that is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Area, Mm
    from oomreaper.sim.tasks import Process

# A run shows on a hundred columns at most; ten samples a column of a run of ten seconds.
_SAMPLE_NS = 10_000_000
# A run that goes on and on (a writer that never ends) is to be watched, not to fill our own memory.
_MOST_LINES = 2_000


class MemorySample(NamedTuple):
    """Memory at a moment. ``stalled`` tasks wait for some."""

    now_ns: int
    free_bytes: int
    anon_bytes: int
    swap_bytes: int
    stalled: int


class Happening(NamedTuple):
    """Something worth a line. ``is_mark``: worth one in the plot, too."""

    now_ns: int
    what: str
    is_mark: bool = False


class Recording:
    """One run's."""

    def __init__(self, machine: Machine, *, sample_ns: int = _SAMPLE_NS) -> None:
        self.samples: list[MemorySample] = []
        self.happenings: list[Happening] = []
        self._machine = machine
        self._sample_ns = sample_ns
        self._reaped: dict[Mm, tuple[int, object]] = {}
        hooks = machine.hooks
        hooks.kill.append(self._on_kill)
        hooks.exit.append(lambda process: self._note(f"{process.name} has ended"))
        hooks.victim.append(lambda process: self._note(f"{process.name} is marked as an OOM victim: it gets reserves"))
        hooks.reap.append(self._on_reap)
        hooks.skip.append(self._on_skip)
        hooks.slot.append(
            lambda before, after: self._note(f"the reaper's slot: {before or 'empty'} -> {after or 'empty'}")
        )
        hooks.free.append(self._on_free)
        self._sample()

    def finish(self) -> None:
        """The last sample."""
        self._take()

    def _on_kill(self, process: Process, sender: Process | None) -> None:
        who = "" if sender is None else f" by {sender.name}"
        self._note(f"SIGKILL to {process.name}{who}", is_mark=True)

    def _on_reap(self, mm: Mm, by: object) -> None:
        pages = mm.reapable_pages
        self._note(f"{by} reaps {mm} ({self._mib(pages):.0f} MiB)")
        if pages:
            self._reaped[mm] = pages, by

    def _on_free(self, mm: Mm, _area: Area, _pages: int, by: object) -> None:
        started = self._reaped.get(mm)
        if started is not None and mm.reapable_pages == 0:
            del self._reaped[mm]
            how = "reaped" if by == started[1] else "freed, by reaper and exit side by side"
            self._note(f"{mm} is {how}: {self._mib(started[0]):.0f} MiB are back", is_mark=True)

    def _on_skip(self, mm: Mm, by: object) -> None:
        if not mm.is_torn_down and mm.reapable_pages:
            self._note(f"{by} gives {mm} up: MMF_OOM_SKIP, {self._mib(mm.reapable_pages):.0f} MiB stay", is_mark=True)

    def _note(self, what: str, *, is_mark: bool = False) -> None:
        if len(self.happenings) < _MOST_LINES:
            self.happenings.append(Happening(self._machine.engine.now_ns, what, is_mark))

    def _sample(self) -> None:
        self._take()
        self._machine.engine.call_later(self._sample_ns, self._sample)

    def _take(self) -> None:
        machine = self._machine
        allocator, page_bytes = machine.allocator, machine.parameters.page_bytes
        self.samples.append(
            MemorySample(
                machine.engine.now_ns,
                allocator.free * page_bytes,
                allocator.anon * page_bytes,
                (allocator.swap_total - allocator.swap_free) * page_bytes,
                machine.pressure.stalled,
            )
        )

    def _mib(self, pages: int) -> float:
        return pages * self._machine.parameters.page_bytes / (1 << 20)
