"""Small machines on which one thing can go wrong: where mutants are caught, and what is right runs clean.

A stage says who is there. ``play`` runs the kernel's killer on it, ``play_ours`` our own crew and workers; both hang
the invariants on the machine, and raise what was violated. Every stage comes to rest by itself within ``_PLAY_NS``:
what stands at a gate is let through after some seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.plan import StepKind
from oomreaper.reaper.settings import Settings
from oomreaper.sim import programs
from oomreaper.sim.checks import Violation
from oomreaper.sim.engine import Band, Ending, Sleep
from oomreaper.sim.groups import MemoryGroup
from oomreaper.sim.invariants import RULES, Invariants, guard
from oomreaper.sim.killers.registry import parameters_of
from oomreaper.sim.locks import Mutex
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import MIB, MS, PLAIN, SECOND
from oomreaper.sim.programs import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.plan import Plan
    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.engine import Steps
    from oomreaper.sim.killer import Killer
    from oomreaper.sim.tasks import Process, Program, Thread
    from oomreaper.sim.watching import Watch

# Small enough that a play takes a few hundred steps, large enough that victims differ in size.
_PARAMETERS = PLAIN._replace(memory_bytes=512 * MIB, slice_pages=4096)
_PLAY_NS = 14 * SECOND
_MOST_STEPS = 200_000
_LATE_NS = 8 * SECOND


class Played(NamedTuple):
    """A play that came to its end: how many steps it took."""

    machine: Machine
    steps: int
    ending: Ending


def make_machine(chooser: Chooser, killer: Killer) -> Machine:
    """A small machine of that killer's time."""
    return Machine(chooser, parameters_of(killer.name, _PARAMETERS), killer=killer, kernel_mib=16, cache_mib=8)


def play(chooser: Chooser, killer: Killer, stage: Callable[[Machine], None], *, with_trace: bool = False) -> Played:
    """One run of the kernel's killer on a stage.

    Raises:
        Violation: An invariant did not hold; the machine is in its ``machine`` attribute.
    """
    machine = make_machine(chooser, killer)
    engine = machine.engine
    engine.trace = [] if with_trace else None
    try:
        invariants = Invariants(machine, RULES[killer.name])
        stage(machine)
        ending = engine.run(until_ns=engine.now_ns + _PLAY_NS, max_steps=_MOST_STEPS)
        invariants.check_end()
    except Violation as violation:
        violation.machine = machine  # type: ignore[attr-defined] # for who shows the trace
        raise
    return Played(machine, engine.steps, ending)


# -- the parts of a stage ----------------------------------------------------------------------------------


def open_later(machine: Machine, name: str, after_ns: int) -> Gate:
    """A gate that is opened then."""
    gate = Gate(name)
    machine.engine.call_later(after_ns, gate.open)
    return gate


def hold_and_allocate(inode: Mutex, mib: float, *, after_ns: int = 20 * MS) -> Program:
    """The other half of the lock-up: takes an inode lock, and needs memory with the lock held."""

    def run(machine: Machine, thread: Thread) -> Steps:
        yield from inode.lock(thread.actor)
        pages = machine.parameters.pages(mib)
        yield Sleep(after_ns, "the disk", is_interruptible=False)
        yield from machine.allocate(thread, pages)
        machine.give_back(pages)
        inode.unlock(thread.actor)
        yield from machine.user(thread)
        yield from programs.idle()(machine, thread)

    return run


def _hungry(machine: Machine, mib: float, **more: object) -> Process:
    """Whoever needs the memory; nobody may kill it."""
    return machine.add_process("hungry", [programs.hog(mib)], oom_score_adj=-1000, **more)  # type: ignore[arg-type] # as add_process


# -- stages for the kernel's killers -----------------------------------------------------------------------


def stuck(machine: Machine) -> None:
    """A victim in D with every kind of memory: only a reaper gets anything back."""
    gate = open_later(machine, "a dead server", _LATE_NS)
    machine.add_process(
        "victim",
        [programs.stand_in(gate)],
        anon_mib=240,
        file_mib=8,
        shared_mib=16,
        areas=[(Area(Kind.HUGETLB), 16), (Area(Kind.ANONYMOUS, "mlocked", is_locked=True), 16)],
    )
    _hungry(machine, 250)


def lockup(machine: Machine) -> None:
    """The founding commit's story: the victim waits for a lock whose holder loops in the page allocator."""
    inode = Mutex(machine.engine, "the inode")
    machine.add_process("holder", [hold_and_allocate(inode, 200)], anon_mib=4, oom_score_adj=-1000)

    def come_later(machine: Machine, thread: Thread) -> Steps:
        yield from machine.nap(thread, 5 * MS)
        yield from programs.wait_for_inode(inode)(machine, thread)

    machine.add_process("victim", [come_later], anon_mib=300)


def healthy(machine: Machine) -> None:
    """Two victims, one after the other, that can exit: the reaper and their exits race."""
    machine.add_process("first", [programs.idle(), programs.idle()], anon_mib=200)
    machine.add_process("second", [programs.busy(20 * MS)], anon_mib=120)
    _hungry(machine, 420)


def two_groups(machine: Machine) -> None:
    """Two control groups run full: the second victim comes while the first one's mmap_lock is held, for 450 ms."""
    one, other = (MemoryGroup(name, machine.parameters.pages(140), has_killer=True) for name in ("/one", "/other"))
    machine.groups |= {"/one": one, "/other": other}
    gate = open_later(machine, "a slow disk", 450 * MS)
    machine.add_process("locked", [programs.hold_mmap_lock(gate)], anon_mib=100, group=one)
    machine.add_process("plain", [programs.idle()], anon_mib=100, group=other)
    _hungry(machine, 100, group=one)
    machine.add_process("hungry too", [programs.hog(100, start_ns=100 * MS)], oom_score_adj=-1000, group=other)


def locked_long(machine: Machine) -> None:
    """A victim's mmap_lock is held for writing for longer than all attempts take."""
    gate = open_later(machine, "a dead disk", _LATE_NS)
    machine.add_process("locked", [programs.hold_mmap_lock(gate)], anon_mib=240)
    _hungry(machine, 300)


def sharing(machine: Machine) -> None:
    """A victim in D, and a process on the same memory that could live on."""
    gate = open_later(machine, "a dead server", _LATE_NS)
    victim = machine.add_process("victim", [programs.stand_in(gate)], anon_mib=240)
    machine.add_process("sharer", [programs.busy(10 * MS)], mm=victim.mm)
    _hungry(machine, 300)


def unkillable_sharer(machine: Machine) -> None:
    """Somebody with oom_score_adj -1000 is on the victim's memory."""
    gate = open_later(machine, "a dead server", _LATE_NS)
    victim = machine.add_process("victim", [programs.stand_in(gate)], anon_mib=240)
    machine.add_process("protected", [programs.idle()], mm=victim.mm, oom_score_adj=-1000)
    _hungry(machine, 300)


def dumping(machine: Machine) -> None:
    """The victim writes a core to a file system that does not answer."""
    gate = open_later(machine, "a dead file system", _LATE_NS)
    machine.add_process("dumper", [programs.crash(dump_ns=50 * MS, gate=gate)], anon_mib=240)
    machine.add_process("hungry", [programs.hog(300, start_ns=5 * MS)], oom_score_adj=-1000)


def protected(machine: Machine) -> None:
    """The largest is protected."""
    machine.add_process("precious", [programs.idle()], anon_mib=240, oom_score_adj=-1000)
    machine.add_process("victim", [programs.idle()], anon_mib=100)
    _hungry(machine, 180)


KERNEL_STAGES: tuple[Callable[[Machine], None], ...] = (
    stuck, lockup, healthy, two_groups, locked_long, sharing, unkillable_sharer, dumping, protected,
)  # fmt: skip


# -- stages for our own crew and workers -------------------------------------------------------------------


class OurStage(NamedTuple):
    """Who is there, who is named as a victim, and how the crew is set."""

    name: str
    prepare: Callable[[Machine], list[Process]]
    settings: Settings = Settings()
    band: Band = Band.FIFO
    warm_up_ns: int = 10 * MS


def _ours_stuck(machine: Machine) -> list[Process]:
    gate = open_later(machine, "a dead server", _LATE_NS)
    return [machine.add_process("victim", [programs.stand_in(gate)], anon_mib=240)]


def _ours_skipped(machine: Machine) -> list[Process]:
    """The kernel's own reaper gave it up before: process_mrelease answers 0, and nothing comes back."""
    (victim,) = _ours_stuck(machine)
    assert victim.mm is not None
    victim.mm.is_skipped = True
    return [victim]


def _ours_sharing(machine: Machine) -> list[Process]:
    """Both of two that share their memory are named."""
    (victim,) = _ours_stuck(machine)
    return [victim, machine.add_process("sharer", [programs.busy(10 * MS)], mm=victim.mm)]


def _ours_one_shares(machine: Machine) -> list[Process]:
    """One of two that share their memory is named."""
    return _ours_sharing(machine)[:1]


def _ours_locked(machine: Machine) -> list[Process]:
    """Two whose mmap_lock is held take both slots; a third waits, ends by itself, and its pid is used again."""
    gate = open_later(machine, "a dead disk", _LATE_NS)
    victims = [
        machine.add_process(f"locked {number}", [programs.hold_mmap_lock(gate)], anon_mib=100) for number in (1, 2)
    ]
    third = machine.add_process("third", [programs.leave_after(300 * MS)], anon_mib=50)

    def fork() -> None:
        if third.is_waited:
            machine.add_process("newcomer", [programs.idle()], anon_mib=50, pid=third.pid)
        else:
            machine.engine.call_later(50 * MS, fork)

    machine.engine.call_later(400 * MS, fork)
    return [*victims, third]


def _ours_lockup(machine: Machine) -> list[Process]:
    """The lock-up, and not one page to be had: whoever allocates now loops, too."""
    lockup(machine)
    allocator = machine.allocator
    allocator.reclaim(allocator.cache)
    pages = allocator.free - allocator.min
    ballast = machine.add_process("ballast", [programs.idle()], oom_score_adj=-1000)
    assert ballast.mm is not None
    machine.give(ballast.mm, ballast.mm.find(Kind.ANONYMOUS), pages)
    victim = next(process for process in machine.processes.values() if process.comm == b"victim")
    return [victim]


def _ours_pinned(machine: Machine) -> list[Process]:
    """Somebody reads the victim's memory and stands there; the victim itself is quick to leave."""
    gate = open_later(machine, "a dead page", _LATE_NS)
    victim = machine.add_process("victim", [programs.busy(MS)], anon_mib=200)
    machine.add_process("reader", [programs.pin_memory_of(lambda: victim.mm, gate)])
    return [victim]


def _ours_dumping(machine: Machine) -> list[Process]:
    return [machine.add_process("dumper", [programs.crash(dump_ns=2 * SECOND)], anon_mib=200)]


def _ours_protected(machine: Machine) -> list[Process]:
    return [machine.add_process("precious", [programs.idle()], anon_mib=200, oom_score_adj=-1000)]


OUR_STAGES: tuple[OurStage, ...] = (
    OurStage("stuck", _ours_stuck),
    OurStage("skipped", _ours_skipped),
    OurStage("sharing", _ours_sharing),
    OurStage("one shares", _ours_one_shares),
    OurStage("locked", _ours_locked),
    OurStage("lock-up", _ours_lockup, warm_up_ns=50 * MS),
    OurStage("pinned", _ours_pinned, band=Band.NORMAL),
    OurStage("dumping", _ours_dumping, Settings(spare_dump=True)),
    OurStage("protected", _ours_protected),
)


def play_ours(chooser: Chooser, killer: Killer, stage: OurStage, *, with_trace: bool = False) -> Played:
    """One run of our crew, with real workers, on a stage.

    Raises:
        Violation: An invariant did not hold.
    """
    # Only who plays this needs greenlets.
    from oomreaper.sim.linux.bind import bound
    from oomreaper.sim.reaping import Reaping
    from oomreaper.sim.userland import Userland

    machine = make_machine(chooser, killer)
    engine = machine.engine
    engine.trace = [] if with_trace else None
    try:
        victims = stage.prepare(machine)
        rules = RULES["ours"]._replace(spares_dumps=stage.settings.spare_dump)
        invariants = Invariants(machine, rules, meant=victims)
        userland = Userland(machine)
        with bound(userland) as calls:
            engine.run(until_ns=engine.now_ns + stage.warm_up_ns)
            pids = tuple(victim.pid for victim in victims)
            reaping = Reaping(userland, calls, pids, settings=stage.settings, band=stage.band, stop_when_done=False)
            guard(reaping.user.process.threads[0].actor)
            ending = engine.run(until_ns=engine.now_ns + 6 * SECOND, max_steps=_MOST_STEPS)
        for pid in pids:
            if pid not in reaping.outcomes:
                raise Violation("progress", f"{pid} has no outcome after 6 s")
        invariants.check_outcomes({victim: reaping.outcomes[victim.pid] for victim in victims})
    except Violation as violation:
        violation.machine = machine  # type: ignore[attr-defined] # for who shows the trace
        raise
    return Played(machine, engine.steps, ending)


# -- stages for our own watcher ----------------------------------------------------------------------------


def watched_two(machine: Machine) -> None:
    """One who needs more and more memory, and two who have it: the watcher must take one, and then see."""
    machine.add_process("first", [programs.busy(5 * MS)], anon_mib=240)
    machine.add_process("second", [programs.busy(5 * MS)], anon_mib=100)
    machine.add_process("hungry", [programs.hog(300, pause_ns=MS)], oom_score_adj=-1000)


def watched_unreapable(machine: Machine) -> None:
    """The largest cannot be reaped: it is given up, and the next one must be taken."""
    gate = open_later(machine, "a dead disk", 60 * SECOND)
    machine.add_process("locked", [programs.hold_mmap_lock(gate)], anon_mib=200)
    machine.add_process("next", [programs.idle()], anon_mib=120)
    machine.add_process("hungry", [programs.hog(220, pause_ns=MS)], oom_score_adj=-1000)


WATCH_STAGES: tuple[Callable[[Machine], None], ...] = (watched_two, watched_unreapable)


def _check_alone(watch: Watch, process: Process, sender: Process | None) -> None:
    """No victim of ours while another has no outcome; on these stages memory is never critical."""
    if sender is None or process.comm.startswith(b"oomreaper"):
        return
    settled = {told.identity for told in watch.voice.of_kind("settled")}
    for told in watch.voice.of_kind("killed"):
        if told.identity not in settled and told.identity != process.identity:
            raise Violation("second-kill", f"{process} is killed while {told.identity} is awaited")


def _without_asking(plan: Plan) -> Plan:
    """The first rule alone, with its kill and no SIGTERM before it: a play is to be short."""
    rule = plan.rules[0]
    steps = tuple(step._replace(after_ns=0, or_when=None) for step in rule.then if step.kind is StepKind.KILL)
    return plan._replace(rules=(rule._replace(then=steps),))


def play_watch(
    chooser: Chooser, killer: Killer, stage: Callable[[Machine], None], *, with_trace: bool = False
) -> Played:
    """One run of our watcher, with its policy, crew and workers, on a stage.

    Raises:
        Violation: An invariant did not hold, or whoever needed memory has not got it after six seconds.
    """
    # Only who plays this needs greenlets and the settings.
    from oomreaper.config.load import load_plan
    from oomreaper.sim.linux.bind import bound
    from oomreaper.sim.userland import Userland
    from oomreaper.sim.watching import Watch as Watcher

    machine = make_machine(chooser, killer)
    engine = machine.engine
    engine.trace = [] if with_trace else None
    try:
        Invariants(machine, RULES["watch"])
        userland = Userland(machine)
        with bound(userland) as calls:
            watch = Watcher(userland, calls, _without_asking(load_plan(None)[0]))
            guard(watch.user.process.threads[0].actor)
            machine.hooks.kill.append(lambda process, sender: _check_alone(watch, process, sender))
            engine.run(until_ns=engine.now_ns + 50 * MS)
            stage(machine)
            ending = engine.run(until_ns=engine.now_ns + 6 * SECOND, max_steps=_MOST_STEPS)
        hungry = next(process for process in machine.processes.values() if process.comm == b"hungry")
        if hungry.letter == "D":
            raise Violation("progress", f"{hungry} has no memory after 6 s, and somebody could give it")
    except Violation as violation:
        violation.machine = machine  # type: ignore[attr-defined] # for who shows the trace
        raise
    return Played(machine, engine.steps, ending)
