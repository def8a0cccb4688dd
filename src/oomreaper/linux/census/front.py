"""The front: the processes that are read in every look, since whoever is to be killed is most likely among them.

They are the largest by what a kill gives back, and the largest by shared pages, since a hog of shared memory has next
to nothing of its own. One that is seen to outgrow the smallest of them comes in at once; a few more than planned may
stand there for a while, so that two of a size do not change places, and open and close their files, at each look.
"""

from __future__ import annotations

import heapq
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.linux.census.entry import Entry

# How many may come in before some must leave, and how many may be gone before others are sought.
_SLACK = 16

_gain_bytes = attrgetter("gain_bytes")
_shared_bytes = attrgetter("shared_bytes")


class Front:
    """The members, by pid, and how large one must be to come in."""

    def __init__(self, *, by_gain: int, by_shared: int) -> None:
        self._by_gain = by_gain
        self._by_shared = by_shared
        self._gain_floor_bytes = 0
        self._shared_floor_bytes = 0
        self._elected = 0
        self.members: dict[int, Entry] = {}

    @property
    def is_overfull(self) -> bool:
        """Whether it is time that the smallest leave."""
        return len(self.members) > self._by_gain + self._by_shared + _SLACK

    @property
    def is_depleted(self) -> bool:
        """Whether so many have gone that others are to be sought among those who stand behind."""
        has_others = self._gain_floor_bytes > 0 or self._shared_floor_bytes > 0
        return has_others and len(self.members) < self._elected - _SLACK

    def wants(self, entry: Entry) -> bool:
        """Whether ``entry`` is larger than the smallest that was elected."""
        return entry.gain_bytes > self._gain_floor_bytes or entry.shared_bytes > self._shared_floor_bytes

    def admit(self, entry: Entry) -> None:
        """Take one in."""
        entry.is_in_front = True
        self.members[entry.pid] = entry

    def dismiss(self, entry: Entry) -> None:
        """Leave one out, if it is in."""
        entry.is_in_front = False
        self.members.pop(entry.pid, None)

    def elect(self, entries: Iterable[Entry]) -> list[Entry]:
        """The largest of ``entries``, by either measure; sets how large one must be from now on."""
        candidates = [entry for entry in entries if entry.gain_bytes or entry.shared_bytes]
        largest = heapq.nlargest(self._by_gain, candidates, key=_gain_bytes)
        most_shared = heapq.nlargest(self._by_shared, candidates, key=_shared_bytes)
        # As long as there is room, everybody is in.
        has_room = len(candidates) <= self._by_gain
        self._gain_floor_bytes = 0 if has_room else min(map(_gain_bytes, largest), default=0)
        self._shared_floor_bytes = 0 if has_room else min(map(_shared_bytes, most_shared), default=0)
        elected = {entry.pid: entry for entry in largest}
        elected.update((entry.pid, entry) for entry in most_shared)
        self._elected = len(elected)
        return list(elected.values())
