"""The model as the watcher's mind sees it: numbers of scopes, who is there and how big, profiles, reclaim.

Implements ``mind.watcher.Machine``, ``mind.candidates.People`` and ``Census``, ``mind.hunter.Onlooker`` and
``mind.team.Answers``, as ``watch.machine.LinuxMachine`` does. It reads values of the model, a step for each process,
and not files: the real census (``linux/census``) keeps descriptors and budgets, which are tested on a real /proc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.model.plan import MACHINE
from oomreaper.model.sample import ProcessSample, Profile, ScopeSample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.model.identity import Identity
    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.jobs import Reclaimed
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.tasks import Process
    from oomreaper.sim.userland import Userland
    from oomreaper.watch.handles import Handles

_SECOND = 1_000_000_000
# As the real census: growth is over about so long.
_GROWTH_NS = 10 * _SECOND


class SimCensus:
    """Who is in a scope."""

    def __init__(self, userland: Userland, scope: str) -> None:
        self._land = userland
        self._machine = userland.machine
        self._scope = scope
        self._samples: dict[Identity, ProcessSample] = {}
        self._profiles: dict[Identity, Profile] = {}
        self._forgotten: set[Identity] = set()
        self._first: dict[Identity, tuple[int, int]] = {}  # when, and what it held then

    def look(self, now_ns: int, *, budget: int, is_swap_used: bool = False) -> None:  # noqa: ARG002 - the seam's
        """Everybody: the model's machines are small."""
        self.sweep(now_ns)

    def sweep(self, now_ns: int, *, is_swap_used: bool = False) -> None:  # noqa: ARG002 - the seam's
        """Everybody, one after the other; who comes or goes meanwhile may be missed."""
        self._land.call()
        met = set()
        for process in self._members():
            met.add(process.identity)
            self._read(process, now_ns)
        for identity in [identity for identity in self._samples if identity not in met]:
            del self._samples[identity]
        self._forgotten &= {process.identity for process in self._members()}

    def refresh(self, identities: Iterable[Identity], now_ns: int, *, is_swap_used: bool = False) -> None:  # noqa: ARG002 - the seam's
        """These."""
        for identity in identities:
            process = self._machine.processes.get(identity.pid)
            if process is None or process.identity != identity:
                self._samples.pop(identity, None)
            else:
                self._read(process, now_ns)

    def processes(self, *, largest: int | None = None) -> list[ProcessSample]:
        """Who was seen."""
        samples = list(self._samples.values())
        if largest is None:
            return samples
        return sorted(samples, key=lambda sample: sample.gain_bytes, reverse=True)[:largest]

    def find(self, identity: Identity) -> ProcessSample | None:
        """One of them, as it was last seen."""
        return self._samples.get(identity)

    def unseen_growth_bytes(self, fall_bytes: int) -> int:  # noqa: ARG002 - the seam's
        """Every look is a sweep: nothing is unseen."""
        return 0

    def without_profile(self, limit: int) -> list[Identity]:
        """The largest of whom no profile is known."""
        unknown = [sample for sample in self._samples.values() if sample.identity not in self._profiles]
        return [sample.identity for sample in sorted(unknown, key=lambda sample: -sample.gain_bytes)[:limit]]

    def set_profile(self, identity: Identity, profile: Profile) -> None:
        """Note it."""
        self._profiles[identity] = profile
        if identity in self._samples:
            self._samples[identity] = self._samples[identity]._replace(profile=profile)

    def forget(self, identity: Identity) -> None:
        """It is a victim."""
        self._samples.pop(identity, None)
        self._forgotten.add(identity)

    def readmit(self, identity: Identity) -> None:
        """It is none."""
        self._forgotten.discard(identity)

    def _members(self) -> list[Process]:
        if self._scope == MACHINE:
            return list(self._machine.processes.values())
        group = self._machine.groups.get(self._scope)
        return [] if group is None else list(group.members)

    def _read(self, process: Process, now_ns: int) -> None:
        identity = process.identity
        if process.is_kernel_thread or identity in self._forgotten:
            return
        self._land.call()
        if process.is_waited:
            self._samples.pop(identity, None)
            return
        page = self._machine.parameters.page_bytes
        mm = process.mm
        anon_bytes, swap_bytes, shmem_bytes = (
            (0, 0, 0) if mm is None else (mm.anon_pages * page, mm.swap_pages * page, mm.shmem_pages * page)
        )
        held_bytes = anon_bytes + swap_bytes
        first_ns, first_bytes = self._first.setdefault(identity, (now_ns, held_bytes))
        if now_ns - first_ns > _GROWTH_NS:
            self._first[identity] = (now_ns, held_bytes)
        self._samples[identity] = ProcessSample(
            identity=identity,
            comm=process.comm,
            uid=process.uid,
            parent_pid=0 if process.parent is None else process.parent.pid,
            process_group=process.process_group,
            session=process.session,
            is_kernel_thread=False,
            is_dead=process.is_dead,
            oom_score_adj=process.oom_score_adj,
            anon_bytes=anon_bytes,
            swap_bytes=swap_bytes,
            page_table_bytes=0,
            shmem_bytes=shmem_bytes,
            growth_bytes=max(0, held_bytes - first_bytes),
            age_seconds=max(0.0, now_ns / _SECOND - process.start_ticks / 100),
            profile=self._profiles.get(identity),
        )


class Crowd:
    """The machine and its people.

    Args:
        userland: The model, as seen from the process that runs.
        crew: Reads profiles, reclaims.
        handles: Opens pidfds.
    """

    def __init__(self, userland: Userland, *, crew: Crew, handles: Handles) -> None:
        self._land = userland
        self._machine: Machine = userland.machine
        self._crew = crew
        self._handles = handles
        self._censuses: dict[str, SimCensus] = {}
        self._reclaiming: list[int] = []

    def scopes(self) -> list[str]:
        """The machine, and each group with a limit."""
        return [MACHINE, *(path for path, group in self._machine.groups.items() if group.limit is not None)]

    def read(self, scope: str, now_ns: int) -> ScopeSample | None:
        """Its numbers."""
        self._land.call()
        machine, pages = self._machine, self._machine.allocator
        page = machine.parameters.page_bytes
        swap = {"swap_total_bytes": pages.swap_total * page, "swap_free_bytes": pages.swap_free * page}
        if scope == MACHINE:
            some_us, full_us = machine.pressure.totals_us()
            return ScopeSample(
                scope,
                now_ns,
                pages.total * page,
                pages.available * page,
                **swap,
                shmem_bytes=pages.shmem * page,
                psi_some_us=some_us,
                psi_full_us=full_us,
                oom_kills=machine.oom_kills,
            )
        group = machine.groups.get(scope)
        if group is None or group.limit is None:
            return None
        room = 0 if group.under_oom.sleepers else max(0, group.limit - group.charged)
        return ScopeSample(
            scope,
            now_ns,
            group.limit * page,
            room * page,
            **swap,
            current_bytes=group.charged * page,
            limit_bytes=group.limit * page,
        )

    def census(self, scope: str) -> SimCensus:
        """Who is in it."""
        census = self._censuses.get(scope)
        if census is None:
            census = self._censuses[scope] = SimCensus(self._land, scope)
        return census

    def has_census(self, scope: str) -> bool:
        """Whether one was made."""
        return scope in self._censuses

    def drop_census(self, scope: str) -> None:
        """It is not needed for now."""
        self._censuses.pop(scope, None)

    def profile(self, lives: tuple[Identity, ...], now_ns: int) -> None:
        """Have profiles read by a worker."""
        self._crew.profile(lives, now_ns)

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """The profiles that have been read."""
        return self._crew.take_profiled()

    def reclaim(self, scope: str, identity: Identity | None, wanted_bytes: int, now_ns: int) -> None:  # noqa: ARG002 - the seam's
        """v1 has no memory.reclaim: of this process."""
        handle = None if identity is None else self._handles.open_life(identity)
        if handle is not None:
            self._reclaiming.append(handle)
            self._crew.reclaim(wanted_bytes, now_ns, life=identity, handle=handle)

    def take_reclaimed(self) -> list[Reclaimed]:
        """The reclaims that are done."""
        reclaimed = self._crew.take_reclaimed()
        for _ in reclaimed:
            self._handles.close(self._reclaiming.pop(0))
        return reclaimed

    def pids_of(self, group: str) -> list[int]:
        """Who is in a control group."""
        found = self._machine.groups.get(group)
        return [] if found is None else [process.pid for process in found.members]

    def has_served(self, identity: Identity) -> bool:
        """Whether the reaper served this life before."""
        return self._crew.has_served(identity)

    def leave_alone(self, identity: Identity) -> None:
        """Nothing of it is read any more."""
        for census in self._censuses.values():
            census.forget(identity)

    def readmit(self, identity: Identity) -> None:
        """It was not a victim after all."""
        for census in self._censuses.values():
            census.readmit(identity)

    def forget(self, identity: Identity) -> None:
        """That life is over."""
        self._crew.forget(identity)
