"""How a run ends: whether the machine recovered, locked up, or was never short; decided by a timer that only looks.

A machine is *locked up* when somebody waits for memory, and for ten seconds on end no page of any process was freed and
nobody who waited got on. It has *recovered* when it was short, nobody waits any more, and that has lasted for a second.
Ten seconds are ten times what the longest path of any killer here takes (ten attempts of 100 ms, and the later kernel's
delay of two seconds), and a page that is freed starts them anew, so slowness is not taken for a lock-up.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.sim.diagnosis import diagnose
from oomreaper.sim.engine import Ending

if TYPE_CHECKING:
    from oomreaper.sim.machine import Machine

_LOOK_NS = 100_000_000
# Our watcher ends its own stuck workers by SIGKILL: no victims.
_OUR_COMM = b"oomreaper"
_STILL_NS = 10_000_000_000
_CALM_NS = 1_000_000_000


class Verdict(enum.StrEnum):
    """What became of the machine."""

    RECOVERED = "recovered"
    LOCKED_UP = "locked up"
    NEVER_SHORT = "never short"
    UNDECIDED = "undecided"  # the time, or the steps, were over


class Limits(NamedTuple):
    """When a run is ended though nothing is decided: in virtual time, and in steps."""

    duration_ns: int = 120_000_000_000
    steps: int = 3_000_000


class Finish(NamedTuple):
    """How a run ended. ``short_ns``: for how long somebody waited for memory.

    ``diagnosis`` says who waits for whom, where it locked up or could not go on.
    """

    verdict: Verdict
    duration_ns: int
    steps: int
    kills: int
    short_ns: int
    diagnosis: tuple[str, ...]


class Judge:
    """Looks at a machine from time to time, and ends its run when it knows. Made before the run."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._engine = machine.engine
        self._start_ns = self._calm_since_ns = self._moved_ns = machine.engine.now_ns
        self._last_some_us = 0
        self._was_short = False
        self.verdict: Verdict | None = None
        machine.hooks.free.append(self._on_free)
        self._engine.call_later(_LOOK_NS, self._look)

    def run(self, limits: Limits) -> Finish:
        """Run the machine to its end.

        Raises:
            Violation: An invariant was broken.
        """
        first_step = self._engine.steps
        ending = self._engine.run(until_ns=self._start_ns + limits.duration_ns, max_steps=limits.steps)
        verdict = self.verdict or self._judge_end(ending)
        diagnosis: tuple[str, ...] = ()
        if verdict is Verdict.LOCKED_UP or ending is Ending.STUCK:
            found = diagnose(self._machine)
            ring = (f"a ring: {' -> '.join(found.cycle)}",) if found.cycle else ()
            diagnosis = (*ring, *found.lines)
        return Finish(
            verdict,
            self._engine.now_ns - self._start_ns,
            self._engine.steps - first_step,
            sum(not process.comm.startswith(_OUR_COMM) for _, process, _ in self._machine.kills),
            self._machine.pressure.totals_us()[0] * 1_000,
            diagnosis,
        )

    def _judge_end(self, ending: Ending) -> Verdict:
        if self._machine.pressure.stalled:
            return Verdict.LOCKED_UP if ending is Ending.STUCK else Verdict.UNDECIDED
        if ending in (Ending.TIME, Ending.STEPS) and self._was_short:
            return Verdict.UNDECIDED
        return Verdict.RECOVERED if self._was_short else Verdict.NEVER_SHORT

    def _on_free(self, *_what: object) -> None:
        self._moved_ns = self._engine.now_ns

    def _look(self) -> None:
        now_ns = self._engine.now_ns
        if self._machine.pressure.stalled:
            self._was_short = True
            self._calm_since_ns = now_ns
            if now_ns - self._moved_ns >= _STILL_NS:
                self._end(Verdict.LOCKED_UP)
                return
        else:
            self._moved_ns = now_ns
            if self._machine.pressure.totals_us()[0] != self._last_some_us:
                self._last_some_us = self._machine.pressure.totals_us()[0]
                self._was_short = True
                self._calm_since_ns = now_ns
            if self._was_short and now_ns - self._calm_since_ns >= _CALM_NS:
                self._end(Verdict.RECOVERED)
                return
        self._engine.call_later(_LOOK_NS, self._look)

    def _end(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self._engine.stop()
