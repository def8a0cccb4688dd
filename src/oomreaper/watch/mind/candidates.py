"""Who could be taken, kept ready before anybody must be: the census, its ranking, the looks at its leaders. Pure.

What it knows: how fresh each of these is, and how fresh it has to be for a decision. What it refuses to know: when a
victim is due (``watcher``), and who is a good one (``policy.ranking``).

How it works. While all is calm a part of the census is read now and then. Near a threshold its front is read often, its
leaders are looked at and their profiles read. For a decision the front is read, memory that went and that nobody in the
front took has everybody read, and the leaders are read exactly. So a decision costs milliseconds with 10,000 processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from oomreaper.model.decision import Standing
from oomreaper.model.plan import KillUnit
from oomreaper.policy.ranking import Chooser, Context, Ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from oomreaper.model.decision import RankedProcess
    from oomreaper.model.identity import Identity
    from oomreaper.model.plan import Plan
    from oomreaper.model.sample import ProcessSample, Profile, ScopeSample
    from oomreaper.policy.protection import Ourselves
    from oomreaper.watch.mind.scouts import Scouts

_MS = 1_000_000
_SECOND = 1_000 * _MS
# How many candidates are kept looked at, and how often their order is made anew while a threshold is near; and when it
# is about to be crossed, so that also who was born 100 ms ago is looked at before: the look takes 4 ms (2026-11).
_AHEAD = 3
_AHEAD_EVERY_NS = 250 * _MS
_LAST_AHEAD_EVERY_NS = 20 * _MS
# How many processes are read exactly in the moment of a decision, and how many of the largest are ranked for it. Who
# comes first only after that is read too, so many times at most.
_EXACT = 16
_EXACT_ROUNDS = 4
_LARGEST = 64
# While all is calm: how often a part of the census is brought up to date, and how many processes at a time. 64 every
# 5 s took 0.19 % of a core (2026-11), which is twice what the whole watcher may take; 16 every 10 s took 0.025, and the
# profiles asked for by it as much. Near a threshold, from 2 s before it on, it is 20 ms: only growth is told coarsely.
_CALM_EVERY_NS = 30 * _SECOND
_CALM_BUDGET = 16
# Near a threshold: a look at a front of 128 costs 0.7 ms, each of the others 30 us. With 256 of them a look took 9 ms
# (2026-11), in which nothing else was seen. Who grows unseen meanwhile is found by the sweep of a decision.
_NEAR_EVERY_NS = 20 * _MS
_NEAR_BUDGET = 32
# When the best victim holds less than this share of what is used, everybody is ranked and not only the largest.
_ACCOUNTS_FOR_IT = 0.1
# How many explain shows.
_SHOWN = 128
# How long a decision waits for the profile of somebody who was not known before; it takes 0.2 ms. One whose command
# line cannot be read is taken for protected where a never rule asks for it (policy.ranking).
_PROFILE_WAIT_NS = 20 * _MS
_AWAITED = 256
# A batch of profiles is one job of a worker.
_PROFILES = 32


class Census(Protocol):
    """Who is in a scope, and how big."""

    def look(self, now_ns: int, *, budget: int, is_swap_used: bool = False) -> None:
        """Bring a part of it up to date."""

    def sweep(self, now_ns: int, *, is_swap_used: bool = False) -> None:
        """Bring all of it up to date."""

    def refresh(self, identities: Iterable[Identity], now_ns: int, *, is_swap_used: bool = False) -> None:
        """Read these exactly."""

    def processes(self, *, largest: int | None = None) -> list[ProcessSample]:
        """Who is there."""

    def find(self, identity: Identity) -> ProcessSample | None:
        """One life; None when it is not known, or not any more."""

    def unseen_growth_bytes(self, fall_bytes: int) -> int:
        """How much of a fall of the available memory nobody's growth explains."""

    def without_profile(self, limit: int) -> list[Identity]:
        """Large ones of whom no profile is known."""

    def set_profile(self, identity: Identity, profile: Profile) -> None:
        """What is known of one."""


class People(Protocol):
    """Who there is."""

    def census(self, scope: str) -> Census:
        """Who is in a scope; made when it is asked for first."""

    def has_census(self, scope: str) -> bool:
        """Whether one was made."""

    def drop_census(self, scope: str) -> None:
        """It is not needed for now."""

    def profile(self, lives: tuple[Identity, ...], now_ns: int) -> None:
        """Have profiles read; they come back by ``Candidates.on_profiled``."""

    def pids_of(self, group: str) -> list[int]:
        """Who is in a control group and below it."""

    def has_served(self, identity: Identity) -> bool:
        """Whether the reaper served this life before."""


class _Scope:
    """How fresh things are in one scope."""

    __slots__ = ("ahead_ns", "available_bytes", "census_ns", "unseen_bytes")

    def __init__(self) -> None:
        self.ahead_ns: int | None = None
        self.census_ns: int | None = None
        self.available_bytes: int | None = None  # at the last look into the census
        self.unseen_bytes = 0  # memory that went since everybody was read, and that nobody was seen to take


class Candidates:
    """The candidates of all scopes.

    Args:
        plan: Whom to choose.
        people: Who there is.
        scouts: Looks at leaders ahead of need.
        is_hunted: Whether somebody is being taken already.
        ourselves: Tells who must never be a victim, as of now.
        may_signal_uid: None: we may signal anybody; else only processes of that user.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        people: People,
        scouts: Scouts,
        is_hunted: Callable[[Identity], bool],
        ourselves: Callable[[], Ourselves],
        may_signal_uid: int | None,
    ) -> None:
        self.chooser = Chooser(plan.victims)
        self._people = people
        self._scouts = scouts
        self._is_hunted = is_hunted
        self._ourselves = ourselves
        self._may_signal_uid = may_signal_uid
        self._scopes: dict[str, _Scope] = {}
        self._aside: dict[Identity, int] = {}  # until when
        self._awaited: dict[Identity, int] = {}  # until when its profile is waited for

    def adopt(self, plan: Plan) -> None:
        """Choose by another plan from now on."""
        self.chooser = Chooser(plan.victims)

    def set_aside(self, identity: Identity, until_ns: int) -> None:
        """Do not choose this one for a while."""
        self._aside[identity] = until_ns

    def forget_scope(self, scope: str) -> None:
        """A group has gone, or is calm: who is in it is not followed any more."""
        self._scopes.pop(scope, None)
        self._people.drop_census(scope)

    def on_profiled(self, profiled: Sequence[tuple[Identity, Profile | None]]) -> None:
        """Profiles have been read."""
        for scope in self._scopes:
            if profiled and self._people.has_census(scope):
                census = self._people.census(scope)
                for identity, profile in profiled:
                    if profile is not None:
                        census.set_profile(identity, profile)

    # -- ahead of need -------------------------------------------------------------------------------------

    def keep_ready(self, sample: ScopeSample, now_ns: int, *, is_near: bool, is_imminent: bool = False) -> None:
        """Bring the census up to date as far as it is due; near a threshold the leading candidates, too.

        ``is_imminent``: it is about to be crossed.
        """
        state, census = self._open(sample.scope)
        if not is_near:
            self._scouts.want((), now_ns)  # who was looked at in the last shortage is let go of
        every_ns = _NEAR_EVERY_NS if is_near else _CALM_EVERY_NS
        if state.census_ns is None:
            _sweep(state, census, sample, now_ns)
        elif now_ns - state.census_ns >= every_ns:
            _look(state, census, sample, now_ns, budget=_NEAR_BUDGET if is_near else _CALM_BUDGET)
        else:
            return
        if self.chooser.needs_profile:
            lives = census.without_profile(_PROFILES)
            if lives:
                self._people.profile(tuple(lives), now_ns)
        ahead_every_ns = _LAST_AHEAD_EVERY_NS if is_imminent else _AHEAD_EVERY_NS
        if is_near and (state.ahead_ns is None or now_ns - state.ahead_ns >= ahead_every_ns):
            state.ahead_ns = now_ns
            ranking = self._rank(sample, census.processes(largest=_LARGEST))
            self._scouts.want(_killable(ranking)[:_AHEAD], now_ns)

    # -- deciding ------------------------------------------------------------------------------------------

    def decide(self, sample: ScopeSample, now_ns: int) -> Ranking:
        """The ranking to take a victim by: the front as it is now, its leaders read exactly."""
        state, census = self._open(sample.scope)
        if state.census_ns is None:
            _sweep(state, census, sample, now_ns)
        elif state.census_ns != now_ns:
            _look(state, census, sample, now_ns, budget=0)
        largest: int | None = _LARGEST
        ranking = self._rank(sample, census.processes(largest=largest), limit=_EXACT)
        best_bytes = ranking.best.process.gain_bytes if ranking.best is not None else 0
        if state.unseen_bytes > best_bytes:
            _sweep(state, census, sample, now_ns)
            largest = None
        elif best_bytes < _ACCOUNTS_FOR_IT * (sample.total_bytes - sample.available_bytes):
            largest = None  # many small ones together: a fork bomb, say
        if largest is None:
            ranking = self._rank(sample, census.processes(), limit=_EXACT)
        exact: set[Identity] = set()
        for _ in range(_EXACT_ROUNDS):
            unread = [identity for identity in _killable(ranking)[:_EXACT] if identity not in exact]
            if not unread or (exact and ranking.best is not None and ranking.best.process.identity in exact):
                break
            census.refresh(unread, now_ns, is_swap_used=_is_swap_used(sample))
            exact.update(unread)
            ranking = self._rank(sample, census.processes(largest=largest), limit=_EXACT)
        return ranking

    def judge_again(self, sample: ScopeSample, identity: Identity, now_ns: int) -> RankedProcess | None:
        """How one who is being taken already stands by himself, read anew; None when nothing is known of him."""
        if not self._people.has_census(sample.scope):
            return None
        census = self._people.census(sample.scope)
        census.refresh((identity,), now_ns, is_swap_used=_is_swap_used(sample))
        process = census.find(identity)
        if process is None:
            return None
        context = self._context(sample)._replace(is_set_aside=self._people.has_served)
        ranked = self.chooser.rank((process,), context, limit=1).ranked
        return ranked[0] if ranked else None

    def awaits_profile(self, best: RankedProcess, now_ns: int) -> bool:
        """Whether the best victim's profile, on which preferences rest, is still to come; it is awaited for 20 ms."""
        identity = best.process.identity
        if best.process.profile is not None or not self.chooser.needs_profile:
            return False
        until_ns = self._awaited.get(identity)
        if until_ns is None:
            if len(self._awaited) >= _AWAITED:
                self._awaited.clear()
            until_ns = self._awaited[identity] = now_ns + _PROFILE_WAIT_NS
            self._people.profile((identity,), now_ns)
        return now_ns < until_ns

    def find_members(self, sample: ScopeSample, best: RankedProcess) -> tuple[tuple[ProcessSample, ...], bool]:
        """Who dies with the best victim, itself included, and whether that is all of its unit."""
        if best.unit is KillUnit.PROCESS:
            return (best.process,), True
        everyone = self._people.census(sample.scope).processes()
        if best.unit is not KillUnit.CGROUP:
            members = self.chooser.members_of(best, everyone)
            return members, _is_whole(best, members, everyone)
        pids = set(self._people.pids_of(best.unit_key))
        inside = [process for process in everyone if process.identity.pid in pids]
        ranking = self._rank(sample, inside, limit=max(1, len(inside)))
        members = tuple(
            ranked.process
            for ranked in ranking.ranked
            if ranked.standing is not Standing.PROTECTED
            and not (ranked.standing is Standing.AVOIDED and ranked.process.profile is None)
        )
        return members or (best.process,), len(members) == len(pids)

    def find_coldest(self, sample: ScopeSample) -> Identity | None:
        """The largest that may be killed and does not grow: its memory is likely the coldest."""
        ranking = self._rank(sample, self._people.census(sample.scope).processes(largest=_LARGEST))
        killable = [ranked.process for ranked in ranking.ranked if ranked.standing <= Standing.AVOIDED]
        cold = [process for process in killable if not process.growth_bytes]
        return max(cold, key=lambda process: process.gain_bytes).identity if cold else None

    def rank_now(self, sample: ScopeSample, now_ns: int) -> Ranking:
        """Everybody's place in a scope, as of now; for explain."""
        census = self._people.census(sample.scope)
        census.sweep(now_ns, is_swap_used=_is_swap_used(sample))
        return self._rank(sample, census.processes(), limit=_SHOWN)

    def _open(self, scope: str) -> tuple[_Scope, Census]:
        state = self._scopes.setdefault(scope, _Scope())
        if not self._people.has_census(scope):  # it is new, or had to make room: nobody was read yet
            state.census_ns = None
        return state, self._people.census(scope)

    def _rank(self, sample: ScopeSample, processes: list[ProcessSample], *, limit: int = 64) -> Ranking:
        now_ns = sample.monotonic_ns
        for identity, until_ns in list(self._aside.items()):
            if until_ns <= now_ns:
                del self._aside[identity]
        return self.chooser.rank(processes, self._context(sample), limit=limit)

    def _context(self, sample: ScopeSample) -> Context:
        return Context(
            scope=sample.scope,
            total_bytes=sample.total_bytes,
            used_bytes=max(0, sample.total_bytes - sample.available_bytes),
            shmem_bytes=sample.shmem_bytes,
            ourselves=self._ourselves(),
            may_signal_uid=self._may_signal_uid,
            is_set_aside=self._is_set_aside,
        )

    def _is_set_aside(self, identity: Identity) -> bool:
        return identity in self._aside or self._is_hunted(identity) or self._people.has_served(identity)


def why_nobody(ranking: Ranking) -> tuple[str, str]:
    """When a ranking has no best: what tells this reason from others, and the reason in words."""
    if not ranking.considered:
        return "nobody", "there is nobody to choose from"
    if ranking.protected == ranking.considered:
        return "protected", f"all {ranking.considered} processes are protected; see oomreaper explain"
    return "too small", "nobody that may be killed would give back enough to be worth it; see oomreaper explain"


def _sweep(state: _Scope, census: Census, sample: ScopeSample, now_ns: int) -> None:
    census.sweep(now_ns, is_swap_used=_is_swap_used(sample))
    state.unseen_bytes = 0
    state.census_ns = now_ns
    state.available_bytes = sample.available_bytes


def _look(state: _Scope, census: Census, sample: ScopeSample, now_ns: int, *, budget: int) -> None:
    """Read a part, and add up what went unseen: each look explains only what went since the one before."""
    census.look(now_ns, budget=budget, is_swap_used=_is_swap_used(sample))
    before_bytes = sample.available_bytes if state.available_bytes is None else state.available_bytes
    fall_bytes = before_bytes - sample.available_bytes
    if fall_bytes >= 0:
        state.unseen_bytes += census.unseen_growth_bytes(fall_bytes)
    else:
        state.unseen_bytes = max(0, state.unseen_bytes + fall_bytes)
    state.census_ns = now_ns
    state.available_bytes = sample.available_bytes


def _killable(ranking: Ranking) -> list[Identity]:
    return [ranked.process.identity for ranked in ranking.ranked if ranked.standing <= Standing.AVOIDED]


def _is_swap_used(sample: ScopeSample) -> bool:
    return sample.swap_free_bytes < sample.swap_total_bytes


def _is_whole(best: RankedProcess, members: Sequence[ProcessSample], everyone: Iterable[ProcessSample]) -> bool:
    """Whether all of a unit is to die, from its oldest member on: nobody of it is protected."""
    lives = {member.identity for member in members}
    oldest = min(life.start_time_ticks for life in lives)
    for process in everyone:
        if process.identity in lives or process.identity.start_time_ticks < oldest:
            continue
        match best.unit:
            case KillUnit.GROUP if str(process.process_group) == best.unit_key:
                return False
            case KillUnit.SESSION if str(process.session) == best.unit_key:
                return False
            case _:
                pass
    return True
