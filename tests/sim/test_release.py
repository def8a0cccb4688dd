"""process_mrelease on the model: KERNEL.md's errno table, row by row."""

from __future__ import annotations

import errno

import pytest

from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import SECOND
from oomreaper.sim.programs import Gate, crash, hold_mmap_lock, idle, pin_memory_of, stand_in, thread_exit
from tests.sim.making import Caller, go_on, machine


def test_0_is_reaped_while_the_victim_stands_in_d() -> None:
    """Its anonymous, swapped and mlocked memory is gone, its shared and huge pages are not; it is still there."""
    on = machine(swap_bytes=1 << 30)
    areas = ((Area(Kind.HUGETLB), 10), (Area(Kind.ANONYMOUS, "locked", is_locked=True), 30))
    victim = on.add_process("victim", [stand_in(Gate("g"))], anon_mib=64, swap_mib=32, shared_mib=16, areas=areas)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)

    answer = caller.ask(victim)

    mm = victim.mm
    assert answer == 0
    assert mm is not None
    assert (mm.anon_pages, mm.swap_pages) == (0, 0)
    assert mm.shmem_pages == on.parameters.pages(16)
    assert on.allocator.hugetlb == on.parameters.pages(10)
    assert victim.letter == "D"


def test_0_is_also_nothing_to_reap_and_reaped_before() -> None:
    """Asked again, and for one with shared memory only: 0, and nothing changes."""
    on = machine()
    victim = on.add_process("victim", [stand_in(Gate("g"))], shared_mib=64)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)
    free = on.allocator.free

    assert [caller.ask(victim), caller.ask(victim)] == [0, 0]
    assert on.allocator.free == free


def test_0_is_also_given_up_by_the_kernel() -> None:
    """MMF_OOM_SKIP is set: 0 at once, with all of the memory still held."""
    on = machine()
    victim = on.add_process("victim", [stand_in(Gate("g"))], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)
    mm = victim.mm
    assert mm is not None
    on.set_skipped(mm, caller.process.threads[0].actor)

    assert caller.ask(victim) == 0
    assert mm.anon_pages == on.parameters.pages(64)


def test_einval_is_a_target_that_is_not_dying() -> None:
    """Nobody sent it a signal."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=64)

    assert Caller(on).ask(victim) == errno.EINVAL


def test_einval_is_a_live_sharer_and_0_when_that_has_been_killed() -> None:
    """CLONE_VM without CLONE_THREAD: the other group must be dying, too."""
    on = machine()
    victim = on.add_process("victim", [stand_in(Gate("g"))], anon_mib=64)
    sharer = on.add_process("sharer", [idle()], mm=victim.mm)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)
    first = caller.ask(victim)
    on.kill(sharer)

    assert (first, caller.ask(victim)) == (errno.EINVAL, 0)


def test_einval_is_a_core_dump() -> None:
    """A dump that stands at a dead file system keeps everybody out."""
    on = machine()
    victim = on.add_process("victim", [crash(dump_ns=SECOND, gate=Gate("g"))], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)

    assert caller.ask(victim) == errno.EINVAL


@pytest.mark.parametrize("waits_after_ns", [0, None])
def test_esrch_is_one_that_has_ended(waits_after_ns: int | None) -> None:
    """Waited for, or a zombie: there is no address space."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=8)
    victim.waits_after_ns = waits_after_ns
    caller = Caller(on)
    on.kill(victim)
    go_on(on)

    assert victim.is_waited is (waits_after_ns == 0)
    assert caller.ask(victim) == errno.ESRCH


def test_esrch_is_a_kernel_thread() -> None:
    """It never had one."""
    on = machine()

    assert Caller(on).ask(on.kthreadd) == errno.ESRCH


def test_esrch_is_a_detached_address_space_whose_memory_is_still_there() -> None:
    """All threads passed exit_mm, somebody pins the mm: ESRCH, and every page is still held."""
    on = machine()
    victim = on.add_process("victim", [idle()], anon_mib=64)
    mm = victim.mm
    assert mm is not None
    on.add_process("reader", [pin_memory_of(lambda: mm, Gate("g"))])
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)
    go_on(on, 1)

    assert caller.ask(victim) == errno.ESRCH
    assert mm.anon_pages == on.parameters.pages(64)


def test_eagain_is_an_area_that_a_notifier_holds_and_the_rest_is_reaped() -> None:
    """One area is left out, the others are freed."""
    on = machine()
    blocked = Area(Kind.ANONYMOUS, "of a guest")
    blocked.notifier_blocks = True
    victim = on.add_process("victim", [stand_in(Gate("g"))], anon_mib=64, areas=((blocked, 8),))
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)

    assert caller.ask(victim) == errno.EAGAIN
    assert victim.mm is not None
    assert victim.mm.anon_pages == on.parameters.pages(8)


def test_no_answer_is_mmap_lock_held_and_only_the_callers_death_ends_it() -> None:
    """Write-held by a task in D: the call blocks for ever, in D; killed, the caller goes, and nothing was freed."""
    on = machine()
    victim = on.add_process("victim", [hold_mmap_lock(Gate("g"))], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)
    answer = caller.ask(victim)
    letter = caller.process.letter
    on.kill(caller.process)
    go_on(on, 1)

    assert (answer, letter) == (-1, "D")
    assert caller.process.is_dead
    assert not caller.answers
    assert victim.mm is not None
    assert victim.mm.anon_pages == on.parameters.pages(64)
    assert victim.mm.count == 1


def test_a_queued_writer_is_enough_to_block_it() -> None:
    """Held for reading, and a writer waits: fair as the lock is, the reaper stands behind that writer."""
    on = machine()
    gate = Gate("g")
    victim = on.add_process("victim", [hold_mmap_lock(gate, is_writer=False), hold_mmap_lock(gate)], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.01)
    on.kill(victim)

    assert caller.ask(victim) == -1


def test_a_zombie_leader_is_reaped_through_its_own_pid() -> None:
    """The group's other thread has the memory; the leader's pid finds it."""
    on = machine()
    victim = on.add_process("victim", [thread_exit(), stand_in(Gate("g"))], anon_mib=64)
    caller = Caller(on)
    go_on(on, 0.1)
    on.kill(victim)

    assert caller.ask(victim) == 0
    assert victim.mm is not None
    assert victim.mm.anon_pages == 0
