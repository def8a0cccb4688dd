"""The ranking: who is to die next, who only if there is nobody else, who is too small, and who never. Pure.

What it knows: the samples, the user's preferences and what this machine's state says against a process (``Context``).
What it refuses to know: how many points a property is worth (``badness``), how patterns match (``matching``), what
killing is. It keeps nothing between two rankings but answers of patterns, and whom the last ranking was made for.

How it works, in the order of the questions put to each process:

1. Protected? By its number (init, ourselves and who would take us along), by what it is (a kernel thread, a zombie,
   somebody else's), by what was set (oom_score_adj -1000, a ``never`` rule, user.oomd_omit), by what was done already.
2. Too small? It gives back less than ``smallest_percent`` of the memory: such a kill destroys work and helps nobody.
3. To be avoided? By an ``avoid`` rule, by user.oomd_avoid, *or because we cannot tell that it is not protected*: a
   ``never`` rule looks at something that could not be read. It may be right to kill it, but not before others.
4. The rest are eligible, by points; ties go to the one that gives back more, then the younger, then the higher pid.
   Sixteen and more young ones together may outweigh the best single one (``swarm``); they then stand first.

A wish (user.oomd_*) or an unread ``prefer`` counts for nothing until somebody has looked; so whoever asks, and finds
that the best has no profile yet, looks at it and ranks once more (``needs_profile``).

Cost: one pass asks everybody the cheap questions and counts points only of those worth a kill; words are made only
for the ``limit`` that are shown (12 us each). 10,000 processes: 10 ms, with rules 11 to 18 ms; 200, of which 64 are
shown: 0.9 ms (Linux 6.18, 2 busy CPUs, 2026-11).
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple, assert_never

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.outcome import printable
from oomreaper.model.plan import KillUnit
from oomreaper.model.sample import Wish
from oomreaper.policy import badness, belonging, matching, swarm
from oomreaper.policy.badness import size
from oomreaper.policy.matching import Opinions
from oomreaper.policy.protection import HIGHEST_PID, INIT_PID, OOM_SCORE_ADJ_NEVER, refuse_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from oomreaper.model.identity import Identity
    from oomreaper.model.plan import Victims
    from oomreaper.model.sample import ProcessSample
    from oomreaper.policy.protection import Ourselves


class Context(NamedTuple):
    """What a choice rests on besides the processes.

    ``used_bytes`` is what is taken of ``total_bytes``; ``shmem_bytes`` of it is shared memory and tmpfs (None: not
    told). ``may_signal_uid``: the only user whose processes we have a right to signal; None: anybody's.
    ``is_set_aside``: whether that life was served before, whatever came of it.
    """

    scope: str
    total_bytes: int
    used_bytes: int
    shmem_bytes: int | None
    ourselves: Ourselves
    may_signal_uid: int | None
    is_set_aside: Callable[[Identity], bool]


class Ranking(NamedTuple):
    """Who stands where: ELIGIBLE, AVOIDED, TOO_SMALL, PROTECTED, the best first in each.

    The points of the TOO_SMALL and the PROTECTED are the bytes they would give back. When not all find a place, the
    first two get theirs first, then the protected who would be worth a kill (people ask about those). The counts are
    of all processes; ``eligible`` of those that stand so.
    """

    ranked: tuple[RankedProcess, ...]
    considered: int
    eligible: int
    protected: int

    @property
    def best(self) -> RankedProcess | None:
        """Who is to die next; None: nobody whose death would help may be killed."""
        if self.ranked and self.ranked[0].standing in {Standing.ELIGIBLE, Standing.AVOIDED}:
            return self.ranked[0]
        return None


# Who is shown first when not all can be: the standing, but the protected who hold much before those who are too small.
_PLACE_ELIGIBLE = 0
_PLACE_AVOIDED = 1
_PLACE_PROTECTED_LARGE = 2
_PLACE_TOO_SMALL = 3
_PLACE_PROTECTED_SMALL = 4
_STANDING_OF_PLACE = (
    Standing.ELIGIBLE,
    Standing.AVOIDED,
    Standing.PROTECTED,
    Standing.TOO_SMALL,
    Standing.PROTECTED,
)


class _Entry(NamedTuple):
    """One process's place, before words are made. Compared from the left, the greatest is the best."""

    minus_place: int
    points: float
    base_bytes: int
    minus_age_seconds: float
    pid: int
    start_time_ticks: int
    position: int  # no two are equal: what follows is never compared
    process: ProcessSample
    score: badness.Score | None
    reason: str  # why it is avoided, or protected

    @property
    def standing(self) -> Standing:
        return _STANDING_OF_PLACE[-self.minus_place]

    @property
    def order(self) -> tuple[float, ...]:
        """What it is sorted by, descending, when it is shown."""
        return (-self.standing, *self[1:7])


class Chooser:
    """Ranks processes by the preferences ``victims``."""

    def __init__(self, victims: Victims) -> None:
        self._victims = victims
        self._opinions = Opinions(victims)
        self._judge: _Judge | None = None
        self._swarm: RankedProcess | None = None

    @property
    def needs_profile(self) -> bool:
        """Whether a choice rests on more than the numbers: candidates want their profile looked up."""
        victims = self._victims
        return (
            victims.unit is KillUnit.CGROUP
            or victims.honour_oom_group
            or victims.honour_xattrs
            or matching.has_need_of_profile((*victims.never, *victims.avoid, *victims.prefer))
        )

    def rank(self, processes: Iterable[ProcessSample], context: Context, *, limit: int = 64) -> Ranking:
        """The ranking of ``processes``, ``limit`` of them by name. The same processes in any order rank the same."""
        everyone = list(processes)
        self._opinions.turn()
        self._judge = judge = _Judge(self._victims, self._opinions, context)
        is_shared = badness.is_shared_memory_shortage(context.shmem_bytes, context.used_bytes)
        shared: Mapping[Identity, int] = badness.shared_parts(everyone) if is_shared else {}
        sweep = _Sweep(judge, shared, limit)
        sweep.see(everyone)
        units = _Units(self._victims, judge, everyone)
        ranked = [_as_ranked(entry, judge, units) for entry in sweep.named()]
        self._swarm = self._find_swarm(sweep.young, ranked, judge, shared)
        if self._swarm is not None:
            lead = self._swarm.process
            ranked = [self._swarm, *(one for one in ranked if one.process is not lead)][:limit]
        ranking = Ranking(tuple(ranked), len(everyone), sweep.eligible, sweep.protected)
        best = ranking.best
        if best is None or best is self._swarm or best.unit is KillUnit.PROCESS:
            return ranking
        return ranking._replace(ranked=(self._with_sum(best, everyone), *ranked[1:]))

    def members_of(self, chosen: RankedProcess, processes: Iterable[ProcessSample]) -> tuple[ProcessSample, ...]:
        """All who die with ``chosen`` by its unit, itself first; who is protected, or may be, stays out.

        Judged by the context of the last ranking. Of a swarm: its young members. Of a control group: those whose
        profile tells that they are in it.
        """
        judge = self._judge
        if judge is None:
            message = "members were asked for before anything was ranked"
            raise BrokenPromiseError(message)
        first = chosen.process
        is_swarm = self._is_swarm(chosen)
        is_last_resort = chosen.standing is Standing.AVOIDED
        members = [first]
        for process in processes:
            if process.identity == first.identity or not _is_with(process, chosen):
                continue
            if is_swarm:
                belongs = swarm.is_young(process) and (is_last_resort or judge.objection_to(process) is None)
            else:
                belongs = not judge.may_be_protected(process)
            if belongs and judge.protection_of(process) is None:
                members.append(process)
        return tuple(members)

    def _find_swarm(
        self, young: list[ProcessSample], ranked: list[RankedProcess], judge: _Judge, shared: Mapping[Identity, int]
    ) -> RankedProcess | None:
        """The swarm that stands before the best single one; one of those to be avoided only if none is eligible."""
        if len(young) < swarm.SMALLEST_SWARM:
            return None
        best = ranked[0] if ranked and ranked[0].standing <= Standing.AVOIDED else None
        willing = [process for process in young if judge.objection_to(process) is None]
        is_eligible = best is not None and best.standing is Standing.ELIGIBLE
        for standing, members in ((Standing.ELIGIBLE, willing), (Standing.AVOIDED, young)):
            if standing is Standing.AVOIDED and is_eligible:
                return None
            found = swarm.find_swarm(
                members,
                total_bytes=judge.context.total_bytes,
                smallest_bytes=judge.smallest_bytes,
                best_points=best.points if best is not None and best.standing is standing else 0.0,
                own_group=judge.context.ourselves.process_group,
                own_session=judge.context.ourselves.session,
                shared=shared,
            )
            if found is not None:
                return found.as_ranked(standing)
        return None

    def _is_swarm(self, chosen: RankedProcess) -> bool:
        known = self._swarm
        return (
            known is not None
            and (known.unit, known.unit_key) == (chosen.unit, chosen.unit_key)
            and known.process.identity == chosen.process.identity
        )

    def _with_sum(self, best: RankedProcess, everyone: Sequence[ProcessSample]) -> RankedProcess:
        """The best one, with what its whole unit gives back; counted for the best alone, for it costs a pass."""
        members = self.members_of(best, everyone)
        in_all = size(sum(process.gain_bytes for process in members))
        return best._replace(
            reasons=(*best.reasons, f"that is {len(members)} processes, which give back {in_all} in all")
        )


class _Judge:
    """What speaks against one process; made for one ranking."""

    def __init__(self, victims: Victims, opinions: Opinions, context: Context) -> None:
        ourselves = context.ourselves
        self.context = context
        self.smallest_percent = victims.smallest_percent
        self.smallest_bytes = context.total_bytes * victims.smallest_percent / 100.0
        # All whom refuse_pid() can refuse; who is not among them is spared the call.
        self.untouchable = frozenset(
            {INIT_PID, *ourselves.pids, *ourselves.ancestors, ourselves.process_group, ourselves.session}
        )
        self._honours_wishes = victims.honour_xattrs
        self._opinion_of = opinions.of
        self._may_signal_uid = context.may_signal_uid
        self._is_set_aside = context.is_set_aside

    def protection_of(self, process: ProcessSample) -> str | None:
        """Why it is never killed; None: nothing protects it."""
        pid = process.identity.pid
        if pid in self.untouchable or not 0 < pid <= HIGHEST_PID:
            refusal = refuse_pid(pid, self.context.ourselves)
            if refusal is not None:
                return refusal.reason
        if process.is_kernel_thread:
            return "it is a kernel thread: it has no memory of its own and cannot be killed"
        if process.is_dead:
            return "it is a zombie: it has ended already and holds nothing"
        if process.oom_score_adj == OOM_SCORE_ADJ_NEVER:
            return f"its oom_score_adj is {OOM_SCORE_ADJ_NEVER}, which means never"
        if self._may_signal_uid is not None and process.uid != self._may_signal_uid:
            return "it is somebody else's, and oomreaper has no right to signal it; run it as root"
        profile = process.profile
        never = self._opinion_of(process.comm, process.uid, profile).never.text
        if never is not None:
            return f"a never rule matches it: {never}"
        if profile is not None and profile.wish is Wish.OMIT and self._honours_wishes:
            return "the owner of its control group asks to leave it out (user.oomd_omit)"
        if self._is_set_aside(process.identity):
            return "it was served before: its memory is back, or it was given up"
        return None

    def objection_to(self, process: ProcessSample) -> str | None:
        """Why it is killed only when there is no other; None: nothing speaks for sparing it."""
        profile = process.profile
        opinion = self._opinion_of(process.comm, process.uid, profile)
        if opinion.never.unread is not None:
            return f"its {matching.words(opinion.never.unread)} could not be read; a never rule may apply to it"
        if process.oom_score_adj is None:
            return f"its oom_score_adj could not be read; it may be {OOM_SCORE_ADJ_NEVER}, which means never"
        if opinion.avoid.text is not None:
            return f"an avoid rule matches it: {opinion.avoid.text}"
        if opinion.avoid.unread is not None:
            return f"its {matching.words(opinion.avoid.unread)} could not be read; an avoid rule may apply to it"
        if profile is not None and profile.wish is Wish.AVOID and self._honours_wishes:
            return "the owner of its control group asks to spare it (user.oomd_avoid)"
        return None

    def may_be_protected(self, process: ProcessSample) -> bool:
        """Whether something that would protect it could not be read."""
        opinion = self._opinion_of(process.comm, process.uid, process.profile)
        return process.oom_score_adj is None or opinion.never.unread is not None

    def preference_for(self, process: ProcessSample) -> str | None:
        """The prefer rule that matches it."""
        return self._opinion_of(process.comm, process.uid, process.profile).prefer.text


class _Sweep:
    """The one pass over everybody: counts, the best ``limit`` entries, and who of the unprotected is young."""

    def __init__(self, judge: _Judge, shared: Mapping[Identity, int], limit: int) -> None:
        self.eligible = 0
        self.protected = 0
        self.young: list[ProcessSample] = []
        self._judge = judge
        self._shared = shared
        self._limit = limit
        self._heap: list[_Entry] = []  # the worst of the best is in front

    def see(self, everyone: Sequence[ProcessSample]) -> None:
        """Give each its place. Written flat: at 10,000 processes each call more costs a millisecond."""
        judge, shared, heap, limit = self._judge, self._shared, self._heap, self._limit
        protection_of, smallest_bytes = judge.protection_of, judge.smallest_bytes
        for position, process in enumerate(everyone):
            base = process.anon_bytes + process.swap_bytes + process.page_table_bytes
            if shared:
                base += shared.get(process.identity, 0)
            points: float = base
            told: badness.Score | None = None
            reason = protection_of(process)
            if reason is not None:
                self.protected += 1
                place = _PLACE_PROTECTED_LARGE if base >= smallest_bytes else _PLACE_PROTECTED_SMALL
            else:
                if process.age_seconds < swarm.YOUNG_SECONDS:
                    self.young.append(process)
                if base < smallest_bytes:
                    place = _PLACE_TOO_SMALL
                else:
                    reason = judge.objection_to(process)
                    place = _PLACE_ELIGIBLE if reason is None else _PLACE_AVOIDED
                    self.eligible += reason is None
                    told = self._score(process)
                    points = told.points
            if len(heap) >= limit and (not heap or (-place, points) < heap[0][:2]):
                continue
            entry = _Entry(
                -place, points, base, -process.age_seconds, *process.identity, position, process, told, reason or ""
            )
            (heapq.heappush if len(heap) < limit else heapq.heappushpop)(heap, entry)

    def named(self) -> list[_Entry]:
        """The best entries, the best first."""
        return sorted(self._heap, key=lambda entry: entry.order, reverse=True)

    def _score(self, process: ProcessSample) -> badness.Score:
        return badness.score(
            process,
            total_bytes=self._judge.context.total_bytes,
            shared_bytes=self._shared.get(process.identity, 0),
            is_preferred=self._judge.preference_for(process) is not None,
        )


class _Units:
    """What dies together with a process, and why not more; made for one ranking."""

    def __init__(self, victims: Victims, judge: _Judge, everyone: Sequence[ProcessSample]) -> None:
        self._victims = victims
        self._judge = judge
        self._everyone = everyone
        self._own_cgroups: list[str] | None = None

    def of(self, process: ProcessSample) -> tuple[KillUnit, str, str]:
        """The unit, its key, and a reason in words (empty when there is nothing to say)."""
        profile = process.profile
        if profile is not None and profile.oom_group is not None and self._victims.honour_oom_group:
            return self._cgroup(profile.oom_group, "memory.oom.group is set there")
        ourselves = self._judge.context.ourselves
        unit = self._victims.unit
        match unit:
            case KillUnit.PROCESS:
                return _alone("")
            case KillUnit.GROUP:
                return _numbered(unit, "process group", process.process_group, ourselves.process_group)
            case KillUnit.SESSION:
                return _numbered(unit, "session", process.session, ourselves.session)
            case KillUnit.CGROUP:
                if profile is None or profile.cgroup is None:
                    return _alone("it dies alone: its control group could not be read")
                return self._cgroup(profile.cgroup, "")
            case _:
                assert_never(unit)

    def _cgroup(self, path: str, why: str) -> tuple[KillUnit, str, str]:
        if belonging.is_root(path):
            return _alone("it dies alone: its control group is the root, and everybody is in that")
        if self._own_cgroups is None:
            self._own_cgroups = [
                process.profile.cgroup
                for process in self._everyone
                if process.identity.pid in self._judge.untouchable
                and process.profile is not None
                and process.profile.cgroup is not None
            ]
        shown = printable(path.encode("utf-8", "surrogateescape"))
        if any(belonging.is_within(own, path) for own in self._own_cgroups):
            return _alone(f"it dies alone: init, oomreaper or who started it is in its control group {shown} too")
        return KillUnit.CGROUP, path, f"its control group {shown} ends with it{': ' + why if why else ''}"


def _alone(reason: str) -> tuple[KillUnit, str, str]:
    return KillUnit.PROCESS, "", reason


def _numbered(unit: KillUnit, what: str, number: int, own: int) -> tuple[KillUnit, str, str]:
    if number <= 0:
        return _alone(f"it dies alone: its {what} is led from outside of our pid namespace")
    if number == INIT_PID:
        return _alone(f"it dies alone: its {what} is that of init")
    if number == own:
        return _alone(f"it dies alone: its {what} is that of oomreaper")
    return unit, str(number), f"its {what} {number} ends with it"


def _is_with(process: ProcessSample, chosen: RankedProcess) -> bool:
    """Whether it is in the unit of ``chosen``."""
    unit = chosen.unit
    match unit:
        case KillUnit.PROCESS:
            return False
        case KillUnit.GROUP:
            return process.process_group == int(chosen.unit_key)
        case KillUnit.SESSION:
            return process.session == int(chosen.unit_key)
        case KillUnit.CGROUP:
            profile = process.profile
            if profile is None or profile.cgroup is None:
                return False
            return belonging.is_within(profile.cgroup, chosen.unit_key)
        case _:
            assert_never(unit)


def _as_ranked(entry: _Entry, judge: _Judge, units: _Units) -> RankedProcess:
    process, standing = entry.process, entry.standing
    if standing is Standing.PROTECTED:
        return RankedProcess(process, standing, entry.points, (entry.reason,))
    if entry.score is None:
        share_percent = 100.0 * entry.base_bytes / judge.context.total_bytes
        reason = (
            f"would give back {size(entry.base_bytes)}, {share_percent:.2f} % of the memory; "
            f"less than {judge.smallest_percent:g} % is not worth a kill"
        )
        return RankedProcess(process, standing, entry.points, (reason,))
    unit, unit_key, unit_reason = units.of(process)
    told = badness.reasons_of(process, entry.score, preferred_by=judge.preference_for(process))
    reasons = tuple(filter(None, (entry.reason, *told, unit_reason)))
    return RankedProcess(process, standing, entry.points, reasons, unit, unit_key)
