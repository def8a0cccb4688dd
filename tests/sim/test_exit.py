"""Address spaces and how they end: what was there comes back, once, whoever does it and in whatever order."""

from __future__ import annotations

import pytest

from oomreaper.sim.checks import Violation
from oomreaper.sim.engine import Band
from oomreaper.sim.groups import CpuGroup, Freezer, MemoryGroup
from oomreaper.sim.memory import Area, Kind, SharedPages
from oomreaper.sim.parameters import GIB, MS, SECOND
from oomreaper.sim.programs import Gate, busy, crash, hog, idle, pin_memory_of, stand_in, thread_exit
from tests.sim.making import Caller, go_on, machine


@pytest.mark.parametrize("seed", range(20))
def test_an_exit_gives_back_exactly_what_was_there(seed: int) -> None:
    """Anonymous, swapped, shared, huge and mlocked pages of three processes, two of them on one address space."""
    on = machine(seed, swap_bytes=GIB)
    before = on.allocator.free, on.allocator.cache, on.allocator.swap_free
    areas = ((Area(Kind.HUGETLB), 10), (Area(Kind.ANONYMOUS, "locked", is_locked=True), 30))
    victim = on.add_process(
        "victim", [idle(), busy()], anon_mib=100, swap_mib=50, file_mib=20, shared_mib=40, areas=areas
    )
    sharer = on.add_process("sharer", [idle()], mm=victim.mm)
    other = on.add_process("other", [busy(), busy()], anon_mib=10)
    for process in (victim, sharer, other):
        on.kill(process)
    go_on(on)

    free, cache, swap_free = before
    file_pages = on.parameters.pages(20)
    assert (on.allocator.free, on.allocator.cache, on.allocator.swap_free) == (
        free - file_pages,
        cache + file_pages,
        swap_free,
    )
    assert set(on.processes) == {1, 2}
    assert len(on.address_spaces) == 1


@pytest.mark.parametrize("seed", range(40))
def test_a_reap_beside_the_exit_frees_nothing_twice(seed: int) -> None:
    """process_mrelease while the victim tears its own memory down: the pages are counted once, and all come back."""
    on = machine(seed, slice_pages=256)
    victim = on.add_process("victim", [busy()], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.001)
    free = on.allocator.free
    on.kill(victim)

    answer = caller.ask(victim)
    go_on(on)

    assert answer in (0, 3)
    assert on.allocator.free == free + on.parameters.pages(64)


def test_shared_memory_goes_with_its_last_user() -> None:
    """Two that map one shared object: the first one's death brings nothing back, the second one's all of it."""
    on = machine()
    shared = SharedPages()
    first = on.add_process("first", [idle()], areas=((Area(Kind.SHARED, shared=shared), 64),))
    second = on.add_process("second", [idle()], areas=((Area(Kind.SHARED, shared=shared), 0),))
    seen = [on.allocator.shmem]
    for process in (first, second):
        on.kill(process)
        go_on(on)
        seen.append(on.allocator.shmem)

    pages = on.parameters.pages(64)
    assert seen == [pages, pages, 0]


def test_a_remote_reader_keeps_the_memory_and_tears_it_down() -> None:
    """A pinned address space: the victim is waited for and gone, its memory stays until the reader lets go."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=128)
    mm, gate = victim.mm, Gate("a fault that is not served")
    assert mm is not None
    on.add_process("reader", [pin_memory_of(lambda: mm, gate)])
    go_on(on, 0.1)
    on.kill(victim)
    go_on(on)
    held = mm.anon_pages, victim.is_waited, mm.users
    gate.open()
    go_on(on)

    assert held == (on.parameters.pages(128), True, 1)
    assert (mm.anon_pages, mm.is_torn_down, mm.count) == (0, True, 0)


def test_who_uses_an_address_space_after_its_end_is_found() -> None:
    """mmgrab, mmget and mmput after the last count or user are violations, by name."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=8)
    mm = victim.mm
    assert mm is not None
    on.kill(victim)
    go_on(on)

    for use, name in ((mm.grab, "use-after-free"), (mm.get, "use-after-free"), (mm.put, "use-after-free")):
        with pytest.raises(Violation, match=name):
            use()


def test_pages_taken_twice_are_found() -> None:
    """An area gives what it has; more is a violation, and so is a page that is nowhere."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=8)
    mm = victim.mm
    assert mm is not None

    with pytest.raises(Violation, match="pages-freed-twice"):
        on.allocator.release(mm, mm.areas[0], on.parameters.pages(9))
    on.allocator.anon -= 1
    with pytest.raises(Violation, match="pages-conserved"):
        on.allocator.check()


def test_a_zombie_leader_keeps_the_memory_of_its_threads() -> None:
    """The leader has left, a thread lives: state Z, and the memory is still there."""
    on = machine()
    victim = on.add_process("victim", [thread_exit(), idle()], anon_mib=64)
    go_on(on)

    assert victim.letter == "Z"
    assert not victim.is_dead
    assert victim.mm is not None
    assert victim.mm.anon_pages == on.parameters.pages(64)


def test_a_killed_task_in_a_v1_freezer_stays_until_it_is_thawed() -> None:
    """FROZEN, killed: D with its memory; thawed: gone."""
    on = machine()
    freezer = Freezer("/box")
    victim = on.add_process("victim", [busy()], anon_mib=64, freezer=freezer)
    go_on(on, 0.01)
    on.freeze(freezer)
    go_on(on, 0.01)
    on.kill(victim)
    go_on(on)
    held = victim.letter, victim.is_dead
    freezer.thaw()
    go_on(on)

    assert held == ("D", False)
    assert victim.is_waited


def test_an_oom_victim_is_thawed_by_the_kernel() -> None:
    """mark_oom_victim lets a frozen victim go, which a signal does not."""
    on = machine()
    freezer = Freezer("/box")
    victim = on.add_process("victim", [idle()], anon_mib=64, freezer=freezer)
    go_on(on, 0.01)
    on.freeze(freezer)
    on.kill(victim)
    go_on(on, 1)
    was_dead = victim.is_dead
    on.mark_victim(victim)
    go_on(on)

    assert (was_dead, victim.is_dead) == (False, True)


def test_a_throttled_task_starts_its_exit_late() -> None:
    """A quota of 1 ms in 100 with a debt: the killed task goes only when it may run again."""
    on = machine()
    group = CpuGroup("/slow", quota_ns=MS)
    victim = on.add_process("victim", [busy(20 * MS)], anon_mib=8, cpu_group=group)
    go_on(on, 0.05)
    on.kill(victim)
    go_on(on, 0.5)
    was_dead = victim.is_dead
    go_on(on, 5)

    assert (was_dead, victim.is_dead) == (False, True)


def test_an_idle_class_victim_starves_beside_busy_ones() -> None:
    """SCHED_IDLE under busy loops: dead to the signal, and it does not leave; nothing but another can free it."""
    on = machine()
    victim = on.add_process("victim", [busy()], anon_mib=64, band=Band.IDLE)
    for number in range(4):
        on.add_process(f"busy{number}", [busy()])
    on.kill(victim)
    go_on(on, 5)
    caller = Caller(on)

    assert not victim.is_dead
    assert caller.ask(victim) == 0
    assert victim.mm is not None
    assert victim.mm.anon_pages == 0


def test_a_core_dump_keeps_all_threads_until_it_is_written_or_killed() -> None:
    """While core_state is set nobody frees; SIGKILL ends the dump; one that stands at a dead file does not end."""
    on = machine()
    victim = on.add_process("victim", [crash(dump_ns=100 * SECOND), idle()], anon_mib=64)
    stuck = on.add_process("stuck", [crash(dump_ns=SECOND, gate=Gate("a dead file system"))], anon_mib=64)
    go_on(on, 1)
    during = victim.is_dumping, victim.is_dead, [thread.mm is not None for thread in victim.threads]
    on.kill(victim)
    on.kill(stuck)
    go_on(on)

    assert during == (True, False, [True, True])
    assert victim.is_dead
    assert (stuck.is_dumping, stuck.is_dead) == (True, False)


def test_a_task_in_d_keeps_its_memory_whatever_is_sent() -> None:
    """A dead server: SIGKILL is pending, and nothing happens until it answers."""
    on = machine()
    gate = Gate("a dead server")
    victim = on.add_process("victim", [stand_in(gate)], anon_mib=64)
    go_on(on, 0.1)
    on.kill(victim)
    go_on(on)
    held = victim.letter, victim.is_dead
    gate.open()
    go_on(on)

    assert held == ("D", False)
    assert victim.is_dead


def test_a_full_v1_group_holds_its_tasks_until_there_is_room() -> None:
    """oom_control 1: who finds it full sleeps; it goes on when another member's memory has come back."""
    on = machine()
    group = MemoryGroup("/box", on.parameters.pages(100), has_killer=False)
    idler = on.add_process("idler", [idle()], anon_mib=60, group=group)
    grower = on.add_process("grower", [hog(80)], group=group)
    go_on(on, 2)
    mm = grower.mm
    assert mm is not None
    held_pages = mm.anon_pages
    on.kill(idler)
    go_on(on, 2)

    assert held_pages < on.parameters.pages(41)
    assert mm.anon_pages == on.parameters.pages(80)
    assert group.charged == on.parameters.pages(80)


def test_a_pid_is_given_again_and_names_another_life() -> None:
    """Recycled at once: the same pid, another start time."""
    on = machine()
    on.recycles_pids = True
    first = on.add_process("first", [idle()])
    on.kill(first)
    go_on(on)
    second = on.add_process("second", [idle()])

    assert second.pid == first.pid
    assert second.identity != first.identity
