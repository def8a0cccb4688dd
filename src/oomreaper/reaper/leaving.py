"""A victim that is out of reach: whether its memory has come back, and by what that is known. Pure.

What it knows: how looks at a victim that leaves by itself are judged, one after the other. What it refuses to know: who
looks and when (the crew's part), and what one answer means (``verify``).

How it works: such a victim is looked at every 100 ms until its memory is back by what is charged, or nothing has moved
for ten looks. Then a *deep* look, at every process, tells memory that nobody owns (PINNED) from what others took up
at once (BACK). Two things are not taken for its memory: what other victims gave back since it was looked at, and, where
only the machine's count speaks, anything at all before a deep look has found nothing pinned: bystanders end, too.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.reaper import verify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.reaper.case import Case
    from oomreaper.reaper.jobs import Accounted

_MIB = 1 << 20
# How often the deep look may fail: a shortage has seldom lasted half a second, and one that blocks costs a worker each.
_DEEP_TRIES = 5
# As many victims as can come to an end between the look at another one and the judgement on it, a second or two later.
_RECENT_RETURNS = 64


class Verdict(enum.Enum):
    """What a look at one that leaves has come to."""

    AGAIN = "look again when the time of an attempt is over"
    DEEPER = "look at every process, at once"
    BACK = "its memory is back"
    PINNED = "it has gone, and somebody else holds its memory"
    HELD = "its memory is held still, or may be"


class Judgement(NamedTuple):
    """A verdict, and its reason for the record; none while it is looked on."""

    verdict: Verdict
    reason: str = ""


class Returns:
    """What victims gave back, and when: no other victim's charge is to be judged by it."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT_RETURNS)

    def note(self, settled_ns: int, freed_bytes: int | None) -> None:
        """A victim has come to an end."""
        self._recent.append((settled_ns, freed_bytes or 0))

    def by_others(self, case: Case, open_cases: Iterable[Case]) -> int:
        """Bytes that others than this victim have given back since it was looked at."""
        since_ns = case.taken_ns if case.scouting.looked_ns is None else case.scouting.looked_ns
        returned_bytes = sum(freed_bytes for settled_ns, freed_bytes in self._recent if settled_ns >= since_ns)
        for other in open_cases:
            if other is not case and not other.life.is_over and other.memory_seen is not None:
                returned_bytes += max(0, other.held_before_bytes - other.memory_seen.reapable_bytes)
        return returned_bytes


def judge(case: Case, accounted: Accounted, *, is_deep: bool, others_bytes: int, attempts: int) -> Judgement:
    """Judge a look; what was seen goes into the case."""
    is_moving = verify.has_moved(case.memory_seen, accounted.memory) or verify.is_charge_moving(
        case.charged_seen, accounted.charged, case.held_before_bytes
    )
    case.memory_seen = accounted.memory
    case.charged_seen = accounted.charged
    has_returned = verify.has_returned(case.before, case.scouting.charged, accounted, others_bytes=others_bytes)
    # Where others share it, its own death ends nothing: the last of them to go tears the memory down.
    if has_returned and (not is_moving or (case.has_died and not case.sharers)):
        if not verify.is_in_doubt(case.before, accounted, is_deep=is_deep):
            return Judgement(Verdict.BACK, f"it ended by itself; {case.reason}{_doubt(case, accounted)}")
        if not is_deep:
            return _deeper(case)
    case.idle_looks = 0 if is_moving else case.idle_looks + 1
    if case.idle_looks < attempts:
        return Judgement(Verdict.AGAIN)
    if accounted.memory is not None:
        return Judgement(Verdict.HELD, f"its memory is still held; {case.reason}")
    if not is_deep:
        return _deeper(case)
    return _judge_deep(case, accounted)


def judge_failure(case: Case, reason: str, *, is_deep: bool, attempts: int) -> Judgement:
    """Judge a look that failed. Only a deep one tells what became of the memory of one that has gone."""
    case.idle_looks += 1
    case.failed_deep_looks += is_deep
    if case.failed_deep_looks >= _DEEP_TRIES:
        return Judgement(Verdict.HELD, f"what became of its memory could not be told: {reason}")
    case.wants_deep_look = case.idle_looks >= attempts
    return Judgement(Verdict.AGAIN)


def _judge_deep(case: Case, accounted: Accounted) -> Judgement:
    """Nothing moves any more, and every process was looked at."""
    if verify.is_orphaned(case.before, accounted):
        holders = verify.describe_holders(accounted.holders)
        return Judgement(Verdict.PINNED, f"its memory is still charged though no process owns it: {holders}")
    if case.needs_rescan:
        return Judgement(Verdict.HELD, "somebody alive shared its memory (EINVAL) who was not found, and may hold it")
    if accounted.newcomers:
        who = f"began after the look at it and hold as much: {', '.join(accounted.newcomers)}"
        return Judgement(Verdict.HELD, f"its memory is still charged, and may be shared by those who {who}")
    return Judgement(Verdict.BACK, "it ended by itself; others took up its memory at once")


def _deeper(case: Case) -> Judgement:
    case.wants_deep_look = True
    return Judgement(Verdict.DEEPER)


def _doubt(case: Case, accounted: Accounted) -> str:
    """What the record says of a victim whose memory is believed to be back without having been seen to be."""
    held_bytes = case.held_before_bytes
    if accounted.memory is not None or not held_bytes or held_bytes >= verify.SMALLEST_JUDGED_BYTES:
        return ""
    return f"; {held_bytes // _MIB} MiB are too little to see by what is charged whether they came back"
