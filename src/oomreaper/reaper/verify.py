"""What an answer of the kernel and the memory mean together. Pure.

process_mrelease answers 0 in four cases: it reaped; there was nothing to reap; somebody else had already reaped
or given up (MMF_OOM_SKIP); or init shares the memory. It answers ESRCH both when all is well (the victim is tearing its
own memory down) and when the memory is pinned and will not come back. So a return code only says what to look at next;
what counts is the victim's RssAnon + VmSwap while it has an address space, and what is charged for it afterwards.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from oomreaper.model.memory import ChargedMemory, VictimMemory
    from oomreaper.model.process import Scouting
    from oomreaper.reaper.jobs import Accounted, Struck

# What may be left of a victim that counts as reaped: the counters are kept per CPU and read with an error before
# Linux 6.17 (32 to 512 pages for each CPU), and pages under write-back stay a moment longer.
_LEFTOVER_PART = 20
_LEFTOVER_FLOOR_BYTES = 8 << 20
# A charge that fell by half of what the victim held shows that its memory came back: neighbours allocate meanwhile.
_RETURNED_PART = 2
# Below this, what others do to the machine's counters in the same moment is larger than the victim.
SMALLEST_JUDGED_BYTES = 32 << 20
# Movement smaller than this between two looks is noise of the counters, not a reaper at work.
_MOVEMENT_BYTES = 1 << 20
# A tear-down frees 11 to 13 GiB a second (2026-11, 4 KiB pages): in 100 ms more than 1 % of any victim below 100 GiB.
_MOVING_PART = 100


class Meaning(enum.Enum):
    """What a strike came to."""

    BACK = enum.auto()  # the memory is verified back
    AGAIN = enum.auto()  # worth another attempt
    DETACHED = enum.auto()  # no address space to reap any more
    UNSUPPORTED = enum.auto()  # signalled, and this kernel or sandbox lets nobody reap
    VANISHED = enum.auto()  # there was nobody to signal
    FORBIDDEN = enum.auto()  # the signal was refused


class Reading(NamedTuple):
    """A meaning and its reason in words."""

    meaning: Meaning
    reason: str


def read_strike(struck: Struck, before: VictimMemory | None) -> Reading:
    """Read the answer to a strike against what the victim held before it."""
    if struck.signal_errno == errno.ESRCH:
        return Reading(Meaning.VANISHED, "it ended before it was signalled")
    if struck.signal_errno == errno.EPERM:
        return Reading(Meaning.FORBIDDEN, "the kernel refused the signal (EPERM); ask as root")
    if struck.signal_errno:
        return Reading(Meaning.FORBIDDEN, f"the kernel refused the signal ({_name(struck.signal_errno)})")
    if struck.signal_errno is None and struck.is_dumping_core:
        return Reading(Meaning.AGAIN, "it is dumping core, which was to be spared")
    return _read_answer(struck, before)


def _read_answer(struck: Struck, before: VictimMemory | None) -> Reading:
    """The errno table of DESIGN.md, with the memory's word above the kernel's."""
    reading = _read_who_is_left(struck, before)
    if reading is not None:
        return reading
    match struck.mrelease_errno:
        case (0 | errno.ESRCH) as answer if struck.memory is None and struck.memory_problem is not None:
            said = "0" if answer == 0 else _name(answer)
            return Reading(
                Meaning.AGAIN,
                f"process_mrelease answered {said}, but its memory could not be read ({struck.memory_problem})",
            )
        case 0 if is_back(before, struck.memory):
            return Reading(Meaning.BACK, "")
        case 0:
            return Reading(Meaning.AGAIN, "process_mrelease answered 0, but its memory is still held")
        case errno.ESRCH if struck.memory is not None and not is_back(before, struck.memory):
            return Reading(Meaning.AGAIN, "process_mrelease answered ESRCH while a sharer still holds the memory")
        case errno.ESRCH:
            return Reading(Meaning.DETACHED, "its address space was detached before it could be reaped (ESRCH)")
        case None:
            return Reading(
                Meaning.UNSUPPORTED, "killed without reaping: this kernel or sandbox has no process_mrelease"
            )
        case errno.ENOSYS | errno.EPERM as refusal:
            return Reading(Meaning.UNSUPPORTED, f"killed without reaping: process_mrelease answered {_name(refusal)}")
        case errno.EINVAL if struck.is_dumping_core:
            return Reading(Meaning.AGAIN, "it is dumping core (EINVAL)")
        case errno.EINVAL:
            return Reading(Meaning.AGAIN, "the kernel says that somebody alive shares its memory (EINVAL)")
        case errno.EAGAIN:
            return Reading(Meaning.AGAIN, "some of its memory could not be reaped yet (EAGAIN)")
        case other:
            return Reading(Meaning.AGAIN, f"process_mrelease answered {_name(other)}")


def _read_who_is_left(struck: Struck, before: VictimMemory | None) -> Reading | None:
    """Somebody who shares the memory was not killed: then no answer but a reap that is seen to have worked counts."""
    is_known = struck.memory_problem is None
    if struck.mrelease_errno == 0 and is_known and is_back(before, struck.memory):
        return None
    if struck.missed:
        words = f"a process that shares its memory could not be looked at: {_list(struck.missed)}"
    elif struck.protected:
        words = f"a protected process shares its memory: {_list(struck.protected)}"
    else:
        return None
    answer = struck.mrelease_errno
    return Reading(Meaning.AGAIN, words if not answer else f"{words} ({_name(answer)})")


def is_back(before: VictimMemory | None, now: VictimMemory | None) -> bool:
    """Whether an address space that held ``before`` and holds ``now`` has given its reapable memory back.

    ``now`` None: no thread has the address space any more. That is enough only where a reap was answered 0.
    """
    if now is None:
        return True
    return now.reapable_bytes <= _leftover_bytes(before.reapable_bytes if before is not None else 0)


def is_heir(held_bytes: int, memory: VictimMemory | None, *, was_killed: bool = False) -> bool:
    """Whether one that shared the memory of a victim that has gone holds it still; it may have left it by exec.

    Whoever was killed as a sharer execs nothing any more: what he holds is the victim's, be it little. Of anybody
    else, what a victim held that was too small to be judged by is not worth a doubt.
    """
    if memory is None:
        return False
    if was_killed:
        return memory.reapable_bytes > _leftover_bytes(held_bytes)
    return held_bytes >= SMALLEST_JUDGED_BYTES and memory.reapable_bytes >= held_bytes // _RETURNED_PART


def has_moved(earlier: VictimMemory | None, now: VictimMemory | None) -> bool:
    """Whether memory has come back between two looks, though perhaps not all of it."""
    if earlier is None or now is None:
        return earlier is not now
    return earlier.reapable_bytes - now.reapable_bytes >= _MOVEMENT_BYTES


def has_returned(
    before: VictimMemory | None, charged_before: ChargedMemory, accounted: Accounted, *, others_bytes: int = 0
) -> bool:
    """Whether the memory of a victim whose address space is out of sight has come back, by what is charged.

    ``others_bytes``: what other victims gave back meanwhile; some of it may have been charged elsewhere, so a charge
    that fell by less than both leaves a doubt, which a deep look settles.
    """
    if accounted.memory is not None:
        return is_back(before, accounted.memory)
    if before is None or before.reapable_bytes < SMALLEST_JUDGED_BYTES:
        return True
    wanted = before.reapable_bytes // _RETURNED_PART + others_bytes
    return _charge_fall(charged_before, accounted.charged) >= wanted


def is_in_doubt(before: VictimMemory | None, accounted: Accounted, *, is_deep: bool) -> bool:
    """Whether it is not certain yet that memory which has come back by what is charged is this victim's.

    Where it has no memory cgroup of its own the machine's count speaks, and that falls when anybody ends. Then a deep
    look has the last word: whether memory of the victim's size is left that no process owns.
    """
    if accounted.memory is not None or accounted.charged.memcg_bytes is not None:
        return False
    if before is None or before.reapable_bytes < SMALLEST_JUDGED_BYTES:
        return False
    return not is_deep or is_orphaned(before, accounted)


def is_charge_moving(earlier: ChargedMemory, now: ChargedMemory, held_bytes: int) -> bool:
    """Whether less is charged than at the earlier look, by more than what neighbours do in passing."""
    return _charge_fall(earlier, now) >= max(_MOVEMENT_BYTES, held_bytes // _MOVING_PART)


def is_orphaned(before: VictimMemory | None, accounted: Accounted) -> bool:
    """Whether memory of the victim's size is charged that no process owns: it is pinned."""
    orphan_bytes = accounted.charged.orphan_bytes
    return (
        before is not None
        and accounted.memory is None
        and orphan_bytes is not None
        and orphan_bytes >= before.reapable_bytes // _RETURNED_PART
    )


def read_corpse(scouting: Scouting) -> int | None:
    """How many bytes of a process that has ended are still pinned, as far as can be told; None: nothing speaks for it.

    What it held is not known any more. Memory that its own memory cgroup is charged for and nobody there owns is its;
    on a machine's whole count only when somebody is found standing in a call on it.
    """
    orphan_bytes = scouting.charged.orphan_bytes
    is_its_own = scouting.charged.memcg_bytes is not None or bool(scouting.holders)
    if orphan_bytes is None or orphan_bytes < SMALLEST_JUDGED_BYTES or not is_its_own:
        return None
    return orphan_bytes


def describe_holders(holders: tuple[str, ...]) -> str:
    """Who pins it, in words."""
    return f"pinned by {', '.join(holders)}" if holders else "pinned, though nobody was found standing in a call on it"


def _leftover_bytes(held_bytes: int) -> int:
    return max(_LEFTOVER_FLOOR_BYTES, held_bytes // _LEFTOVER_PART)


def _charge_fall(earlier: ChargedMemory, now: ChargedMemory) -> int:
    if earlier.memcg_bytes is not None and now.memcg_bytes is not None:
        return earlier.memcg_bytes - now.memcg_bytes
    machine_before = earlier.machine_anon_bytes + earlier.machine_swap_bytes
    return machine_before - now.machine_anon_bytes - now.machine_swap_bytes


def _list(pids: tuple[int, ...]) -> str:
    return ", ".join(str(pid) for pid in pids)


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
