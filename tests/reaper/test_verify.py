"""What an answer and the memory mean together: the errno table, row by row."""

from __future__ import annotations

import errno

import pytest

from oomreaper.model.memory import VictimMemory
from oomreaper.reaper import verify
from oomreaper.reaper.jobs import Struck
from oomreaper.reaper.verify import Meaning
from tests.reaper.fakes import MIB, accounted, charged, memory, scouting, struck

BEFORE = memory(512)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (struck(0, memory(0)), Meaning.BACK),
        (struck(0, None), Meaning.BACK),
        (struck(0, memory(25)), Meaning.BACK),
        (struck(0, memory(26)), Meaning.AGAIN),
        (struck(0, memory(512)), Meaning.AGAIN),
        (struck(errno.EAGAIN, memory(100)), Meaning.AGAIN),
        (struck(errno.EINVAL, memory(512)), Meaning.AGAIN),
        (struck(errno.EINVAL, memory(512), is_dumping_core=True), Meaning.AGAIN),
        (struck(errno.EINVAL, memory(512), protected=(9,)), Meaning.AGAIN),
        (struck(errno.EIO, memory(512)), Meaning.AGAIN),
        (struck(0, memory(0))._replace(missed=(9,)), Meaning.BACK),
        (struck(0, None)._replace(missed=(9,), memory_problem="ENOMEM"), Meaning.AGAIN),
        (struck(errno.ESRCH, None)._replace(missed=(9,)), Meaning.AGAIN),
        (struck(errno.ESRCH, None, protected=(9,)), Meaning.AGAIN),
        (struck(errno.ENOSYS, None)._replace(missed=(9,)), Meaning.AGAIN),
        (struck(None, None, signal=None, protected=(9,)), Meaning.AGAIN),
        (struck(None, memory(512), signal=None)._replace(missed=(9,)), Meaning.AGAIN),
        (struck(errno.ESRCH, None), Meaning.DETACHED),
        (struck(errno.ESRCH, memory(1)), Meaning.DETACHED),
        (struck(errno.ESRCH, memory(512)), Meaning.AGAIN),
        (struck(errno.ENOSYS, memory(512)), Meaning.UNSUPPORTED),
        (struck(errno.EPERM, memory(512)), Meaning.UNSUPPORTED),
        (struck(None, memory(512)), Meaning.UNSUPPORTED),
        (struck(None, None, signal=errno.ESRCH), Meaning.VANISHED),
        (struck(None, None, signal=errno.EPERM), Meaning.FORBIDDEN),
        (struck(None, None, signal=errno.EINVAL), Meaning.FORBIDDEN),
        (struck(None, memory(512), signal=None, is_dumping_core=True), Meaning.AGAIN),
    ],
)
def test_the_errno_table(answer: Struck, meaning: Meaning) -> None:
    """Each answer of process_mrelease, with the memory's word above it."""
    reading = verify.read_strike(answer, BEFORE)

    assert reading.meaning is meaning
    assert reading.reason or meaning is Meaning.BACK


def test_a_small_victim_is_not_held_to_its_last_page() -> None:
    """The counters are inexact by some pages per CPU: below the floor nothing is "still held"."""
    assert verify.is_back(memory(4), memory(4))
    assert verify.is_back(None, memory(1))
    assert not verify.is_back(memory(64), memory(9))


def test_swapped_memory_counts_as_held() -> None:
    """Memory that went to swap has not come back."""
    swapped = VictimMemory(0, 512 * MIB, 0, 0, 0)

    assert not verify.is_back(BEFORE, swapped)


def test_shared_memory_does_not_count_as_held() -> None:
    """What cannot be reaped is not waited for."""
    assert verify.is_back(memory(512, shmem_mib=512), memory(0, shmem_mib=512))


def test_movement_is_more_than_noise() -> None:
    """A page or two is no progress; a MiB is; losing the address space is."""
    assert not verify.has_moved(memory(512), memory(511.9))
    assert verify.has_moved(memory(512), memory(511))
    assert not verify.has_moved(memory(511), memory(512))
    assert verify.has_moved(memory(512), None)
    assert not verify.has_moved(None, None)


def test_a_charge_that_fell_by_half_has_returned() -> None:
    """Neighbours allocate meanwhile, so half its size is proof; its own memcg goes before the machine."""
    assert verify.has_returned(BEFORE, charged(1000), accounted(744))
    assert not verify.has_returned(BEFORE, charged(1000), accounted(745))
    machine = charged(1000)._replace(memcg_directory=None, memcg_bytes=None)
    fallen = accounted(0)._replace(charged=machine._replace(machine_anon_bytes=3744 * MIB))
    assert verify.has_returned(BEFORE, machine, fallen)
    assert verify.has_returned(memory(31), charged(1000), accounted(1000))


def test_an_heir_holds_half_of_what_the_victim_held() -> None:
    """One that has left the memory by exec has little of its own; what is too small to be judged makes no heir."""
    assert verify.is_heir(512 * MIB, memory(256))
    assert not verify.is_heir(512 * MIB, memory(255))
    assert not verify.is_heir(512 * MIB, None)
    assert not verify.is_heir(31 * MIB, memory(31))
    assert not verify.is_heir(0, memory(0))


def test_what_other_victims_gave_back_is_not_counted_for_this_one() -> None:
    """The charge fell by half of this one's memory and by what others gave back, or there is a doubt."""
    assert verify.has_returned(BEFORE, charged(1000), accounted(344), others_bytes=400 * MIB)
    assert not verify.has_returned(BEFORE, charged(1000), accounted(345), others_bytes=400 * MIB)


def test_whoever_was_killed_as_a_sharer_is_an_heir_while_more_than_a_leftover_is_held() -> None:
    """He can exec nothing any more: what he holds is the victim's, however small, be it a part of it."""
    assert verify.is_heir(14 * MIB, memory(14), was_killed=True)
    assert verify.is_heir(512 * MIB, memory(26), was_killed=True)
    assert not verify.is_heir(512 * MIB, memory(25), was_killed=True)
    assert not verify.is_heir(14 * MIB, memory(8), was_killed=True)
    assert not verify.is_heir(14 * MIB, None, was_killed=True)


def test_orphaned_memory_is_charged_and_owned_by_nobody() -> None:
    """Half the victim's size without an owner: pinned. While the victim itself still shows it, it is not orphaned."""
    assert verify.is_orphaned(BEFORE, accounted(1000, orphan_mib=256))
    assert not verify.is_orphaned(BEFORE, accounted(1000, orphan_mib=255))
    assert not verify.is_orphaned(BEFORE, accounted(1000, memory(512), orphan_mib=512))
    assert not verify.is_orphaned(BEFORE, accounted(1000))


def test_a_corpse_s_memory_is_claimed_only_with_evidence() -> None:
    """Orphans of its own memcg, or a holder in the act; on the machine's whole count alone nothing is claimed."""
    own = scouting()._replace(charged=charged(1000, orphan_mib=64))
    machine = own._replace(charged=own.charged._replace(memcg_bytes=None, memcg_directory=None))

    assert verify.read_corpse(own) == 64 * MIB
    assert verify.read_corpse(machine) is None
    assert verify.read_corpse(machine._replace(holders=("5 (gdb)",))) == 64 * MIB
    assert verify.read_corpse(scouting()._replace(charged=charged(1000, orphan_mib=1))) is None
