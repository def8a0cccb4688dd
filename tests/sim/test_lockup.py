"""The founding commit's text as a run: a victim waits for a lock that is held by a task that loops in the allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.choice import Seeded
from oomreaper.sim.diagnosis import diagnose
from oomreaper.sim.engine import Ending
from oomreaper.sim.locks import Mutex
from oomreaper.sim.machine import Machine
from oomreaper.sim.parameters import GIB, MS, PLAIN
from oomreaper.sim.programs import hog, idle, wait_for_inode, write_file
from tests.sim.making import Caller, go_on, small_machine

if TYPE_CHECKING:
    from oomreaper.sim.tasks import Process


def _lock_up(seed: int) -> tuple[Machine, Process, Process]:
    """A writer that asks for more than there is, with the inode lock; a victim in D behind it; both are seen there."""
    on = small_machine(seed)
    inode = Mutex(on.engine, "the inode lock of a file")
    writer = on.add_process("writer", [write_file(inode, mib=400)], anon_mib=10)
    victim = on.add_process("victim", [wait_for_inode(inode)], anon_mib=600)
    on.add_process("bystander", [idle()], anon_mib=50)
    go_on(on, 0.1)
    if not inode.queue:  # the victim came first: it holds nothing now, and the writer loops all the same
        return _lock_up(seed + 1_000)
    return on, writer, victim


def test_killing_the_victim_frees_nothing_and_nobody_gets_on() -> None:
    """SIGKILL is pending, a minute passes: the same tasks stand where they stood, and not a page has come back."""
    on, writer, victim = _lock_up(1)
    free = on.allocator.free
    on.kill(victim)
    on.mark_victim(victim)

    ending = go_on(on, 60)

    assert ending is Ending.TIME
    assert not victim.is_dead
    assert on.allocator.free == free
    assert (victim.letter, writer.letter) == ("D", "D")


def test_the_diagnosis_names_the_ring() -> None:
    """The victim waits for the writer's lock, the writer for the memory that the victim's end would give."""
    on, _writer, victim = _lock_up(1)
    on.kill(victim)
    on.mark_victim(victim)
    go_on(on, 60)

    diagnosis = diagnose(on)

    names = {name.partition("[")[0] for name in diagnosis.cycle}
    assert names == {"victim", "writer"}
    assert diagnosis.cycle[0] == diagnosis.cycle[-1]
    assert any("victim" in line and "inode lock" in line and "writer" in line for line in diagnosis.lines)


def test_reaping_the_victim_ends_it() -> None:
    """process_mrelease from outside: the writer gets its pages, lets go of the lock, and the victim leaves."""
    on, _writer, victim = _lock_up(1)
    on.kill(victim)
    caller = Caller(on)

    answer = caller.ask(victim)
    go_on(on, 5)

    assert answer == 0
    assert victim.is_waited


def test_an_ordinary_victim_in_the_same_shortage_is_enough() -> None:
    """One that does not wait for the lock ends the shortage by its exit alone: the assumption the text speaks of."""
    on = Machine(Seeded(2), PLAIN._replace(memory_bytes=GIB))
    inode = Mutex(on.engine, "the inode lock of a file")
    on.add_process("writer", [write_file(inode, mib=400)], anon_mib=10)
    victim = on.add_process("victim", [idle()], anon_mib=600)
    go_on(on, 0.1)
    on.kill(victim)
    go_on(on, 5)

    assert victim.is_waited
    assert on.allocator.free > on.allocator.high


def test_a_victim_may_use_the_reserve_and_others_may_not() -> None:
    """With all but the reserve taken, one that was marked gets on in the allocator; one that was not loops."""
    on = small_machine(1, slice_pages=64)
    first = on.add_process("first", [hog(2_000)])
    second = on.add_process("second", [hog(2_000)])
    go_on(on, 5, max_steps=50_000)
    low = on.allocator.free
    on.mark_victim(first)
    mm = first.mm
    other = second.mm
    assert mm is not None
    assert other is not None
    held, held_by_other = mm.anon_pages, other.anon_pages
    go_on(on, 1, max_steps=50_000)

    assert low - on.allocator.min < on.parameters.slice_pages
    assert mm.anon_pages >= held + 64
    assert other.anon_pages == held_by_other
    assert on.allocator.free >= 0


def test_pressure_is_counted_while_somebody_waits_for_memory() -> None:
    """No stall, no pressure; all stalled for a second: a second of some, and of full."""
    on = small_machine(1)
    calm = on.pressure.totals_us()
    on.add_process("hog", [hog(2_000)])
    go_on(on, 3)
    before = on.pressure.totals_us()
    go_on(on, 1)
    after = on.pressure.totals_us()

    assert calm == (0, 0)
    assert [abs(late - early - 1_000_000) < 50_000 for early, late in zip(before, after, strict=True)] == [True, True]


def test_swap_is_used_before_anybody_waits_for_ever() -> None:
    """With swap, a hog beyond memory gets what it asks for: others' pages go out, and its own."""
    on = small_machine(1, swap_bytes=GIB)
    idler = on.add_process("idler", [idle()], anon_mib=500)
    grower = on.add_process("grower", [hog(900, pause_ns=MS)])
    go_on(on, 20)

    assert idler.mm is not None
    assert grower.mm is not None
    assert grower.mm.anon_pages + grower.mm.swap_pages == on.parameters.pages(900)
    assert idler.mm.swap_pages + grower.mm.swap_pages == on.allocator.swap_total - on.allocator.swap_free > 0
