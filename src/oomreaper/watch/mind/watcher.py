"""The watcher's mind: it looks at each scope in time, goes up the ladder of its rules, and has victims taken. Pure.

What it knows: when to look next, which step is due, who is the best victim, whom it waits for. What it refuses to know:
what a scope is read from, how time passes, what a process is. The same object runs under the daemon's loop, in the
tests and in the simulator: everything it stands on comes in through seams (``Machine``, ``Actor``, ``Handles``).

How it works:

1. ``look`` reads one scope, shows the numbers to the ladder, and does what is due. Whoever drives it calls ``look``
   when the kernel gives a hint (a hint is no more than that: the numbers decide) and when ``next_look_ns`` is reached.
2. The nearer a scope is to a threshold, the sooner the next look, and the more is kept ready (``candidates``).
3. One victim at a time in a scope; a second only below the critical floor, and when the first one's memory does not
   come. A victim of a group is one of the machine's too, once it is being reaped: that memory is awaited there as well.
4. When a victim has settled, the numbers are read again before anything else is decided; also before one that had to
   wait for a look or a hook is signalled.
5. What is not done is told, too: once for each reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from oomreaper.model.decision import Standing
from oomreaper.model.outcome import OutcomeKind
from oomreaper.model.plan import MACHINE, KillUnit, StepKind
from oomreaper.policy import belonging, pacing
from oomreaper.policy.explain import ScopeView, VictimView
from oomreaper.policy.ladder import Ladder
from oomreaper.policy.ranking import Ranking
from oomreaper.watch.mind.candidates import why_nobody
from oomreaper.watch.mind.hunt import Ending, Hunt, Objection, State

if TYPE_CHECKING:
    from oomreaper.model.decision import DueStep
    from oomreaper.model.identity import Identity
    from oomreaper.model.plan import Plan
    from oomreaper.model.sample import ScopeSample
    from oomreaper.watch.mind.candidates import Candidates
    from oomreaper.watch.mind.hunter import Hunter, Voice

_MS = 1_000_000
_SECOND = 1_000 * _MS
# After a kernel OOM kill its victim's memory is awaited before we take one of our own (nohang's pause is the same).
_KERNEL_KILL_PAUSE_NS = 1 * _SECOND
# Looks that are at least so far ahead are moved to the last multiple of it before they are due; the first that fits.
_TICKS_NS = (1 * _SECOND, 500 * _MS)
# A threshold that may be crossed within this time, by the pace of the looks, is about to be.
_IMMINENT_NS = 50 * _MS
# Somebody who could not be taken (protected after all, no right to signal him) is left aside for so long.
_SET_ASIDE_NS = 10 * _SECOND
# Somebody who could not be looked at just now (no descriptor, no worker) for so long: it says nothing about him.
_UNSEEN_ASIDE_NS = 500 * _MS
# Numbers that cannot be read are asked for again so soon: to be blind is worse than to be busy.
_BLIND_NS = 100 * _MS
# For how long a decision may wait for profiles in all, when one unknown after the other comes to stand first.
_PROFILES_WAIT_NS = 100 * _MS
# How many reasons for doing nothing are remembered as told; a shortage that lasts for days brings ever new ones.
_TOLD = 256
# Below the critical floor: how long the first victim has before a second is taken, if its memory does not come.
_SECOND_VICTIM_NS = 200 * _MS
# Memory counts as coming back when this share of the scope has returned since the strike.
_COMING_BACK = 0.005
# How many candidates may fall through in one look before the next look is awaited.
_TRIES = 8
# The share of a scope's memory that the kernel is asked to move out in one reclaim step.
_RECLAIMED = 0.05
# These outcomes say that nobody was signalled: to take the same one again would be no different.
_NOTHING_DONE = (OutcomeKind.REFUSED, OutcomeKind.GONE)
# Explain shows pressure over so long.
_SHOWN_WINDOW_NS = 10 * _SECOND


class Machine(Protocol):
    """What there is to look at."""

    def scopes(self) -> list[str]:
        """The machine, and each group with a limit of its own."""

    def read(self, scope: str, now_ns: int) -> ScopeSample | None:
        """Its numbers; None when it has gone, or cannot be read now."""

    def reclaim(self, scope: str, identity: Identity | None, wanted_bytes: int, now_ns: int) -> None:
        """Have the kernel move cold memory out of a scope as a whole, or where that cannot be, of this process."""

    def forget(self, identity: Identity) -> None:
        """That life is over."""


class _Scope:
    """What is remembered of a scope between looks."""

    __slots__ = (
        "awaiting_since_ns",
        "incident",
        "is_wanted",
        "last_sample",
        "next_look_ns",
        "oom_kills",
        "paused_until_ns",
        "recheck_ns",
        "told",
    )

    def __init__(self) -> None:
        self.next_look_ns = 0
        self.oom_kills: int | None = None
        self.paused_until_ns = 0
        self.recheck_ns: int | None = None  # a decision waits for something that takes a moment
        self.awaiting_since_ns: int | None = None  # since when it waits for profiles
        self.is_wanted = False  # a hunt has ended, and it was not looked at since
        self.incident: str | None = None
        self.told: set[str] = set()
        self.last_sample: ScopeSample | None = None


class Watcher:
    """Watches. See the module.

    Args:
        plan: What to do when.
        machine: What to look at.
        candidates: Who could be taken.
        hunter: Takes victims.
        voice: Tells.
        boot_tag: What makes incident ids of this run unlike those of others.
    """

    def __init__(
        self, plan: Plan, *, machine: Machine, candidates: Candidates, hunter: Hunter, voice: Voice, boot_tag: str
    ) -> None:
        self.plan = plan
        self.ladder = Ladder(plan.rules)
        self._candidates = candidates
        self._machine = machine
        self._hunter = hunter
        self._voice = voice
        self._boot_tag = boot_tag
        self._scopes: dict[str, _Scope] = {}
        self._incidents = 0
        self._elders: set[Identity] = set()  # open hunts that were begun by an earlier plan
        self.may_act = True  # False while the start warms up: numbers are read and candidates kept ready, no more
        self.looks = self.decisions = 0
        hunter.objector = self._find_objection

    # -- what the driver asks ------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When ``on_time`` must be called at the latest."""
        due = [state.next_look_ns for state in self._scopes.values()] or [0]  # nothing was looked at yet
        by_hunter = self._hunter.next_deadline_ns()
        if by_hunter is not None:
            due.append(by_hunter)
        return min(due, default=None)

    def on_time(self, now_ns: int) -> None:
        """Look where it is time to look; let the hunts go on."""
        self._hunter.on_time(now_ns)
        scopes = self._machine.scopes()
        for scope in self._scopes.keys() - scopes:
            self.forget_scope(scope)  # no rule looks at it any more: else its look would be due for ever
        for scope in scopes:
            state = self._scopes.get(scope)
            if state is None or state.next_look_ns <= now_ns:
                self.look(scope, now_ns)
        self.settle(now_ns)

    def views(self, now_ns: int) -> list[ScopeView]:
        """Each scope as it stands, the machine first; for explain."""
        views = []
        for scope in self._machine.scopes():
            state = self._scopes.get(scope)
            if state is None or state.last_sample is None:
                continue
            history = self.ladder.history(scope)
            views.append(
                ScopeView(
                    state.last_sample,
                    psi_some_percent=history.psi_share_percent(is_full=False, window_ns=_SHOWN_WINDOW_NS),
                    psi_full_percent=history.psi_share_percent(is_full=True, window_ns=_SHOWN_WINDOW_NS),
                    fall_bytes_per_second=history.fall_bytes_per_second(),
                    seconds_to_exhaustion=history.time_to_exhaustion_seconds(),
                    next_look_ms=max(0.0, (state.next_look_ns - now_ns) / _MS),
                )
            )
        return views

    def victims(self) -> list[VictimView]:
        """Who is being taken; for explain."""
        return [
            VictimView(hunt.identity, hunt.ranked.process.comm, hunt.started_ns, hunt.state.value)
            for hunt in self._hunter.open_hunts
        ]

    def kernel_kill_ns(self, now_ns: int) -> int | None:
        """When the kernel's killer killed somebody, while that memory is awaited; for explain."""
        until_ns = max((state.paused_until_ns for state in self._scopes.values()), default=0)
        return until_ns - _KERNEL_KILL_PAUSE_NS if until_ns > now_ns else None

    def rank_now(self, scope: str, now_ns: int) -> Ranking:
        """Everybody's place in a scope, as of now; for explain."""
        state = self._scopes.get(scope)
        if state is None or state.last_sample is None:
            return Ranking((), 0, 0, 0)
        return self._candidates.rank_now(state.last_sample, now_ns)

    def rehearse(self, now_ns: int) -> None:
        """Make a decision of which nothing comes; at the start, so that it is not made for the first time in need."""
        state = self._scopes.get(MACHINE)
        if state is None or state.last_sample is None:
            return
        best = self._candidates.decide(state.last_sample, now_ns).best
        if best is not None:
            self._candidates.find_members(state.last_sample, best)

    def adopt(self, plan: Plan) -> None:
        """Go on by a new plan. Open hunts go on as they began; the history of the numbers is begun anew."""
        self.plan = plan
        self.ladder = Ladder(plan.rules)
        self._candidates.adopt(plan)
        self._hunter.plan = plan
        self._elders = {hunt.identity for hunt in self._hunter.open_hunts}
        for state in self._scopes.values():
            state.next_look_ns = 0
            state.told.clear()

    def forget_scope(self, scope: str) -> None:
        """A group has gone."""
        self.ladder.forget(scope)
        self._scopes.pop(scope, None)
        self._candidates.forget_scope(scope)

    # -- what happens --------------------------------------------------------------------------------------

    def look(self, scope: str, now_ns: int) -> None:
        """Read a scope's numbers, and do what is due."""
        self._see_to_ended(now_ns)
        state = self._scopes.setdefault(scope, _Scope())
        state.is_wanted = False
        sample = self._machine.read(scope, now_ns)
        self.looks += 1
        if sample is None:
            state.next_look_ns = now_ns + _BLIND_NS
            if scope not in self._machine.scopes():
                self.forget_scope(scope)
            return
        state.last_sample = sample
        self.ladder.on_sample(sample)
        self._note_kernel_kills(state, sample, now_ns)
        state.recheck_ns = None
        outlook = pacing.foresee(self.ladder.history(scope), self.ladder.rules_of(scope), now_ns)
        is_imminent = outlook.next_look_ns - now_ns < _IMMINENT_NS and not self.ladder.is_active(scope)
        self._keep_ready(sample, now_ns, is_near=outlook.is_near, is_imminent=is_imminent)
        if self.may_act:
            if self.ladder.is_critical(scope, self.plan.critical):
                self._press_on(state, sample, now_ns)
            self._climb(state, sample, now_ns)
        at_ns = outlook.next_look_ns
        sooner = [at for at in (self.ladder.next_due_ns(now_ns, scope), state.recheck_ns) if at is not None]
        next_ns = max(now_ns + _MS, min([at_ns, *sooner])) if sooner else at_ns
        # Calm scopes are looked at in one go: each look that came alone would be a wake-up of its own.
        tick_ns = next((tick_ns for tick_ns in _TICKS_NS if next_ns - now_ns >= tick_ns), 1)
        state.next_look_ns = next_ns - next_ns % tick_ns

    def settle(self, now_ns: int) -> bool:
        """See to the hunts that have ended: the numbers are read again before anything else is decided.

        Whether there was anything to see to.
        """
        has_ended = False
        for _ in range(_TRIES):
            self._see_to_ended(now_ns)
            wanted = [scope for scope, state in self._scopes.items() if state.is_wanted]
            if not wanted:
                break
            has_ended = True
            for scope in wanted:
                self.look(scope, now_ns)
        return has_ended

    # -- one look ------------------------------------------------------------------------------------------

    def _see_to_ended(self, now_ns: int) -> None:
        for hunt in self._hunter.take_over():
            self._on_over(hunt, now_ns)
            for scope, state in self._scopes.items():
                if scope == hunt.scope or (state.incident is not None and _comes_back_to(scope, hunt)):
                    state.is_wanted = True
                    state.next_look_ns = now_ns

    def _press_on(self, state: _Scope, sample: ScopeSample, now_ns: int) -> None:
        """Below the critical floor: wait for no hook, and see whether the ladder must go on without its victim."""
        scope = sample.scope
        for hunt in self._hunter.hunts_in(scope):
            if hunt.state is State.HELD:
                self._hunter.hurry(hunt, now_ns)
        hunts = self._hunter.hunts_in(scope)
        if not hunts or self.ladder.due(scope, now_ns) is not None:
            return
        if self._find_obstacle(state, sample, hunts, is_urgent=True, now_ns=now_ns) is None:
            self.ladder.rewind(scope, now_ns, is_memory_back=False)  # a second victim is due, by newer numbers

    def _note_kernel_kills(self, state: _Scope, sample: ScopeSample, now_ns: int) -> None:
        before, state.oom_kills = state.oom_kills, sample.oom_kills
        if before is None or sample.oom_kills is None or sample.oom_kills <= before:
            return
        count = sample.oom_kills - before
        text = f"the kernel's own OOM killer has killed ({count})"
        # Groups that hit their limit again and again count here too: they must not keep us from acting for ever.
        if now_ns >= state.paused_until_ns + _KERNEL_KILL_PAUSE_NS or not state.paused_until_ns:
            state.paused_until_ns = now_ns + _KERNEL_KILL_PAUSE_NS
            text += "; its victim's memory is awaited for a second"
        self._voice.warning(text, scope=sample.scope, incident=state.incident, now_ns=now_ns)

    def _keep_ready(self, sample: ScopeSample, now_ns: int, *, is_near: bool, is_imminent: bool) -> None:
        """Keep candidates ready: always on the machine, in a group only near a threshold."""
        scope = sample.scope
        if is_near or scope == MACHINE:
            self._candidates.keep_ready(sample, now_ns, is_near=is_near, is_imminent=is_imminent)
        elif not self._hunter.hunts_in(scope):
            self._candidates.forget_scope(scope)  # costs nothing when nothing is kept

    def _climb(self, state: _Scope, sample: ScopeSample, now_ns: int) -> None:
        """Do what is due, until nothing is or it must wait."""
        scope = sample.scope
        for _ in range(_TRIES):
            due = self.ladder.due(scope, now_ns)
            if due is None:
                self._on_nothing_due(state, scope)
                return
            if state.incident is None:
                self._incidents += 1
                state.incident = f"{self._boot_tag}-{self._incidents}"
            match due.step.kind:
                case StepKind.WARN:
                    text = f"memory is getting short: {due.reason}"
                    self._voice.warning(text, scope=scope, incident=state.incident, now_ns=now_ns)
                    self.ladder.note_taken(due, now_ns)
                case StepKind.RECLAIM:
                    wanted_bytes = int(sample.total_bytes * _RECLAIMED)
                    self._machine.reclaim(scope, self._candidates.find_coldest(sample), wanted_bytes, now_ns)
                    self.ladder.note_taken(due, now_ns)
                case StepKind.TERMINATE | StepKind.KILL:
                    if not self._take(state, sample, due, now_ns):
                        return

    def _on_nothing_due(self, state: _Scope, scope: str) -> None:
        # Who was asked to end and whose memory is back already may still be on its way out: the hunt ends with it.
        is_over = not self.ladder.is_active(scope) and not self._hunter.hunts_in(scope)
        if is_over and state.incident is not None:
            state.incident = None
            state.told.clear()

    # -- taking a victim -----------------------------------------------------------------------------------

    def _take(self, state: _Scope, sample: ScopeSample, due: DueStep, now_ns: int) -> bool:
        """Take a victim for a step; whether there may be more to do at once."""
        scope = sample.scope
        hunts = self._hunter.hunts_in(scope)
        asked = next((hunt for hunt in hunts if hunt.state is State.ASKED), None)
        if asked is not None and due.step.kind is StepKind.KILL:
            self.ladder.note_taken(due, now_ns)
            objection = self._judge_again(sample, asked, now_ns)
            if objection is None:
                self._hunter.escalate(asked, due, now_ns)
            else:
                self._hunter.drop(asked, objection, now_ns)
            return False
        if asked is not None and due.step.kind is StepKind.TERMINATE:
            # Memory recovered after it was asked, and is short again before it has gone: that it was asked still holds.
            self.ladder.note_taken(due, now_ns)
            return True
        is_urgent = self.ladder.is_critical(scope, self.plan.critical) is True
        obstacle = self._find_obstacle(state, sample, hunts, is_urgent=is_urgent, now_ns=now_ns)
        if obstacle is not None:
            self._tell_once(state, scope, *obstacle, now_ns)
            return False
        ranking = self._candidates.decide(sample, now_ns)
        best = ranking.best
        if best is None:
            self._tell_once(state, scope, *why_nobody(ranking), now_ns)
            return False
        if self._candidates.awaits_profile(best, now_ns):
            since_ns = state.awaiting_since_ns = state.awaiting_since_ns or now_ns
            if now_ns - since_ns < _PROFILES_WAIT_NS:
                state.recheck_ns = now_ns + _MS
                return False
        state.awaiting_since_ns = None
        self.decisions += 1
        self.ladder.note_taken(due, now_ns)
        members, is_whole = self._candidates.find_members(sample, best)
        assert state.incident is not None
        self._hunter.start(
            due,
            best,
            members,
            incident=state.incident,
            available_bytes=sample.available_bytes,
            is_urgent=is_urgent,
            is_whole=is_whole,
            now_ns=now_ns,
        )
        return False

    def _find_obstacle(
        self, state: _Scope, sample: ScopeSample, hunts: list[Hunt], *, is_urgent: bool, now_ns: int
    ) -> tuple[str, str] | None:
        """Why no victim can be taken now: what tells this reason from others, and the reason."""
        paused_until_ns = state.paused_until_ns
        if is_urgent:
            paused_until_ns += _SECOND_VICTIM_NS - _KERNEL_KILL_PAUSE_NS
        if now_ns < paused_until_ns:
            return "kernel", "the kernel has just killed somebody: that memory is awaited first"
        for hunt in self._hunter.open_hunts:
            if hunt.scope == sample.scope or not _comes_back_to(sample.scope, hunt):
                continue
            if hunt.due.step.kind is not StepKind.KILL:
                continue  # who was only asked may take his time
            worth_bytes = self.plan.victims.smallest_percent / 100.0 * sample.total_bytes
            has_time = hunt.killed_ns is None or now_ns - hunt.killed_ns < _SECOND_VICTIM_NS
            if hunt.ranked.process.gain_bytes >= worth_bytes and (has_time or not is_urgent):
                return _awaits(hunt)
        if not hunts:
            return None
        waited_for = _awaits(hunts[-1])
        kills_ns = [hunt.killed_ns for hunt in hunts if hunt.killed_ns is not None]
        if not is_urgent or len(kills_ns) < len(hunts):
            return waited_for  # whose signal is not out yet costs no second one: the crew sends it, or gives up in time
        lowest_bytes = min(hunt.available_bytes for hunt in hunts)
        is_coming = sample.available_bytes > lowest_bytes + _COMING_BACK * sample.total_bytes
        return waited_for if is_coming or now_ns - max(kills_ns) < _SECOND_VICTIM_NS else None

    def _find_objection(self, hunt: Hunt, now_ns: int) -> Objection | None:
        """Why a hunt that had to wait is not gone on with: the numbers are read once more."""
        scope = hunt.scope
        if scope not in self._scopes or scope not in self._machine.scopes():
            return Objection(Ending.NEEDLESS, "its control group has gone, or is not watched any more")
        sample = self._machine.read(scope, now_ns)
        if sample is None:
            return None  # we are blind, and what was decided stands
        self.ladder.on_sample(sample)
        if hunt.identity not in self._elders and not self._is_active(hunt):
            return Objection(Ending.NEEDLESS, "memory is not short any more")
        return self._judge_again(sample, hunt, now_ns)

    def _judge_again(self, sample: ScopeSample, hunt: Hunt, now_ns: int) -> Objection | None:
        """What speaks against one who was chosen a while ago, by what it is now."""
        ranked = self._candidates.judge_again(sample, hunt.identity, now_ns)
        if ranked is None or ranked.process.is_dead or not ranked.process.gain_bytes:
            return None  # it has gone, or is going (then it shows no memory at all): its exit tells how it ended
        if ranked.standing is Standing.PROTECTED:
            return Objection(Ending.WITHDRAWN, ranked.reasons[0])
        if ranked.standing is Standing.TOO_SMALL and hunt.ranked.unit is KillUnit.PROCESS:
            return Objection(Ending.NEEDLESS, "it has given up what it held, and lives on")
        return None

    def _is_active(self, hunt: Hunt) -> bool:
        """Whether the rule that it was begun for still asks for it."""
        return self.ladder.is_active(hunt.scope) and any(
            reading.is_active and reading.scope == hunt.scope and reading.rule == hunt.due.rule
            for reading in self.ladder.readings()
        )

    def _on_over(self, hunt: Hunt, now_ns: int) -> None:
        scope = hunt.scope
        if hunt.outcome is not None and (hunt.has_exited or not hunt.outcome.still_dying):
            self._machine.forget(hunt.identity)
        if hunt.follows:
            return  # the ladder waits for the one who was chosen
        match hunt.ending:
            case Ending.WITHDRAWN:
                self._candidates.set_aside(hunt.identity, now_ns + _SET_ASIDE_NS)
            case Ending.SPARED:
                self._candidates.set_aside(hunt.identity, now_ns + self.plan.timeout_ns)
            case Ending.SETTLED if hunt.outcome is not None and hunt.outcome.kind is None:
                self.ladder.rest(scope)  # a dry run: nothing was done, and to say it again would be no news
                return
            case Ending.SETTLED if hunt.outcome is not None and hunt.outcome.kind in _NOTHING_DONE:
                self._candidates.set_aside(hunt.identity, now_ns + _SET_ASIDE_NS)
            case Ending.UNSEEN:
                self._candidates.set_aside(hunt.identity, now_ns + _UNSEEN_ASIDE_NS)
                state = self._scopes.get(scope)
                if state is not None:
                    self._tell_once(state, scope, f"unseen {hunt.identity}", hunt.reason, now_ns, hunt=hunt)
            case _:
                pass
        self.ladder.rewind(scope, now_ns, is_memory_back=_is_memory_back(hunt))

    def _tell_once(
        self, state: _Scope, scope: str, reason: str, text: str, now_ns: int, *, hunt: Hunt | None = None
    ) -> None:
        """``reason`` is what must not be told twice; the text may hold numbers that change."""
        if reason in state.told:
            return
        if len(state.told) >= _TOLD:
            state.told.clear()
        state.told.add(reason)
        self._voice.skipped(text, scope=scope, incident=state.incident, hunt=hunt, now_ns=now_ns)


def _comes_back_to(scope: str, hunt: Hunt) -> bool:
    """Whether what a victim holds is memory of this scope as well."""
    if scope in (MACHINE, hunt.scope):
        return True
    profile = hunt.ranked.process.profile
    return profile is not None and profile.cgroup is not None and belonging.is_within(profile.cgroup, scope)


def _awaits(hunt: Hunt) -> tuple[str, str]:
    return f"awaits {hunt.identity}", f"process {hunt.identity.pid} {hunt.state.value}: its memory is awaited first"


def _is_memory_back(hunt: Hunt) -> bool:
    if hunt.ending is Ending.LEFT:
        return True
    return hunt.outcome is not None and hunt.outcome.kind is not None and hunt.outcome.kind.is_success
