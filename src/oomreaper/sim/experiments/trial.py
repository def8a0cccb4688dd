"""One run of one scenario with one killer and one seed: what became of the machine, and what broke on the way.

The same arguments come to the same result, step by step. Our own code runs in greenlets on the model, whose modules are
bound to it for the time of the run: one run at a time in one Python.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.sim.choice import Recorded, Seeded
from oomreaper.sim.engine import Band
from oomreaper.sim.experiments.contenders import OURS, find_contender, need_greenlet
from oomreaper.sim.experiments.recording import Recording
from oomreaper.sim.experiments.verdict import Finish, Judge, Limits
from oomreaper.sim.killers.registry import make_killer, parameters_of
from oomreaper.sim.scenario import build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.model.plan import Plan
    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.engine import TraceLine
    from oomreaper.sim.experiments.recording import Happening, MemorySample
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.scenario_file import Setup
    from oomreaper.sim.userland import Faults

_LIMITS = Limits()


class Trial(NamedTuple):
    """How it ended. ``told``: what our watcher announced, killed, settled and skipped, where it ran."""

    scenario: str
    killer: str
    seed: int
    finish: Finish
    told: tuple[tuple[int, str, str], ...] = ()
    happenings: tuple[Happening, ...] = ()
    samples: tuple[MemorySample, ...] = ()
    trace: tuple[TraceLine, ...] = ()
    choices: tuple[int, ...] = ()
    start_ns: int = 0
    memory_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """The result, without what was recorded."""
        finish = self.finish
        return {
            "scenario": self.scenario,
            "killer": self.killer,
            "seed": self.seed,
            "verdict": finish.verdict.value,
            "duration_ms": finish.duration_ns / 1_000_000,
            "short_ms": finish.short_ns / 1_000_000,
            "kills": finish.kills,
            "steps": finish.steps,
            "diagnosis": list(finish.diagnosis),
        }


def run_trial(
    setup: Setup,
    *,
    seed: int,
    killer: str,
    limits: Limits = _LIMITS,
    is_recorded: bool = False,
    is_traced: bool = False,
) -> Trial:
    """Run it.

    Args:
        setup: Who is on the machine.
        seed: What the schedule comes from.
        killer: A name of ``contenders.NAMES``.
        limits: When it is ended though nothing is decided.
        is_recorded: Keep what happened and memory over time.
        is_traced: Keep every step and every choice, too.

    Raises:
        UsageError: There is no such killer.
        KernelError: greenlet is needed and is not installed.
        Violation: Something came to be that must never be.
    """
    find_contender(killer)
    seeded = Seeded(seed)
    recorded = Recorded(seeded) if is_traced else None
    with contest(setup, chooser=seeded if recorded is None else recorded, killer=killer) as (machine, watch):
        recording = Recording(machine) if is_recorded or is_traced else None
        if is_traced:
            machine.engine.trace = []
        start_ns = machine.engine.now_ns
        finish = Judge(machine).run(limits)
        if recording is not None:
            recording.finish()
        told = () if watch is None else tuple((each.now_ns, each.kind, each.text) for each in watch.voice.told)
        return Trial(
            setup.scenario.name,
            killer,
            seed,
            finish,
            told=told,
            happenings=() if recording is None else tuple(recording.happenings),
            samples=() if recording is None else tuple(recording.samples),
            trace=tuple(machine.engine.trace or ()),
            choices=() if recorded is None else tuple(recorded.choices),
            start_ns=start_ns,
            memory_bytes=machine.parameters.memory_bytes,
        )


@contextlib.contextmanager
def contest(
    setup: Setup, *, chooser: Chooser, killer: str, faults: Faults | None = None
) -> Iterator[tuple[Machine, Any]]:
    """The machine with its killer, ready to run; and our watcher (``watching.Watch``), None for the kernel's own."""
    scenario = setup.scenario
    if killer != OURS:
        scenario = scenario._replace(parameters=parameters_of(killer, scenario.parameters))
        yield build(scenario, chooser, make_killer(killer)).machine, None
        return
    need_greenlet()
    # Here, not above: a simulation of the kernel's killers needs no greenlet.
    from oomreaper.sim.linux.bind import bound
    from oomreaper.sim.userland import NO_FAULTS, Userland
    from oomreaper.sim.watching import Watch

    machine = build(scenario, chooser).machine
    userland = Userland(machine, NO_FAULTS if faults is None else faults)
    with bound(userland) as calls:
        band = Band.FIFO if setup.is_realtime else Band.NORMAL
        yield machine, Watch(userland, calls, setup.plan or default_plan(), band=band)


@functools.cache
def default_plan() -> Plan:
    """What the watcher does without a settings file."""
    from oomreaper.config.load import load_plan

    return load_plan(None)[0]
