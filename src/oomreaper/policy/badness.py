"""Badness: how many points a process has, and how it came to them. Pure.

Goals first; the arithmetic follows from them:

| goal | how | bound |
|---|---|---|
| one kill is to give back much | a point is a byte that it gives back: anonymous, swapped, page tables | the base |
| who caused this shortage pays for it | what it grew by in about 10 s counts twice more | 2 x its gain |
| a raised oom_score_adj counts | adj/1000 of its gain more | 1 x its gain |
| a lowered oom_score_adj counts, as the kernel does it | adj/1000 of all memory less | points end at 0 |
| little work is lost | the young have up to a tenth more | 0.1 x its gain |
| the user's own wish counts (prefer) | 30 % of all memory more | 3 x its gain |
| when shared memory is the hog, its mappers pay | their part of a segment counts as gain | the segment, divided |
| a 5 MB helper never dies before a 5 GB hog | every addition is bounded by its own gain | 7.1 points a byte in all |
| an old process loses nothing by its age | there is a bonus for youth, and no malus | |
| people can foretell it | sums, no products of factors, no square roots, no random | |

What it refuses to know: who is protected, avoided or too small (``ranking``), and how the user's patterns match
(``matching``). What must change together: an addition wants its row above, its reason in ``reasons_of``, and its
part in ``MOST_POINTS_PER_BYTE``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import ProcessSample

_MIB = 1 << 20
_GIB = 1 << 30
_ADJ_SCALE = 1000  # OOM_SCORE_ADJ_MAX, include/uapi/linux/oom.h

# A grown byte counts three times in all, once as gain and twice here. With 1, a newcomer that took half of a
# database's size in ten seconds would only tie with it; with much more, a program that starts up would beat a hog.
GROWTH_WEIGHT = 2.0
# What has run for less than this has little work to lose: it is about the length of a build step or of a page's visit.
YOUTH_SECONDS = 600.0
# Enough to tell two equals apart, too little to turn a difference that anybody would see.
YOUTH_SHARE = 0.1
# earlyoom's 300 of 1000, which people know.
PREFERENCE_OF_TOTAL = 0.3
# A preferred process goes before one four times its size, and not before one a thousand times its size.
PREFERENCE_OF_GAIN = 3.0
# Gain, growth, adjustment, youth, preference: no process has more points than this for each byte that it gives back.
MOST_POINTS_PER_BYTE = 1.0 + GROWTH_WEIGHT + 1.0 + YOUTH_SHARE + PREFERENCE_OF_GAIN

# Below this a shared segment is a library's or a window's, not a hog's.
SMALLEST_SEGMENT_BYTES = 64 * _MIB
# Mappers of one segment rarely have touched every page of it; and two segments rarely are this much alike.
SEGMENT_TOLERANCE = 0.02


class Score(NamedTuple):
    """What a process's points are made of, in bytes. ``adjustment_points`` alone can be below 0.

    ``gain_bytes`` is what a kill gives back for certain, ``shared_bytes`` its part of shared memory that may follow.
    """

    gain_bytes: int
    shared_bytes: int
    growth_points: float
    adjustment_points: float
    youth_points: float
    preference_points: float

    @property
    def points(self) -> float:
        """The sum; never below 0."""
        return max(
            0.0,
            self.gain_bytes
            + self.shared_bytes
            + self.growth_points
            + self.adjustment_points
            + self.youth_points
            + self.preference_points,
        )


def score(process: ProcessSample, *, total_bytes: int, shared_bytes: int = 0, is_preferred: bool = False) -> Score:
    """The points of ``process`` where there are ``total_bytes`` of memory; ``shared_bytes``: see ``shared_parts``."""
    gain_bytes = process.gain_bytes
    base = gain_bytes + shared_bytes
    adj = max(-_ADJ_SCALE, min(process.oom_score_adj or 0, _ADJ_SCALE))
    youth = 1.0 - max(process.age_seconds, 0.0) / YOUTH_SECONDS
    return Score(
        gain_bytes,
        shared_bytes,
        GROWTH_WEIGHT * max(0, min(process.growth_bytes, base)),
        adj / _ADJ_SCALE * (base if adj > 0 else total_bytes),
        YOUTH_SHARE * base * youth if youth > 0.0 else 0.0,
        min(PREFERENCE_OF_TOTAL * total_bytes, PREFERENCE_OF_GAIN * base) if is_preferred else 0.0,
    )


def reasons_of(process: ProcessSample, told: Score, *, preferred_by: str | None = None) -> tuple[str, ...]:
    """How it came to its points, in words, one reason a part; ``preferred_by`` is the text of the user's rule."""
    reasons = [f"gives back {size(told.gain_bytes)}"]
    if told.shared_bytes:
        reasons.append(
            f"shared memory is what fills this memory; its part of a segment of {size(process.shmem_bytes)} "
            f"counts as {size(told.shared_bytes)} more"
        )
    if told.growth_points:
        reasons.append(f"grew by {size(process.growth_bytes)} in the last 10 s: {_signed(told.growth_points)}")
    if told.adjustment_points:
        reasons.append(f"its oom_score_adj is {process.oom_score_adj}: {_signed(told.adjustment_points)}")
    if told.youth_points >= _MIB:
        reasons.append(f"runs for {process.age_seconds:.0f} s only: {_signed(told.youth_points)}")
    if preferred_by is not None:
        reasons.append(f"a prefer rule matches it ({preferred_by}): {_signed(told.preference_points)}")
    return tuple(reasons)


def is_shared_memory_shortage(shmem_bytes: int | None, used_bytes: int) -> bool:
    """Whether shared memory is the hog: at least half of all that is used, so that no other kills can outweigh it."""
    return bool(shmem_bytes) and shmem_bytes is not None and 2 * shmem_bytes >= used_bytes


def shared_parts(processes: Iterable[ProcessSample]) -> Mapping[Identity, int]:
    """What each mapper of a large segment is to answer for, in bytes.

    Who maps which segment is not told without reading ``maps``, which waits for the victim's lock. So processes with
    about the same amount of shared memory count as mappers of one segment, and it is divided among them.
    """
    mappers = [process for process in processes if process.shmem_bytes >= SMALLEST_SEGMENT_BYTES]
    sizes = sorted(process.shmem_bytes for process in mappers)
    parts: dict[Identity, int] = {}
    for process in mappers:
        shmem_bytes = process.shmem_bytes
        first = bisect_left(sizes, shmem_bytes * (1.0 - SEGMENT_TOLERANCE))
        behind = bisect_right(sizes, shmem_bytes * (1.0 + SEGMENT_TOLERANCE))
        parts[process.identity] = shmem_bytes // (behind - first)
    return parts


def size(size_bytes: float) -> str:
    """A size for people."""
    if abs(size_bytes) >= _GIB:
        return f"{size_bytes / _GIB:.1f} GiB"
    if abs(size_bytes) >= 10 * _MIB:
        return f"{size_bytes / _MIB:.0f} MiB"
    return f"{size_bytes / _MIB:.1f} MiB"


def _signed(points: float) -> str:
    return f"{'+' if points >= 0 else '-'}{size(abs(points))}"
