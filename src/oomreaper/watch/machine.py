"""The machine as the watcher's mind sees it: numbers, people, pidfds and profiles, from the kernel's edge.

Implements ``oomreaper.watch.mind.watcher.Machine``. It decides nothing.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from oomreaper.linux.census.census import Census
from oomreaper.linux.memcg import GroupGoneError
from oomreaper.linux.memcg_tree import read_members
from oomreaper.linux.population import GroupPopulation, MachinePopulation, Population
from oomreaper.model.plan import MACHINE

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import Profile, ScopeSample
    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.jobs import Reclaimed
    from oomreaper.watch.handles import Handles
    from oomreaper.watch.sources import Sources

# Groups near their limit whose members are known at the same time; descriptors are kept for the front of each.
_MOST_CENSUSES = 8
# Descriptors kept for the census of the machine, and for that of a group.
_KEPT_FILES_OF_MACHINE = 640
_KEPT_FILES_OF_GROUP = 160
_FRONT_OF_GROUP, _SHARED_FRONT_OF_GROUP = 32, 8
# Victims whose files must not be read by a census that is made later; more than can be open and buried at a time.
_MOST_LEFT_ALONE = 256


class LinuxMachine:
    """This machine.

    Args:
        proc_root: A descriptor of /proc, kept open by the caller.
        sources: Where the numbers come from.
        crew: Reads profiles, reclaims.
        handles: Opens pidfds.
    """

    def __init__(self, proc_root: int, *, sources: Sources, crew: Crew, handles: Handles) -> None:
        self._proc = proc_root
        self._sources = sources
        self._crew = crew
        self._handles = handles
        self._censuses: dict[str, tuple[Census, Population]] = {}
        self._left_alone: dict[Identity, None] = {}  # an ordered set
        self._reclaiming: deque[int | None] = deque()  # pidfds, in the order in which they were handed over

    def scopes(self) -> list[str]:
        """The machine, and each group with a limit of its own."""
        return self._sources.scopes()

    def read(self, scope: str, now_ns: int) -> ScopeSample | None:
        """Its numbers; None when it has gone, or cannot be read now."""
        for identity in [it for it in self._left_alone if not self._crew.has_served(it)]:
            self.readmit(identity)  # that life is over, and its pid may be somebody's by now
        return self._sources.read(scope, now_ns)

    def census(self, scope: str) -> Census:
        """Who is in it; made when it is asked for first."""
        found = self._censuses.get(scope)
        if found is not None:
            return found[0]
        if scope != MACHINE:
            self._make_room()
        directory = self._sources.within_directory if scope == MACHINE else self._sources.directory_of(scope)
        population: Population = MachinePopulation(self._proc) if directory is None else GroupPopulation([directory])
        is_machine = scope == MACHINE
        census = Census(
            self._proc,
            population,
            page_bytes=os.sysconf("SC_PAGE_SIZE"),
            ticks_per_second=os.sysconf("SC_CLK_TCK"),
            front=96 if is_machine else _FRONT_OF_GROUP,
            shared_front=32 if is_machine else _SHARED_FRONT_OF_GROUP,
            kept_files=_KEPT_FILES_OF_MACHINE if is_machine else _KEPT_FILES_OF_GROUP,
        )
        for identity in self._left_alone:
            census.forget(identity)
        self._censuses[scope] = (census, population)
        return census

    def has_census(self, scope: str) -> bool:
        """Whether one was made."""
        return scope in self._censuses

    def drop_census(self, scope: str) -> None:
        """It is not needed for now."""
        found = self._censuses.pop(scope, None)
        if found is not None:
            census, population = found
            census.close()
            population.close()

    def profile(self, lives: tuple[Identity, ...], now_ns: int) -> None:
        """Have profiles read by a worker; who is being asked about already is left out."""
        self._crew.profile(lives, now_ns)

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """The profiles that have been read since the last call."""
        return self._crew.take_profiled()

    def reclaim(self, scope: str, identity: Identity | None, wanted_bytes: int, now_ns: int) -> None:
        """Have the kernel move cold memory out: of the group itself where there is one, else of this process."""
        directory = self._sources.within_directory if scope == MACHINE else self._sources.directory_of(scope)
        if directory is not None and os.path.exists(f"{directory}/memory.reclaim"):
            self._reclaiming.append(None)
            self._crew.reclaim(wanted_bytes, now_ns, directory=directory)
            return
        handle = None if identity is None else self._handles.open_life(identity)
        if handle is not None:
            self._reclaiming.append(handle)
            self._crew.reclaim(wanted_bytes, now_ns, life=identity, handle=handle)

    def take_reclaimed(self) -> list[Reclaimed]:
        """The reclaims that are done since the last call."""
        reclaimed = self._crew.take_reclaimed()
        for _ in reclaimed:
            handle = self._reclaiming.popleft()
            if handle is not None:
                self._handles.close(handle)
        return reclaimed

    def pids_of(self, group: str) -> list[int]:
        """Who is in a control group and below it; nobody when it has gone or is not shown."""
        directory = self._sources.directory_of(group)
        if directory is None:
            return []
        try:
            return read_members(directory)
        except (OSError, GroupGoneError):
            return []

    def has_served(self, identity: Identity) -> bool:
        """Whether the reaper served this life before."""
        return self._crew.has_served(identity)

    def leave_alone(self, identity: Identity) -> None:
        """It is a victim: nothing of it is read any more, by a census that is made later neither."""
        if len(self._left_alone) >= _MOST_LEFT_ALONE:
            del self._left_alone[next(iter(self._left_alone))]
        self._left_alone[identity] = None
        for census, _ in self._censuses.values():
            census.forget(identity)

    def readmit(self, identity: Identity) -> None:
        """It was not a victim after all."""
        self._left_alone.pop(identity, None)
        for census, _ in self._censuses.values():
            census.readmit(identity)

    def forget(self, identity: Identity) -> None:
        """That life is over."""
        self._crew.forget(identity)

    def close(self) -> None:
        """Give all descriptors up."""
        for scope in list(self._censuses):
            self.drop_census(scope)

    def _make_room(self) -> None:
        groups = [scope for scope in self._censuses if scope != MACHINE]
        if len(groups) >= _MOST_CENSUSES:
            self.drop_census(groups[0])
