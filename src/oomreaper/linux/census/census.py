"""The census: the rounds over all processes, and what is handed to the ranking.

What it knows: who was seen, and the numbers of each when last read. What it refuses to know: who deserves what. Whoever
drives it calls

* ``sweep`` at the start, and when memory went that nobody in the front took (``unseen_growth_bytes``);
* ``look`` as often as memory is looked at: the whole front, those just born, and ``budget`` of the others in turn;
* ``refresh`` for the few that lead the ranking, right before one of them is chosen;
* ``forget`` for whoever is given to the reaper: reading the files of a process that dies may do the tear-down of its
  memory in the reader, and the watcher must not be that reader (see ``linux.proc``).

No error of the kernel comes out of these: ``table`` says what becomes of each.

Of a process whose files are not kept, a sweep reads statm by pid: should the pid have changed hands since, the numbers
stand for the wrong life until its turn comes. It cannot become a victim so: for the front, and in ``refresh``,
everything is read through descriptors of one life.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.linux.census.files import KEPT_PER_PROCESS
from oomreaper.linux.census.front import Front
from oomreaper.linux.census.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oomreaper.linux.census.entry import Entry
    from oomreaper.linux.population import Population
    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import ProcessSample, Profile

_SECOND_NS = 1_000_000_000
# How old what statm does not tell may become in the front: name, oom_score_adj, swap, page tables, shared memory.
_DETAIL_AGE_NS = _SECOND_NS
# So many are read anew in one look at most, at 40 us each (2026-11): ten looks a second go round the whole front.
_DETAILS_PER_LOOK = 16
# So many of those just born are met in one look, at 40 us each (2026-11); under a fork bomb the others wait.
_MET_PER_LOOK = 96
# Even when the last pid says that nobody came: somebody may have got a pid out of order.
_LISTING_AGE_NS = 30 * _SECOND_NS

_gain_bytes = attrgetter("gain_bytes")


class Statistics(NamedTuple):
    """``processes``, ``front``, ``kept_files`` and ``refused`` (not ours to see) are of now, the others count."""

    processes: int
    front: int
    kept_files: int
    refused: int
    looks: int
    sweeps: int
    listings: int
    vanished: int
    unread: int
    crowded: int


class Census:
    """Who is there and how big.

    ``proc_root`` is a descriptor of /proc; the census closes neither that nor the population. ``front`` and
    ``shared_front`` say how many are read in every look, ``kept_files`` how many descriptors may be kept for that, four
    for each. ``suspended_ns`` tells by how much the clock of start times (CLOCK_BOOTTIME) is ahead of the clock of
    every ``now_ns`` (CLOCK_MONOTONIC).
    """

    def __init__(
        self,
        proc_root: int,
        population: Population,
        *,
        page_bytes: int,
        ticks_per_second: int,
        front: int = 96,
        shared_front: int = 32,
        kept_files: int = 640,
        suspended_ns: Callable[[], int] | None = None,
    ) -> None:
        self._population = population
        self._suspended_ns = suspended_ns or _read_suspended_ns
        self._front = Front(by_gain=front, by_shared=shared_front)
        self._table = Table(
            proc_root,
            page_bytes=page_bytes,
            ticks_per_second=ticks_per_second,
            front=self._front,
            kept_limit=kept_files // KEPT_PER_PROCESS,
        )
        self._to_meet: deque[int] = deque()
        self._to_try_again: list[int] = []
        self._turn: list[int] = []
        self._listed_ns: int | None = None
        self._has_swept = False
        self._largest: tuple[int, list[Entry]] | None = None
        self._looks = 0
        self._sweeps = 0
        self._listings = 0

    def sweep(self, now_ns: int, *, is_swap_used: bool = False) -> None:
        """Read everybody, and elect the front anew: about 10 us a process, 40 for one not met before."""
        self._begin(now_ns, is_swap_used=is_swap_used)
        self._largest = None
        self._sweeps += 1
        table = self._table
        table.explained_bytes = 0
        table.forgive()
        self._list(now_ns)
        for entry in list(table.entries.values()):
            if entry.is_in_front:
                table.measure(entry)
            elif is_swap_used:
                table.visit(entry.pid, is_electing=True)
            else:
                table.glance(entry)
        while self._to_meet:  # nobody waits for his turn now
            table.visit(self._to_meet.popleft(), is_electing=True)
        table.elect(table.entries.values())
        for entry in table.entries.values():
            if entry.sample is None:
                entry.make_sample()
        self._has_swept = True

    def look(self, now_ns: int, *, budget: int, is_swap_used: bool = False) -> None:
        """Read the front, meet the newborn, and visit ``budget`` of the others. With 0, only what a decision needs."""
        self._begin(now_ns, is_swap_used=is_swap_used)
        self._largest = None
        self._looks += 1
        self._has_swept = False
        self._table.explained_bytes = 0
        for entry in list(self._front.members.values()):
            self._table.measure(entry)
        self._find_newcomers(now_ns, is_leisurely=budget > 0)
        self._meet()
        self._visit_in_turn(budget)
        self._read_details(now_ns)
        if self._front.is_overfull:
            self._table.elect(list(self._front.members.values()))
        elif budget > 0 and self._front.is_depleted:
            self._table.elect(self._table.entries.values())

    def refresh(self, identities: Iterable[Identity], now_ns: int, *, is_swap_used: bool = False) -> None:
        """Read all there is to know of these few, now. Those that have gone are not in ``processes`` afterwards."""
        self._begin(now_ns, is_swap_used=is_swap_used)
        for identity in identities:
            entry = self._find(identity)
            if entry is not None:
                self._table.read_details(entry)

    def processes(self, *, largest: int | None = None) -> list[ProcessSample]:
        """Everybody but the kernel's threads, in no order, each as of the moment it was last read.

        With ``largest``: so many of the largest, and the front, and those just born.
        """
        entries = self._table.entries
        if largest is None:
            return [entry.sample or entry.make_sample() for entry in entries.values() if not entry.is_kernel_thread]
        if self._largest is None or self._largest[0] != largest:
            self._largest = (largest, heapq.nlargest(largest, entries.values(), key=_gain_bytes))
        chosen = {entry.pid: entry for entry in self._largest[1] if entries.get(entry.pid) is entry}
        chosen.update(self._front.members)
        chosen.update((entry.pid, entry) for entry in self._table.young if entries.get(entry.pid) is entry)
        return [entry.sample or entry.make_sample() for entry in chosen.values() if not entry.is_kernel_thread]

    def find(self, identity: Identity) -> ProcessSample | None:
        """One life; None when it is not known, or not any more."""
        entry = self._find(identity)
        return None if entry is None else entry.sample or entry.make_sample()

    def unseen_growth_bytes(self, fall_bytes: int) -> int:
        """How much memory went that nobody was seen to take; when it is much, it is time for a sweep.

        ``fall_bytes`` is by how much available memory fell between the last two looks. Explained is what the front, and
        those just met, took meanwhile, less what they gave back. Nothing is unseen after a sweep.
        """
        return 0 if self._has_swept else max(fall_bytes - self._table.explained_bytes, 0)

    def forget(self, identity: Identity) -> None:
        """Drop it, and do not read its files again until its pid was missing from a listing, or ``readmit``."""
        entry = self._find(identity)
        if entry is not None:
            self._table.drop(entry)
        self._table.forgotten[identity.pid] = identity

    def readmit(self, identity: Identity) -> None:
        """Its life is over, or it is not to die after all: whoever holds the pid is met in the next look."""
        if self._table.forgotten.get(identity.pid) == identity:
            del self._table.forgotten[identity.pid]
            self._to_meet.append(identity.pid)

    def set_profile(self, identity: Identity, profile: Profile) -> None:
        """Note who it is, until it takes another name."""
        entry = self._find(identity)
        if entry is not None:
            entry.see_profile(profile)

    def without_profile(self, limit: int) -> list[Identity]:
        """The largest of the front whose profile is not known, or was that of another program."""
        nameless = [entry for entry in self._front.members.values() if entry.profile is None]
        return [entry.identity for entry in heapq.nlargest(limit, nameless, key=_gain_bytes)]

    def statistics(self) -> Statistics:
        """How it stands."""
        table = self._table
        return Statistics(
            processes=len(table.entries),
            front=len(self._front.members),
            kept_files=table.kept * KEPT_PER_PROCESS,
            refused=len(table.refused),
            looks=self._looks,
            sweeps=self._sweeps,
            listings=self._listings,
            vanished=table.vanished,
            unread=table.unread,
            crowded=table.crowded,
        )

    def close(self) -> None:
        """Let go of all that is kept open, and know nobody any more."""
        for entry in list(self._table.entries.values()):
            self._table.drop(entry)

    def _find(self, identity: Identity) -> Entry | None:
        entry = self._table.entries.get(identity.pid)
        return entry if entry is not None and entry.identity == identity else None

    def _begin(self, now_ns: int, *, is_swap_used: bool) -> None:
        self._table.begin(now_ns, suspended_ns=self._suspended_ns(), is_swap_used=is_swap_used)

    def _list(self, now_ns: int) -> None:
        """Learn who is there: those who are not any more go, those who are new wait to be met."""
        table = self._table
        try:
            pids = set(self._population.pids())
        except OSError as error:
            table.note(error)
            return
        self._listings += 1
        self._listed_ns = now_ns
        for pid in table.entries.keys() - pids:
            table.vanished += 1
            table.drop(table.entries[pid])
        for pid in table.forgotten.keys() - pids:
            del table.forgotten[pid]
        table.refused &= pids
        self._to_meet = deque(pids - table.entries.keys())

    def _find_newcomers(self, now_ns: int, *, is_leisurely: bool) -> None:
        listed_ns = self._listed_ns
        if listed_ns is None or (is_leisurely and now_ns - listed_ns >= _LISTING_AGE_NS):
            self._list(now_ns)
            return
        try:
            newcomers = self._population.newcomers()
        except OSError as error:
            self._table.note(error)
            return
        if newcomers is None:
            self._list(now_ns)
        else:
            self._table.refused.difference_update(newcomers)  # whoever holds these numbers now is somebody else
            self._to_meet.extend(newcomers)

    def _meet(self) -> None:
        # A pid is given out a moment before its process can be seen: who was not there is asked for once more.
        again, self._to_try_again = self._to_try_again, []
        for pid in again:
            self._table.visit(pid)
        for _ in range(min(len(self._to_meet), _MET_PER_LOOK)):
            pid = self._to_meet.popleft()
            if not self._table.visit(pid):
                self._to_try_again.append(pid)

    def _visit_in_turn(self, budget: int) -> None:
        entries = self._table.entries
        visited, passed, count = 0, 0, len(entries)  # once round at most, when all are fewer than the budget
        while visited < budget and passed < count:
            if not self._turn:
                self._turn = list(entries)
            entry = entries.get(self._turn.pop())
            passed += 1
            if entry is not None and not entry.is_in_front:
                self._table.visit(entry.pid)
                visited += 1

    def _read_details(self, now_ns: int) -> None:
        # Those read now go to the end, so that all have their turn.
        members = self._front.members
        due = []
        for entry in members.values():
            if entry.detailed_ns is None or now_ns - entry.detailed_ns >= _DETAIL_AGE_NS:
                due.append(entry)
                if len(due) == _DETAILS_PER_LOOK:
                    break
        for entry in due:
            if members.get(entry.pid) is entry:
                members[entry.pid] = members.pop(entry.pid)
                self._table.read_details(entry)


def _read_suspended_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
