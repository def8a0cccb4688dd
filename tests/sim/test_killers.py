"""The kernel's own killers on the model: the lock-up of the founding commit's text, how it ends it, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from oomreaper.sim import programs, stages
from oomreaper.sim.choice import Seeded
from oomreaper.sim.diagnosis import diagnose
from oomreaper.sim.engine import Ending
from oomreaper.sim.invariants import RULES, Invariants
from oomreaper.sim.killers.founding import FoundingReaper
from oomreaper.sim.killers.later import LaterReaper
from oomreaper.sim.killers.oom_killer import OomKiller, oom_badness
from oomreaper.sim.killers.registry import KILLERS, make_killer, parameters_of
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import MS, PLAIN, SECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Actor
    from oomreaper.sim.killer import Killer
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process

SEEDS = range(20)


class Play:
    """A stage under a killer, run for some time."""

    def __init__(
        self, killer: Killer, stage: Callable[[Machine], None], seed: int = 0, *, duration_ns: int = 7 * SECOND
    ) -> None:
        self.machine = machine = stages.make_machine(Seeded(seed), killer)
        self.invariants = Invariants(machine, RULES[killer.name])
        self.reaps: list[tuple[int, Mm]] = []
        self.slots: list[tuple[int, Mm | None, Mm | None]] = []
        self.start_ns = machine.engine.now_ns
        machine.hooks.reap.append(self._on_reap)
        machine.hooks.slot.append(lambda before, after: self.slots.append((self.elapsed_ns, before, after)))
        stage(machine)
        self.ending = machine.engine.run(until_ns=self.start_ns + duration_ns)

    @property
    def elapsed_ns(self) -> int:
        """Since the start."""
        return self.machine.engine.now_ns - self.start_ns

    def _on_reap(self, mm: Mm, by: Actor) -> None:
        del by
        self.reaps.append((self.elapsed_ns, mm))

    def find(self, name: str) -> Process:
        """A process that is still there."""
        return next(process for process in self.machine.processes.values() if process.comm == name.encode())

    def mm_of(self, name: str) -> Mm:
        """The address space of one that cannot have exited."""
        mm = self.find(name).mm
        assert mm is not None
        return mm


# -- the lock-up of the founding commit's text -------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_oom_killer_alone_the_victim_locks_up_the_machine(seed: int) -> None:
    """The victim waits for a lock whose holder loops in the allocator; a minute later nothing has changed."""
    play = Play(OomKiller(), stages.lockup, seed, duration_ns=60 * SECOND)

    assert play.ending is Ending.TIME
    assert [kill.process.comm for kill in play.machine.killer.kills] == [b"victim"]  # type: ignore[attr-defined] # an OomKiller
    assert play.find("victim").letter == "D"
    assert play.find("holder").letter == "D"
    assert play.mm_of("victim").anon_pages == play.machine.parameters.pages(300)


def test_the_diagnosis_of_the_lock_up_is_a_ring() -> None:
    """Victim waits for holder (the inode), holder waits for victim (its memory)."""
    play = Play(OomKiller(), stages.lockup, duration_ns=10 * SECOND)

    cycle = diagnose(play.machine).cycle

    assert {name.split("[")[0] for name in cycle} == {"victim", "holder"}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_founding_reaper_ends_the_lock_up(seed: int) -> None:
    """It takes the memory out of the victim that still stands in D; the holder goes on, and so the victim can exit."""
    play = Play(FoundingReaper(), stages.lockup, seed)

    assert play.ending is Ending.QUIET
    assert len(play.reaps) == 1
    assert play.find("holder").letter == "S"
    assert all(process.comm != b"victim" for process in play.machine.processes.values())
    assert play.elapsed_ns < 2 * SECOND + 100 * MS  # the last timer is the invariants' own


def test_the_founding_reaper_works_while_the_victim_cannot() -> None:
    """The victim stands in D at a dead server: its anonymous and private memory is back, the rest is not."""
    play = Play(FoundingReaper(), stages.stuck)
    areas = {area.name: area.resident for area in play.mm_of("victim").areas}
    pages = play.machine.parameters.pages

    assert play.find("victim").letter == "D"
    assert areas == {
        "anonymous": 0,
        "private file": 0,
        "shared": pages(16),
        "hugetlb": pages(16),
        "mlocked": pages(16),
    }


def test_swap_entries_are_reaped() -> None:
    """Text: "anonymous or swapped out memory": the swap is free again."""

    def swapped(machine: Machine) -> None:
        gate = stages.open_later(machine, "a dead server", 8 * SECOND)
        area = Area(Kind.ANONYMOUS, "swapped")
        victim = machine.add_process("victim", [programs.stand_in(gate)], anon_mib=240)
        assert victim.mm is not None
        victim.mm.add(area)
        area.swapped = machine.parameters.pages(10)
        machine.allocator.swap_total += area.swapped
        machine.add_process("hungry", [programs.hog(300)], oom_score_adj=-1000)

    play = Play(FoundingReaper(), swapped)

    assert play.mm_of("victim").reapable_pages == 0
    assert play.machine.allocator.swap_free == play.machine.allocator.swap_total


# -- its limits, as its text has them ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_it_gives_up_after_ten_attempts(seed: int) -> None:
    """mmap_sem "might be held or blocked for write": ten attempts, a second in all, then the slot is free again."""
    play = Play(FoundingReaper(), stages.locked_long, seed)
    killer = play.machine.killer
    (entered, _, mm), (left, _, nobody) = play.slots

    assert isinstance(killer, FoundingReaper)
    assert nobody is None
    assert killer.reaper.given_up == [mm]
    assert 1000 * MS <= left - entered <= 1010 * MS
    assert play.reaps == []
    assert play.mm_of("locked").anon_pages == play.machine.parameters.pages(240)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lock_that_comes_free_in_time_costs_attempts_only(seed: int) -> None:
    """Held for 450 ms: the fifth or sixth attempt succeeds, no later than 100 ms after the lock came free."""
    play = Play(FoundingReaper(), stages.two_groups, seed)
    killer = play.machine.killer

    assert isinstance(killer, FoundingReaper)
    assert killer.reaper.given_up == []
    assert all(450 * MS <= at <= 560 * MS for at, _ in play.reaps)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_victim_is_refused_while_the_slot_is_taken(seed: int) -> None:
    """Text: "only a single mm_struct can be reaped at the time"; who comes second is never reaped."""
    play = Play(FoundingReaper(), stages.two_groups, seed)
    killer = play.machine.killer

    assert isinstance(killer, FoundingReaper)
    (refused,) = killer.reaper.refused
    assert refused not in [mm for _, mm in play.reaps]
    assert refused not in [after for _, _, after in play.slots]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_core_dump_is_cut_short(seed: int) -> None:
    """Text: "the result would be incomplete": the memory goes while the dump stands still, and the machine lives."""
    play = Play(FoundingReaper(), stages.dumping, seed)

    assert play.find("dumper").is_dumping
    assert play.mm_of("dumper").anon_pages == 0


def test_memory_of_a_protected_sharer_is_left_alone() -> None:
    """Somebody with oom_score_adj -1000 uses it: it is needed, so the reaper is not woken."""
    play = Play(FoundingReaper(), stages.unkillable_sharer)

    assert play.slots == []
    assert play.mm_of("protected").anon_pages == play.machine.parameters.pages(240)


def test_memory_that_a_kernel_thread_uses_is_left_alone() -> None:
    """use_mm: a thread of the kernel cannot be killed and may read it (2016; later kernels let it read zeros)."""

    def used_by_kernel(machine: Machine) -> None:
        stages.stuck(machine)
        victim = next(process for process in machine.processes.values() if process.comm == b"victim")
        worker = machine.add_kernel_thread("kworker", programs.idle())
        assert victim.mm is not None
        victim.mm.get()
        victim.mm.processes.append(worker)
        worker.threads[0].mm = victim.mm

    founding = Play(FoundingReaper(), used_by_kernel)
    later = Play(LaterReaper(), used_by_kernel)

    assert founding.reaps == []
    assert len(later.reaps) == 1


def test_reaper_and_exit_race_and_either_may_win() -> None:
    """Text: "to allow parallel exit_mmap": over some schedules both happen, and nothing is ever freed twice."""
    winners = set()
    for seed in range(60):
        play = Play(FoundingReaper(), stages.healthy, seed)
        winners.add(len(play.reaps))

        assert play.ending is Ending.QUIET

    assert 0 in winners
    assert winners & {1, 2}


# -- the OOM killer itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oom_killer", "founding"])
def test_nobody_else_is_killed_before_the_victim_has_gone(name: str) -> None:
    """TIF_MEMDIE holds off the next kill until the victim is behind its exit_mm; then the next one comes."""
    for seed in SEEDS:
        play = Play(make_killer(name), stages.healthy, seed)
        kills = [kill.process.comm for kill in play.machine.killer.kills]  # type: ignore[attr-defined] # an OomKiller

        assert kills == [b"first", b"second"]


def test_badness_is_size_less_for_root_and_oom_score_adj_in_parts_of_all_memory() -> None:
    """oom_badness of 2016."""
    machine = stages.make_machine(Seeded(0), OomKiller())
    plain = machine.add_process("plain", [programs.idle()], anon_mib=50, file_mib=10, shared_mib=4)
    root = machine.add_process("root", [programs.idle()], anon_mib=100, uid=0)
    raised = machine.add_process("raised", [programs.idle()], anon_mib=10, oom_score_adj=500)
    lowered = machine.add_process("lowered", [programs.idle()], anon_mib=10, oom_score_adj=-999)
    never = machine.add_process("never", [programs.idle()], anon_mib=100, oom_score_adj=-1000)
    pages = machine.parameters.pages

    assert oom_badness(machine, plain, None) == pages(64)
    assert oom_badness(machine, root, None) == pages(97)
    assert oom_badness(machine, raised, None) == pages(10) + machine.allocator.total // 2
    assert oom_badness(machine, lowered, None) == 1
    assert oom_badness(machine, never, None) == 0
    assert oom_badness(machine, machine.kthreadd, None) == 0


def test_a_child_is_sacrificed_for_its_parent() -> None:
    """The child with the most points dies first, as it was until 2019; the later killer takes the largest itself."""

    def family(machine: Machine) -> None:
        parent = machine.add_process("parent", [programs.idle()], anon_mib=200)
        machine.add_process("child", [programs.idle()], anon_mib=80, parent=parent)
        machine.add_process("hungry", [programs.hog(240)], oom_score_adj=-1000)

    old = Play(OomKiller(), family)
    new = Play(LaterReaper(), family)

    assert old.machine.killer.kills[0].process.comm == b"child"  # type: ignore[attr-defined] # an OomKiller
    assert new.machine.killer.kills[0].process.comm == b"parent"  # type: ignore[attr-defined] # an OomKiller


def test_one_that_exits_already_gets_the_reserves_and_no_signal() -> None:
    """task_will_free_mem: it is marked, so that it may finish; nobody is killed."""

    def leaving(machine: Machine) -> None:
        gate = stages.open_later(machine, "a tracer", SECOND)
        victim = machine.add_process("leaving", [programs.thread_exit()], anon_mib=240)
        victim.threads[0].exit_gate = gate
        machine.add_process("hungry", [programs.hog(300, start_ns=5 * MS)], oom_score_adj=-1000)

    play = Play(OomKiller(), leaving)

    assert play.machine.killer.kills == []  # type: ignore[attr-defined] # an OomKiller
    assert play.machine.oom_kills == 0
    assert play.ending is Ending.QUIET


def test_with_nobody_to_kill_the_machine_panics() -> None:
    """All are protected: "Out of memory and no killable processes"."""

    def all_protected(machine: Machine) -> None:
        machine.add_process("hungry", [programs.hog(600)], oom_score_adj=-1000)

    play = Play(OomKiller(), all_protected)

    assert play.ending is Ending.DONE
    assert play.machine.killer.has_panicked  # type: ignore[attr-defined] # an OomKiller


# -- the later design --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_later_reaper_comes_after_two_seconds(seed: int) -> None:
    """OOM_REAPER_DELAY: until then a lock-up lasts; then it ends it, too."""
    play = Play(LaterReaper(), stages.lockup, seed)
    ((at, _),) = play.reaps

    assert 2 * SECOND <= at <= 2 * SECOND + 100 * MS
    assert play.find("holder").letter == "S"


def test_the_later_killer_goes_on_to_the_next_victim_without_an_exit() -> None:
    """MMF_OOM_SKIP after ten attempts: the first victim holds its memory still, and the second one is taken."""

    def two(machine: Machine) -> None:
        gate = stages.open_later(machine, "a dead disk", 20 * SECOND)
        machine.add_process("locked", [programs.hold_mmap_lock(gate)], anon_mib=240)
        machine.add_process("next", [programs.idle()], anon_mib=100)
        machine.add_process("hungry", [programs.hog(200)], oom_score_adj=-1000)

    founding = Play(FoundingReaper(), two, duration_ns=10 * SECOND)
    later = Play(LaterReaper(), two, duration_ns=10 * SECOND)

    assert [kill.process.comm for kill in founding.machine.killer.kills] == [b"locked"]  # type: ignore[attr-defined] # an OomKiller
    assert [kill.process.comm for kill in later.machine.killer.kills] == [b"locked", b"next"]  # type: ignore[attr-defined] # an OomKiller
    assert later.mm_of("locked").is_skipped
    assert later.find("hungry").letter == "S"


def test_the_later_reaper_serves_every_victim() -> None:
    """A queue: two that stand in D at the same time are both reaped, each once."""

    def two_stuck(machine: Machine) -> None:
        stages.two_groups(machine)
        gate = stages.open_later(machine, "a dead server", 20 * SECOND)
        for process in machine.processes.values():
            if process.comm in (b"locked", b"plain"):
                machine.add_thread(process, programs.stand_in(gate))

    founding = Play(FoundingReaper(), two_stuck, duration_ns=10 * SECOND)
    later = Play(LaterReaper(), two_stuck, duration_ns=10 * SECOND)

    assert len({mm for _, mm in founding.reaps}) == 1
    assert len({mm for _, mm in later.reaps}) == len(later.reaps) == 2


# -- the registry ------------------------------------------------------------------------------------------


def test_the_registry_names_four_killers_and_what_was_different_at_their_time() -> None:
    """Each is made anew for each machine; the two of 2016 tear down without mmap_lock."""
    assert list(KILLERS) == ["none", "oom_killer", "founding", "later"]
    for name in KILLERS:
        assert make_killer(name).name == name
        assert make_killer(name) is not make_killer(name)
        assert parameters_of(name, PLAIN).is_exit_locked == (name in ("none", "later"))
