"""Our own code under adversarial schedules and failing calls: each seed is another machine, and another schedule on it.

An even seed is an errand (``reaping``: crew and workers, for victims that are named), an odd one a watcher
(``watching``: policy, crew, workers) on a machine that runs out of memory. Who is there, and what they stand in, comes
from the seed too. What must hold is ``invariants``, and here: nobody is killed who was not announced,
and no second one while the first one's memory is awaited, unless memory was critical. Whatever our code raises is a
failure as well.

A failure is made small: processes are left out, faults are turned off, then the schedule is shortened; what is left
is a file that replays exactly.
"""

from __future__ import annotations

import functools
import random
import re
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.sim.checks import Violation
from oomreaper.sim.choice import Recorded, Replayed, Seeded
from oomreaper.sim.engine import Band
from oomreaper.sim.experiments.shrinking import shrink_choices, shrink_items
from oomreaper.sim.experiments.trial import default_plan
from oomreaper.sim.invariants import RULES, Invariants, guard, is_loss_of_worker
from oomreaper.sim.parameters import MIB, PLAIN, SECOND
from oomreaper.sim.scenario import GroupSpec, ProcessSpec, ProgramSpec, Scenario, build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oomreaper.model.plan import Plan
    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.tasks import Process
    from oomreaper.sim.watching import Watch

_PARAMETERS = PLAIN._replace(memory_bytes=512 * MIB, slice_pages=4096)
# A victim is given up after a second of attempts; two or three of them, and what failing calls cost, fit into that.
_RUN_NS = 15 * SECOND
_MOST_STEPS = 60_000
# Failing calls and lost workers cost attempts of 100 ms each: ten of them, thrice.
_BOUND_NS = 12 * SECOND
_SHRINK_TRIES = 300
# A watcher's run is over when nothing was awaited at the ends of two seconds in a row.
_CALM_SECONDS = 2
# By the plan without a file a victim that was asked to end has ten seconds, in which the watcher looks every
# millisecond: 60 % of what all runs cost (Nov 2026). It is given one second.
_HASTE_NS = SECOND
# But one run of so many is spared neither the patience nor the calm after it.
_WHOLE_ONE_IN = 16


class Case(NamedTuple):
    """One machine of the check. ``kept`` are the numbers of the processes that are left in it."""

    seed: int
    kept: tuple[int, ...] | None = None
    has_faults: bool = True

    @property
    def is_watched(self) -> bool:
        """Whether it is the watcher's; else the errand's."""
        return bool(self.seed % 2)

    def as_json(self) -> dict[str, Any]:
        """For the file of a failure."""
        return {
            "seed": self.seed,
            "processes": None if self.kept is None else list(self.kept),
            "has_faults": self.has_faults,
        }


class Failure(NamedTuple):
    """What broke, in which case, under which schedule."""

    case: Case
    invariant: str
    text: str
    choices: tuple[int, ...]
    steps: int

    def as_json(self) -> dict[str, Any]:
        """The file that replays it."""
        return {
            "kind": "failure",
            **self.case.as_json(),
            "invariant": self.invariant,
            "text": self.text,
            "steps": self.steps,
            "choices": list(self.choices),
        }


def read_failure(record: dict[str, Any]) -> tuple[Case, list[int]]:
    """A case and its schedule from the file.

    Raises:
        KeyError, TypeError, ValueError: It is no such file.
    """
    kept = record["processes"]
    case = Case(int(record["seed"]), None if kept is None else tuple(map(int, kept)), bool(record["has_faults"]))
    return case, [int(choice) for choice in record["choices"]]


def check_seed(seed: int) -> dict[str, Any]:
    """One seed: ``{"steps": n}``, and with ``violation`` what broke (not shrunk)."""
    steps, failure = attempt(Case(seed), Seeded(seed))
    if failure is None:
        return {"steps": steps}
    return {"steps": steps, "violation": {"invariant": failure[0], "text": failure[1]}}


def shrink(seed: int) -> Failure | None:
    """Seed's failure, made small; None when it does not fail."""
    case = Case(seed)
    recorded = Recorded(Seeded(seed))
    _, failure = attempt(case, recorded)
    if failure is None:
        return None
    invariant = failure[0]

    def fails(case: Case, chooser: Chooser) -> bool:
        _, found = attempt(case, chooser)
        return found is not None and found[0] == invariant

    numbers = list(range(len(make_scenario(case).processes)))
    kept = shrink_items(numbers, lambda numbers: fails(case._replace(kept=tuple(numbers)), Seeded(seed)))  # type: ignore[arg-type] # numbers, as they went in
    if kept != numbers:
        case = case._replace(kept=tuple(kept))  # type: ignore[arg-type] # as above
    if fails(case._replace(has_faults=False), Seeded(seed)):
        case = case._replace(has_faults=False)
    recorded = Recorded(Seeded(seed))
    attempt(case, recorded)
    choices = shrink_choices(recorded.choices, lambda choices: fails(case, Replayed(choices)), most_tries=_SHRINK_TRIES)
    steps, failure = attempt(case, Replayed(choices))
    assert failure is not None, "what was shrunk fails still"
    return Failure(case, *failure, tuple(choices), steps)


def attempt(case: Case, chooser: Chooser) -> tuple[int, tuple[str, str] | None]:
    """Run a case once: how many steps it took, and what broke: the invariant's name, and what it says."""
    machine: Machine | None = None
    try:
        stage = build(make_scenario(case), chooser)
        machine = stage.machine
        if case.is_watched:
            _watch(machine, case)
        else:
            _reap(machine, case, list(stage.processes.values()))
    except Violation as violation:
        return 0 if machine is None else machine.engine.steps, (violation.invariant, violation.text)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever our code raises is what we look for
        where = traceback.format_exc(limit=-3)
        return 0 if machine is None else machine.engine.steps, (type(error).__name__, f"{error}\n{where}")
    return machine.engine.steps, None


# -- the two of them ---------------------------------------------------------------------------------------


def _reap(machine: Machine, case: Case, processes: list[Process]) -> None:
    from oomreaper.sim.linux.bind import bound
    from oomreaper.sim.reaping import Reaping
    from oomreaper.sim.userland import ALL_FAULTS, NO_FAULTS, Userland

    choice = random.Random(case.seed + 1)  # noqa: S311 - a simulation
    victims = choice.sample(processes, min(len(processes), choice.choice((1, 1, 2, 3))))
    userland = Userland(machine, ALL_FAULTS if case.has_faults else NO_FAULTS)
    rules = RULES["ours"]._replace(bound_ns=_BOUND_NS)
    invariants = Invariants(machine, rules, meant=victims, count_failures=lambda: len(userland.injected))
    machine.engine.run(until_ns=machine.engine.now_ns + choice.choice((0, SECOND // 100, SECOND // 10)))
    with bound(userland) as calls:
        pids = tuple(victim.pid for victim in victims)
        reaping = Reaping(userland, calls, pids, band=choice.choice((Band.FIFO, Band.NORMAL)), stop_when_done=False)
        guard(reaping.user.process.threads[0].actor)
        machine.engine.run(until_ns=machine.engine.now_ns + _RUN_NS, max_steps=_MOST_STEPS)
    outcomes = {victim: reaping.outcomes[victim.pid] for victim in victims if victim.pid in reaping.outcomes}
    if len(outcomes) == len(victims):
        invariants.check_outcomes(outcomes)


def _watch(machine: Machine, case: Case) -> None:
    from oomreaper.sim.linux.bind import bound
    from oomreaper.sim.userland import ALL_FAULTS, NO_FAULTS, Userland
    from oomreaper.sim.watching import Watch

    choice = random.Random(case.seed + 1)  # noqa: S311 - a simulation
    userland = Userland(machine, ALL_FAULTS if case.has_faults else NO_FAULTS)
    rules = RULES["ours"]._replace(bound_ns=_BOUND_NS)
    invariants = Invariants(machine, rules, count_failures=lambda: len(userland.injected))
    with bound(userland) as calls:
        is_whole = case.seed // 2 % _WHOLE_ONE_IN == 0
        plan = default_plan() if is_whole else _hastened_plan()
        watch = Watch(userland, calls, plan, band=choice.choice((Band.FIFO, Band.NORMAL)))
        guard(watch.user.process.threads[0].actor)
        machine.hooks.kill.append(_Accountant(watch).on_kill)
        _run_until_settled(watch, invariants, machine, is_whole=is_whole)


def _run_until_settled(watch: Watch, invariants: Invariants, machine: Machine, *, is_whole: bool) -> None:
    """Go on for as long as a victim is awaited, and one to two seconds more; ``is_whole``: to the end in any case.

    What comes after that is a watcher that looks at a machine with free memory.
    """
    engine = machine.engine
    end_ns, last_step = engine.now_ns + _RUN_NS, engine.steps + _MOST_STEPS
    settled_for = 0
    while engine.now_ns < end_ns and engine.steps < last_step and (settled_for < _CALM_SECONDS or is_whole):
        engine.run(until_ns=min(engine.now_ns + SECOND, end_ns), max_steps=last_step - engine.steps)
        settled_for = settled_for + 1 if watch.is_settled and invariants.is_settled else 0


class _Accountant:
    """Holds each SIGKILL of ours against what the watcher told before."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_kill(self, process: Process, sender: Process | None) -> None:
        """A SIGKILL was sent."""
        if sender is None or not sender.comm.startswith(b"oomreaper") or is_loss_of_worker(process, sender):
            return
        told = self._watch.voice.told
        announced = {each.identity for each in told if each.kind == "announce"}
        kin = set() if process.mm is None else {other.identity for other in process.mm.processes}  # type: ignore[attr-defined] # list[object]
        if not announced & ({process.identity} | kin):
            raise Violation("unannounced", f"{process} is killed by {sender}, and nobody was told")
        settled = {each.identity for each in told if each.kind == "settled"}
        awaited = [
            each for each in told if each.kind == "killed" and each.identity not in settled | {process.identity} | kin
        ]
        # Memory may have become critical when the other was announced, with this one asked to end before.
        concerned = {process.identity, *(each.identity for each in awaited)} | kin
        reasons = [each.text for each in told if each.kind == "announce" and each.identity in concerned]
        if awaited and not any(map(_is_critical, reasons)):
            raise Violation("second-kill", f"{process} is killed while {awaited[0].identity} is awaited: {reasons}")


@functools.cache
def _hastened_plan() -> Plan:
    """The default, with less patience."""
    plan = default_plan()
    return plan._replace(
        rules=tuple(
            rule._replace(then=tuple(step._replace(after_ns=min(step.after_ns, _HASTE_NS)) for step in rule.then))
            for rule in plan.rules
        )
    )


def _is_critical(reason: str) -> bool:
    """Whether the memory that a reason names is so little that several may be killed at once."""
    found = re.search(r"mem_available is ([0-9.]+) %", reason)
    return found is not None and float(found[1]) < default_plan().critical.threshold


# -- machines from a seed ----------------------------------------------------------------------------------


def make_scenario(case: Case) -> Scenario:
    """Who is there: from the seed, less who was left out."""
    choice = random.Random(case.seed)  # noqa: S311 - a simulation
    count = choice.randint(2, 6)
    processes: list[ProcessSpec] = []
    room_mib = 360.0
    for number in range(count):
        mib = float(choice.randint(4, max(5, int(room_mib / (count - number)) * 3 // 2)))
        mib = min(mib, room_mib)
        room_mib -= mib
        processes.append(_make_process(choice, number, mib, processes))
    if case.is_watched:
        processes.append(
            ProcessSpec(
                "hog", (ProgramSpec("hog", {"mib": 480, "pause_ms": choice.choice((0, 0, 1)), "start_ms": 30}),)
            )
        )
    kept = processes if case.kept is None else [processes[number] for number in case.kept]
    names = {process.name for process in kept}
    return Scenario(
        f"seed {case.seed}",
        tuple(_without_absent(process, names) for process in kept),
        _PARAMETERS._replace(swap_bytes=choice.choice((0, 0, 64 * MIB))),
        groups={"/box": GroupSpec(None)},
        freezers=("/frozen",),
        cpu_groups={"/slow": 1.0},
        kernel_mib=32,
        cache_mib=16,
        recycles_pids=choice.random() < 0.5,  # noqa: PLR2004 - as often as not
    )


def _make_process(choice: random.Random, number: int, mib: float, earlier: Sequence[ProcessSpec]) -> ProcessSpec:
    program = choice.choice(_PROGRAMS)(choice, earlier)
    others = [ProgramSpec("idle")] * choice.choice((0, 0, 1, 5))
    programs = (program, *others) if choice.random() < 0.5 else (*others, program)  # noqa: PLR2004 - as often as not
    shares = choice.random() < 0.15 and earlier  # noqa: PLR2004 - some
    return ProcessSpec(
        f"p{number}",
        programs,
        anon_mib=0 if shares else mib,
        shared_mib=choice.choice((0, 0, 0, 8)),
        locked_mib=choice.choice((0, 0, 0, 8)),
        shares_with=choice.choice(earlier).name if shares else None,
        oom_score_adj=choice.choice((0, 0, 0, 0, 300, -500, -1000)),
        band=choice.choice(("normal", "normal", "normal", "idle")),
        freezer=choice.choice((None, None, None, "/frozen")),
        cpu_group=choice.choice((None, None, None, "/slow")),
        exit_gate=choice.choice((None, None, None, None, "a tracer")),
        waited_after_ms=choice.choice((0, 0, 50, None)),
        ignores_term=choice.random() < 0.3,  # noqa: PLR2004 - some
        notifier_blocks=choice.random() < 0.05,  # noqa: PLR2004 - few
    )


def _without_absent(process: ProcessSpec, names: set[str]) -> ProcessSpec:
    """A process whose others were left out does without them."""
    if process.shares_with not in names:
        process = process._replace(shares_with=None)
    programs = tuple(
        ProgramSpec("idle") if program.options.get("of", process.name) not in names else program
        for program in process.programs
    )
    return process._replace(programs=programs)


_PROGRAMS = (
    lambda _choice, _earlier: ProgramSpec("idle"),
    lambda _choice, _earlier: ProgramSpec("busy", {"step_ms": 5}),
    lambda _choice, _earlier: ProgramSpec("stand", {"gate": "a server"}),
    lambda _choice, _earlier: ProgramSpec("write_file", {"inode": "log", "mib": 1, "pause_ms": 20}),
    lambda _choice, _earlier: ProgramSpec("hold_inode", {"inode": "log", "gate": "a server"}),
    lambda _choice, _earlier: ProgramSpec("hold_mmap_lock", {"gate": "a server"}),
    lambda _choice, _earlier: ProgramSpec("map_and_unmap", {"mib": 1, "pause_ms": 20}),
    lambda choice, _earlier: ProgramSpec("leave", {"after_ms": choice.randint(1, 200)}),
    lambda choice, _earlier: ProgramSpec("hog", {"mib": choice.randint(1, 40), "pause_ms": 1}),
    lambda _choice, _earlier: ProgramSpec("thread_exit"),
    lambda choice, _earlier: ProgramSpec("crash", {"dump_ms": choice.randint(1, 4000)}),
    lambda choice, earlier: (
        ProgramSpec("pin_memory", {"of": choice.choice(earlier).name, "gate": "a page"})
        if earlier
        else ProgramSpec("idle")
    ),
)
