"""The invariants: each of them breaks when what it forbids is done, and not when what it allows is done."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.sim import invariants as module
from oomreaper.sim import programs, stages
from oomreaper.sim.checks import Violation
from oomreaper.sim.choice import Seeded
from oomreaper.sim.engine import Sleep
from oomreaper.sim.invariants import RULES, Invariants, guard
from oomreaper.sim.killer import NoKiller
from oomreaper.sim.killers.founding import FoundingReaper
from oomreaper.sim.killers.later import LaterReaper
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.mutations import all_mutants
from oomreaper.sim.parameters import MS, SECOND

if TYPE_CHECKING:
    from oomreaper.sim.engine import Steps
    from oomreaper.sim.killer import Killer
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Thread


class Scene:
    """A machine with a victim that stands in D and somebody who lives on, both watched."""

    def __init__(self, killer: Killer | None = None, rules: str = "ours", *, meant_victim: bool = False) -> None:
        self.killer = NoKiller() if killer is None else killer
        self.machine: Machine = stages.make_machine(Seeded(0), self.killer)
        self.gate = stages.open_later(self.machine, "a dead server", 8 * SECOND)
        self.victim = self.machine.add_process("victim", [programs.stand_in(self.gate)], anon_mib=100)
        self.other = self.machine.add_process("other", [programs.idle()], anon_mib=10)
        self.sender = self.machine.add_process("oomreaper", [programs.idle()])
        self.invariants = Invariants(self.machine, RULES[rules], meant=[self.victim] if meant_victim else None)
        self.run(10 * MS)

    def run(self, duration_ns: int) -> None:
        """Some time passes."""
        self.machine.engine.run(until_ns=self.machine.engine.now_ns + duration_ns)

    @property
    def mm(self) -> Mm:
        """The victim's."""
        assert self.victim.mm is not None
        return self.victim.mm

    def reap(self) -> None:
        """Somebody begins to reap the victim."""
        for hook in self.machine.hooks.reap:
            hook(self.mm, self.other.threads[0].actor)

    def free(self, area: Area, by: Process) -> None:
        """Somebody frees a page of the victim."""
        for hook in self.machine.hooks.free:
            hook(self.mm, area, 1, by.threads[0].actor)

    def slot(self, before: Mm | None, after: Mm | None) -> None:
        """The slot changes."""
        for hook in self.machine.hooks.slot:
            hook(before, after)


def breaks(name: str) -> pytest.RaisesExc[Violation]:
    """The invariant of that name."""
    return pytest.RaisesExc(Violation, match=f"^{re.escape(name)}:")


def test_the_slot_goes_from_empty_to_a_victim_and_back() -> None:
    """From one to another, or from nothing to nothing, it never goes."""
    scene = Scene(FoundingReaper(), "founding")
    assert scene.other.mm is not None

    scene.slot(None, scene.mm)
    with breaks("slot"):
        scene.slot(scene.mm, scene.other.mm)
    with breaks("slot"):
        scene.slot(None, None)


def test_who_is_reaped_is_in_the_slot() -> None:
    """A reap of one that is not in it is an update while the reaper works."""
    scene = Scene(FoundingReaper(), "founding")
    scene.machine.kill(scene.victim)

    with breaks("slot-busy"):
        scene.reap()


def test_the_slot_is_not_left_before_the_attempts_are_spent() -> None:
    """Cleared at once though nothing was reaped; after a second it may be."""
    scene = Scene(FoundingReaper(), "founding")
    scene.slot(None, scene.mm)
    with breaks("gave-up-early"):
        scene.slot(scene.mm, None)

    patient = Scene(FoundingReaper(), "founding")
    patient.slot(None, patient.mm)
    patient.run(SECOND)
    patient.slot(patient.mm, None)


def test_nobody_stays_in_the_slot() -> None:
    """Two seconds without a page moving are more than ten attempts take."""
    scene = Scene(FoundingReaper(), "founding")
    scene.slot(None, scene.mm)

    with breaks("slot-held"):
        scene.run(3 * SECOND)


def test_protected_processes_live() -> None:
    """oom_score_adj -1000 means never; for the later kernel's sharers it does not."""
    for rules, killer in (("ours", NoKiller()), ("founding", FoundingReaper())):
        scene = Scene(killer, rules)
        scene.other.oom_score_adj = -1000
        with breaks("protected"):
            scene.machine.kill(scene.other)

    later = Scene(LaterReaper(), "later")
    later.other.oom_score_adj = -1000
    later.machine.kill(later.other)


def test_only_who_was_meant_is_killed() -> None:
    """Whoever shares the memory of one that was meant is meant, too; anybody else is not, whatever his pid."""
    scene = Scene(meant_victim=True)
    sharer = scene.machine.add_process("sharer", [programs.idle()], mm=scene.mm)

    scene.machine.kill(scene.victim, scene.sender)
    scene.machine.kill(sharer, scene.sender)
    with breaks("wrong-victim"):
        scene.machine.kill(scene.other, scene.sender)


def test_a_sharer_that_exits_in_the_moment_of_its_kill_was_meant() -> None:
    """Compared, found to share, and gone from the memory before the signal: nobody else dies of that."""
    scene = Scene(meant_victim=True)
    sharer = scene.machine.add_process("sharer", [programs.leave_after(1 * MS)], mm=scene.mm)
    stranger = scene.machine.add_process("stranger", [programs.leave_after(1 * MS)], anon_mib=10)
    scene.machine.kill(scene.victim, scene.sender)
    scene.run(20 * MS)

    assert sharer.mm is None is stranger.mm
    scene.machine.kill(sharer, scene.sender)
    with breaks("wrong-victim"):
        scene.machine.kill(stranger, scene.sender)


def test_a_worker_may_be_dismissed() -> None:
    """SIGKILL to a worker that is stuck, by its master, or by a fault, is no kill in this sense; by a comrade it is."""
    scene = Scene(meant_victim=True)
    workers = [
        scene.machine.add_process("oomreaper/reap", [programs.idle()], parent=scene.sender) for _number in range(3)
    ]

    scene.machine.kill(workers[0], scene.sender)
    scene.machine.kill(workers[1])
    scene.invariants.check_outcomes({})
    with breaks("wrong-victim"):
        scene.machine.kill(workers[2], workers[0])


def test_reserves_are_for_the_dying() -> None:
    """mark_oom_victim on a process that is not dying gives the reserves to a program."""
    scene = Scene(FoundingReaper(), "founding")

    with breaks("mark-before-kill"):
        scene.machine.mark_victim(scene.victim)


def test_no_second_victim_while_the_first_is_awaited() -> None:
    """The first one's memory may still come."""
    killer = FoundingReaper()
    scene = Scene(killer, "founding")
    killer.kill_and_mark(scene.victim.threads[0], scene.mm)

    with breaks("second-kill"):
        scene.machine.kill(scene.other)


def test_memory_of_the_living_is_not_reaped() -> None:
    """Neither the victim's before it is killed, nor what a sharer lives on."""
    with breaks("reaped-alive"):
        Scene().reap()

    scene = Scene()
    scene.machine.add_process("sharer", [programs.idle()], mm=scene.mm)
    scene.machine.kill(scene.victim)
    with breaks("reaped-alive"):
        scene.reap()


def test_what_was_reaped_to_the_end_is_not_reaped_again() -> None:
    """A second attempt on what is left is allowed; one on nothing is a second service."""
    scene = Scene()
    scene.machine.kill(scene.victim)
    scene.reap()
    scene.reap()
    while scene.mm.reapable_pages:
        scene.machine.free_slice(scene.mm, scene.mm.areas[0], scene.other.threads[0].actor)

    with breaks("reaped-twice"):
        scene.reap()


def test_who_could_not_see_that_it_is_back_may_try_once_more() -> None:
    """A call of ours failed since the last reap: once more is no second service; a third time is one."""
    scene = Scene()
    failures = 0
    scene.invariants._count_failures = lambda: failures
    scene.machine.kill(scene.victim)
    scene.reap()
    while scene.mm.reapable_pages:
        scene.machine.free_slice(scene.mm, scene.mm.areas[0], scene.other.threads[0].actor)
    failures = 1

    scene.reap()
    with breaks("reaped-twice"):
        scene.reap()


def test_a_reaper_that_is_the_last_to_let_go_tears_down() -> None:
    """Then it may free all: it held a reference for a read, and its exit_mmap is the victim's."""
    scene = Scene()
    area = scene.mm.add(Area(Kind.SHARED))
    scene.machine.kill(scene.victim)
    scene.reap()
    with breaks("reap-outside"):
        scene.free(area, scene.other)
    for hook in scene.machine.hooks.tear:
        hook(scene.mm, scene.other.threads[0].actor)

    scene.free(area, scene.other)


@pytest.mark.parametrize("kind", [Kind.SHARED, Kind.HUGETLB, Kind.PFNMAP])
def test_nothing_but_anonymous_and_private_memory_is_reaped(kind: Kind) -> None:
    """Whoever reaps frees these; the victim's own exit may free all."""
    scene = Scene()
    area = scene.mm.add(Area(kind))
    scene.machine.kill(scene.victim)
    scene.reap()

    with breaks("reap-outside"):
        scene.free(area, scene.other)
    scene.free(area, scene.victim)


def test_mlocked_memory_is_spared_by_the_founding_commit_only() -> None:
    """Its code says "require explicit munlocking"; since 5.18 mlocked memory is reaped."""
    for rules, killer in (("founding", FoundingReaper()), ("later", LaterReaper())):
        scene = Scene(killer, rules)
        area = scene.mm.add(Area(Kind.ANONYMOUS, is_locked=True))
        scene.machine.kill(scene.victim)
        if isinstance(killer, FoundingReaper):
            killer.ground._content = scene.mm
        scene.reap()
        if rules == "founding":
            with breaks("reap-outside"):
                scene.free(area, scene.other)
        else:
            scene.free(area, scene.other)


def test_two_do_not_free_what_has_no_user() -> None:
    """In 2016 exit_mmap took no lock: a reaper that holds no user must not be there."""
    scene = Scene(FoundingReaper(), "founding")
    scene.mm.users = 0
    scene.free(scene.mm.areas[0], scene.victim)

    with breaks("reap-races-exit"):
        scene.free(scene.mm.areas[0], scene.other)


def test_nothing_is_freed_of_what_was_torn_down() -> None:
    """Its pages are somebody else's."""
    scene = Scene()
    scene.mm.is_torn_down = True

    with breaks("pages-freed-twice"):
        scene.free(scene.mm.areas[0], scene.other)


def test_a_guarded_actor_never_waits_for_mmap_lock() -> None:
    """It may take it, and may wait for other things; standing in its queue is the breach."""
    scene = Scene()
    scene.mm.lock.try_write(scene.victim.threads[0].actor)

    def look(machine: Machine, thread: Thread) -> Steps:
        del machine
        yield Sleep(MS)
        yield from scene.mm.lock.read(thread.actor)

    watcher = scene.machine.add_process("oomreaper", [look])
    guard(watcher.threads[0].actor)

    with breaks("lock-wait"):
        scene.run(SECOND)


def test_memory_that_can_be_reaped_comes_back() -> None:
    """The victim stands in D, nobody reaps it, and nothing stands in the way."""
    scene = Scene()
    scene.machine.kill(scene.victim)

    with breaks("progress"):
        scene.run(6 * SECOND)


def test_a_held_lock_is_an_excuse() -> None:
    """The documented limit: mmap_lock is held for writing all the time."""
    scene = Scene()
    scene.mm.lock.try_write(scene.other.threads[0].actor)
    scene.machine.kill(scene.victim)

    scene.run(6 * SECOND)


def _outcome(process: Process, kind: OutcomeKind, *, sharers: tuple[int, ...] = ()) -> Outcome:
    return Outcome(*process.identity, process.comm, kind, sharers=sharers)


def test_every_kill_is_in_a_record() -> None:
    """As a victim or as a sharer of one."""
    scene = Scene()
    scene.machine.kill(scene.victim, scene.sender)
    scene.machine.kill(scene.other, scene.sender)
    lost = _outcome(scene.victim, OutcomeKind.UNREAPABLE)

    scene.invariants.check_outcomes({scene.victim: lost._replace(sharers=(scene.other.pid,))})
    with breaks("unaccounted"):
        scene.invariants.check_outcomes({scene.victim: lost})


def test_a_record_of_success_is_true() -> None:
    """What is said to be reaped or exited holds no memory; what is given up may."""
    scene = Scene()
    scene.machine.kill(scene.victim, scene.sender)

    scene.invariants.check_outcomes({scene.victim: _outcome(scene.victim, OutcomeKind.UNREAPABLE)})
    for kind in (OutcomeKind.REAPED, OutcomeKind.EXITED):
        with breaks("false-claim"):
            scene.invariants.check_outcomes({scene.victim: _outcome(scene.victim, kind)})


def test_what_is_pinned_and_too_small_to_be_judged_is_no_false_claim() -> None:
    """By what is charged nobody can tell 31 MiB; 32 must be told, and any that a process still owns."""
    scene = Scene()
    scene.machine.kill(scene.victim, scene.sender)
    exited = _outcome(scene.victim, OutcomeKind.EXITED)
    small, large = (exited._replace(anon_before_bytes=mib << 20) for mib in (31, 32))
    with breaks("false-claim"):
        scene.invariants.check_outcomes({scene.victim: small})
    mm = scene.mm
    scene.victim.threads[0].mm = None

    assert not mm.is_torn_down
    scene.invariants.check_outcomes({scene.victim: small})
    with breaks("false-claim"):
        scene.invariants.check_outcomes({scene.victim: large})


def test_nothing_is_left_over_at_the_end() -> None:
    """A reference that nobody drops keeps the address space for ever."""
    killer = FoundingReaper()
    scene = Scene(killer, "founding")
    assert scene.other.mm is not None
    scene.other.mm.grab()
    killer.send_sigkill(scene.other, scene.other.mm, is_sharer=False)
    scene.run(SECOND)

    with breaks("mm-leak"):
        scene.invariants.check_end()


def test_the_table_of_invariants_names_them_all() -> None:
    """Whatever a mutant is expected to break, and whatever is raised, stands in the table at the top of the module."""
    table = module.__doc__ or ""
    listed = set(re.findall(r"^([a-z-]+) {2,}\S", table, re.MULTILINE))
    with open(module.__file__, encoding="utf-8") as source:
        raised = set(re.findall(r'Violation\(\s*"([a-z-]+)"', source.read()))
    expected = {name for mutant in all_mutants() for name in mutant.expected}

    assert raised <= listed
    assert expected <= listed
