"""Swarms: many young processes, each too small to be the hog, that together are it: fork bombs, parallel builds. Pure.

Killed one by one, each gives back too little and a sister takes its place. So they end together, when

* at least SMALLEST_SWARM members of one process group are young (a fork bomb leaves its group only if it means to), or,
  when there is no such group, of one session whose leader is not young itself (else it is a login that starts up);
* together they give back enough to be worth a kill; and
* together they have OUTWEIGHS times the points of the best single process.

Only the young die, not the shell that leads their group. Who may not be killed or is to be avoided has been
sorted out by whoever asks (``ranking``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.plan import KillUnit
from oomreaper.policy import badness
from oomreaper.policy.badness import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import ProcessSample

# A compiler of a parallel build lives for seconds, the members of a fork bomb start at each other's pace; a
# browser's or a database's crowd of processes is older than this by the time memory runs short.
YOUNG_SECONDS = 30.0
# A program that starts up has fewer processes than this (but for a browser with its tabs, and then it is what fills
# the memory); a build with as many jobs is a big one.
SMALLEST_SWARM = 16
# One kill is tried before many: sixteen pieces of work lost must bring clearly more than one.
OUTWEIGHS = 2.0


class Swarm(NamedTuple):
    """The young members of ``unit`` (GROUP or SESSION) ``key``, at the moment of asking; sums over all of them."""

    unit: KillUnit
    key: int
    members: tuple[ProcessSample, ...]
    points: float
    gain_bytes: int

    def as_ranked(self, standing: Standing) -> RankedProcess:
        """Its place in a ranking, under the name of its largest member."""
        lead = max(self.members, key=lambda process: (process.gain_bytes, -process.age_seconds, process.identity))
        where = "process group" if self.unit is KillUnit.GROUP else "session"
        reason = (
            f"a swarm: {len(self.members)} processes of {where} {self.key}, none older than {YOUNG_SECONDS:.0f} s, "
            f"together give back {size(self.gain_bytes)}; they end together, the others of that {where} stay"
        )
        return RankedProcess(lead, standing, self.points, (reason,), self.unit, str(self.key))


def is_young(process: ProcessSample) -> bool:
    """Whether it may belong to a swarm by its age."""
    return process.age_seconds < YOUNG_SECONDS


def find_swarm(
    young: Sequence[ProcessSample],
    *,
    total_bytes: int,
    smallest_bytes: float,
    best_points: float,
    own_group: int = 0,
    own_session: int = 0,
    shared: Mapping[Identity, int] | None = None,
) -> Swarm | None:
    """The swarm with the most points among these young processes, if there is one and it outweighs ``best_points``.

    A group or session of number 0 lies outside our pid namespace and may be many; our own is left alone.
    """
    if len(young) < SMALLEST_SWARM:
        return None
    for unit, own in ((KillUnit.GROUP, own_group), (KillUnit.SESSION, own_session)):
        gatherings: dict[int, list[ProcessSample]] = {}
        for process in young:
            key = process.process_group if unit is KillUnit.GROUP else process.session
            gatherings.setdefault(key, []).append(process)
        best: Swarm | None = None
        for key, members in gatherings.items():
            if len(members) < SMALLEST_SWARM or key in {0, own}:
                continue
            if unit is KillUnit.SESSION and any(process.identity.pid == key for process in members):
                continue
            swarm = _summed(unit, key, members, total_bytes, shared or {})
            if swarm.gain_bytes < smallest_bytes or swarm.points < OUTWEIGHS * best_points or not swarm.points:
                continue
            if best is None or (swarm.points, swarm.gain_bytes, key) > (best.points, best.gain_bytes, best.key):
                best = swarm
        if best is not None:
            return best
    return None


def _summed(
    unit: KillUnit, key: int, members: list[ProcessSample], total_bytes: int, shared: Mapping[Identity, int]
) -> Swarm:
    points = 0.0
    gain_bytes = 0
    # In the order of their identities: a sum of floats depends on it, and a choice may not.
    for process in sorted(members, key=lambda process: process.identity):
        told = badness.score(process, total_bytes=total_bytes, shared_bytes=shared.get(process.identity, 0))
        points += told.points
        gain_bytes += told.gain_bytes + told.shared_bytes
    return Swarm(unit, key, tuple(members), points, gain_bytes)
