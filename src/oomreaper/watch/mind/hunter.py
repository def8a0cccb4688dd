"""How a victim is taken: looked at, announced, held for the hook, asked or struck, followed until its memory is back.

What it knows: hunts, and what each waits for. What it refuses to know: when a victim is due and who it should be (the
watcher's and the policy's part), and how memory is freed (the crew's). It never waits: who drives it calls

* ``on_scouted``, ``on_exit``, ``on_acknowledged`` and ``on_event`` when such a thing happens,
* ``on_time`` no later than ``next_deadline_ns`` says,
* and collects ``take_over`` (the hunts that have ended).

Every victim is announced before its signal, and nothing is read of it after the signal. Who was announced gets a record
of how it ended. A hunt that had to wait (for a look, for the hook) asks once more before it acts: see ``objector``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from oomreaper.model.event import EventKind
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.plan import KillUnit, StepKind
from oomreaper.policy import protection
from oomreaper.reaper.handoff import Entry
from oomreaper.watch.mind.hunt import Ending, Hunt, Move, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.decision import DueStep, RankedProcess
    from oomreaper.model.event import Event
    from oomreaper.model.identity import Identity
    from oomreaper.model.plan import Plan
    from oomreaper.model.process import Scouting
    from oomreaper.model.sample import ProcessSample
    from oomreaper.policy.protection import Ourselves
    from oomreaper.watch.mind.hunt import Objection
    from oomreaper.watch.mind.scouts import Looked, Scouts

_MS = 1_000_000
# A look that brought nothing in this time: the candidate is passed over. The crew's own limit for a look is 1 s.
_LOOK_LIMIT_NS = 1_500 * _MS
# How a hook ended that was ended at its deadline (SIGKILL), and one that could not be started (as of a shell).
_OVERRUN, _NOT_STARTED = -9, 127
# How often a look that was lost is taken up again, within that time: where workers die of it a new one takes 5 ms, so
# that this is half a second; where it fails at once (no memory) it is 100 messages there and back, some 30 ms in all.
_LOOKS = 100
# Who was asked to end is not let off before the ladder's kill step is due, and has so much time for that to be seen.
_ESCALATION_GRACE_NS = 2_000 * _MS
# How many of a unit are reaped as victims of their own, beside the one that was chosen: the largest. The others are
# signalled all the same; what they hold comes back when they exit.
_FOLLOWERS = 4
# These say that nobody was signalled (None: a dry run).
_NOTHING_DONE = (None, OutcomeKind.REFUSED, OutcomeKind.GONE)
# Victims that have settled and not yet gone, whose pidfd is kept so that their mark can be cleared when they have.
_GRAVES = 64


class Actor(Protocol):
    """Who acts on a decision. There are two: one does it, the other (``--dry-run``) says that it would have."""

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:
        """Ask a process to end (SIGTERM); 0, or the errno. It tells by an Event what it did."""

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """Have it killed and reaped; its Event(SETTLED) follows unless the answer is ALREADY_IN or FULL."""

    def kill_unit(
        self, ranked: RankedProcess, others: tuple[ProcessSample, ...], *, scope: str, is_whole: bool, now_ns: int
    ) -> None:
        """Signal those who die with a victim of ``scope``; ``is_whole``: nobody of its unit is protected."""


class Handles(Protocol):
    """Who opens and closes pidfds, and watches those that are to be watched for the end of their process."""

    def close(self, handle: int) -> None:
        """Close one."""

    def watch(self, handle: int) -> None:
        """Call ``on_exit`` when its process has ended."""

    def open_life(self, identity: Identity) -> int | None:
        """A pidfd of this very life; None when it is over, or cannot be had."""


class Onlooker(Protocol):
    """Who reads the numbers of processes."""

    def leave_alone(self, identity: Identity) -> None:
        """It is being reaped: whoever read its files now might have to tear its memory down."""

    def readmit(self, identity: Identity) -> None:
        """It is not being reaped after all."""


class Voice(Protocol):
    """Who tells what happens."""

    def announce(self, hunt: Hunt, *, signal_name: str, hook: str | None, now_ns: int) -> None:
        """A victim is about to be signalled."""

    def killed(self, hunt: Hunt, *, signal_name: str, now_ns: int) -> None:
        """The signal has been sent."""

    def settled(self, hunt: Hunt, outcome: Outcome, now_ns: int) -> None:
        """It ended."""

    def skipped(self, text: str, *, scope: str, incident: str | None, hunt: Hunt | None, now_ns: int) -> None:
        """Nothing was done, and why."""

    def warning(self, text: str, *, scope: str | None, incident: str | None, now_ns: int) -> None:
        """Something that people should know."""


class Hunter:
    """Takes victims.

    Args:
        plan: Hooks and limits are read from it.
        actor: Who acts.
        scouts: Who looks at candidates.
        handles: Who keeps the pidfds.
        onlooker: Who must not read a victim.
        voice: Who tells.
        ourselves: Tells who must never be a victim, as of now.

    ``objector`` is set by whoever knows the numbers: it says why a hunt that had to wait is not gone on with.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        actor: Actor,
        scouts: Scouts,
        handles: Handles,
        onlooker: Onlooker,
        voice: Voice,
        ourselves: Callable[[], Ourselves],
    ) -> None:
        self.plan = plan
        self.objector: Callable[[Hunt, int], Objection | None] = _object_to_nothing
        self._ourselves = ourselves
        self._onlooker = onlooker
        self._actor = actor
        self._scouts = scouts
        self._handles = handles
        self._voice = voice
        self._open: dict[Identity, Hunt] = {}
        self._over: list[Hunt] = []
        self._graves: dict[int, Identity] = {}  # by pidfd
        self._hooks = 0

    # -- what the driver asks ------------------------------------------------------------------------------

    def hunts_in(self, scope: str) -> list[Hunt]:
        """The open hunts of a scope."""
        return [hunt for hunt in self._open.values() if hunt.scope == scope]

    @property
    def open_hunts(self) -> tuple[Hunt, ...]:
        """All open hunts."""
        return tuple(self._open.values())

    def take_over(self) -> list[Hunt]:
        """The hunts that have ended since the last call."""
        taken, self._over = self._over, []
        return taken

    def next_deadline_ns(self) -> int | None:
        """When ``on_time`` must be called at the latest."""
        return min((hunt.deadline_ns for hunt in self._open.values() if hunt.deadline_ns is not None), default=None)

    def is_hunted(self, identity: Identity) -> bool:
        """Whether this life is the victim of an open hunt; asked of every process that is ranked."""
        return identity in self._open

    # -- taking --------------------------------------------------------------------------------------------

    def start(
        self,
        due: DueStep,
        ranked: RankedProcess,
        members: tuple[ProcessSample, ...],
        *,
        incident: str,
        available_bytes: int,
        is_urgent: bool,
        is_whole: bool,
        now_ns: int,
    ) -> Hunt:
        """Go after a process that was chosen.

        ``is_urgent``: memory is below the critical floor, no hook is waited for. ``is_whole``: nobody of its unit is
        protected, so that all of it may die, who is born into it meanwhile included.
        """
        hunt = Hunt(due, ranked, members, incident=incident, available_bytes=available_bytes, now_ns=now_ns)
        hunt.is_urgent = is_urgent
        hunt.is_whole = is_whole
        self._begin(hunt, now_ns)
        return hunt

    def escalate(self, hunt: Hunt, due: DueStep, now_ns: int) -> None:
        """It was asked to end, and is to be killed now."""
        hunt.due = due
        self._strike(hunt, now_ns)

    def hurry(self, hunt: Hunt, now_ns: int) -> None:
        """Memory is nearly gone: the pre-kill hook is not waited for any longer."""
        hunt.is_urgent = True
        self._end_wait(hunt, now_ns)

    def drop(self, hunt: Hunt, objection: Objection, now_ns: int) -> None:
        """Do not go on with it."""
        self._let_go(hunt, objection.ending, objection.reason, now_ns)

    # -- what happens --------------------------------------------------------------------------------------

    def on_scouted(self, identity: Identity, now_ns: int) -> None:
        """A look at a candidate is finished."""
        hunt = self._open.get(identity)
        if hunt is not None and hunt.state is State.SCOUTED:
            self._go_on(hunt, now_ns, has_waited=True)

    def on_acknowledged(self, hook: str, now_ns: int, *, status: int | None = 0) -> None:
        """The pre-kill hook of that id has ended; ``status``: 0, well; negative, by that signal; None, not run."""
        for hunt in self.open_hunts:
            if hunt.hook == hook and hunt.state is State.HELD:
                if status != 0:
                    self._tell_of_hook(hunt, status, now_ns)
                self._end_wait(hunt, now_ns)

    def on_exit(self, handle: int, now_ns: int) -> Identity | None:
        """A process whose pidfd is watched has ended; say whose, when its mark may go."""
        for hunt in self.open_hunts:
            if hunt.handle != handle:
                continue
            hunt.has_exited = True
            if hunt.state is State.ASKED:
                self._let_go(hunt, Ending.LEFT, "it ended after it was asked to", now_ns)
            elif hunt.state is not State.STRUCK:  # then the crew is told by who drives us; its outcome ends the hunt
                self._withdraw(hunt, "it has gone by itself", now_ns)
            return None
        identity = self._graves.pop(handle, None)
        if identity is not None:
            self._handles.close(handle)
        return identity

    def on_event(self, event: Event, now_ns: int) -> None:
        """Something that the reaper (or the actor in its place) tells."""
        hunt = None if event.identity is None else self._open.get(event.identity)
        match event.kind:
            case EventKind.KILLED if hunt is not None:
                signal_name = event.text or "SIGKILL"
                if signal_name == "SIGKILL":
                    hunt.killed_ns = event.monotonic_ns
                else:
                    hunt.asked_ns = event.monotonic_ns
                self._voice.killed(hunt, signal_name=signal_name, now_ns=event.monotonic_ns)
            case EventKind.SETTLED if hunt is not None and event.outcome is not None:
                hunt.outcome = event.outcome
                if event.outcome.kind in _NOTHING_DONE:
                    self._onlooker.readmit(hunt.identity)
                self._voice.settled(hunt, event.outcome, now_ns)
                self._end(hunt, Ending.SETTLED)
            case EventKind.WARNING:
                self._voice.warning(
                    event.text,
                    scope=hunt.scope if hunt is not None else None,
                    incident=hunt.incident if hunt is not None else None,
                    now_ns=now_ns,
                )
            case _:
                pass  # we announce ourselves, before the reaper does

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
        for hunt in self.open_hunts:
            if hunt.deadline_ns is None or hunt.deadline_ns > now_ns or not hunt.is_open:
                continue
            match hunt.state:
                case State.SCOUTED:
                    self._let_go(hunt, Ending.UNSEEN, "it could not be looked at in time", now_ns)
                case State.HELD:
                    self._tell_of_hook(hunt, _OVERRUN, now_ns)
                    self._end_wait(hunt, now_ns)
                case State.ASKED:
                    reason = "it was asked to end and has not in the time allowed; nothing called for more"
                    self._let_go(hunt, Ending.SPARED, reason, now_ns)
                case State.STRUCK | State.OVER:
                    hunt.deadline_ns = None  # the crew has deadlines of its own

    # -- one hunt's progress -------------------------------------------------------------------------------

    def _begin(self, hunt: Hunt, now_ns: int) -> None:
        self._open[hunt.identity] = hunt
        hunt.deadline_ns = now_ns + _LOOK_LIMIT_NS
        self._go_on(hunt, now_ns)

    def _go_on(self, hunt: Hunt, now_ns: int, *, has_waited: bool = False) -> None:
        """Take the look at it, or ask for one."""
        looked = self._scouts.take(hunt.identity, now_ns)
        if looked is not None:
            self._on_looked(hunt, looked, now_ns, has_waited=has_waited)
        elif not self._scouts.ask(hunt.identity, now_ns):
            self._let_go(hunt, Ending.UNSEEN, "it has gone (or there is no descriptor for it)", now_ns)

    def _on_looked(self, hunt: Hunt, looked: Looked, now_ns: int, *, has_waited: bool) -> None:
        hunt.handle = looked.handle
        scouting = looked.scouting
        if scouting is None and looked.problem is not None:
            self._look_again(hunt, looked.problem, now_ns)
            return
        if scouting is None:
            self._withdraw(hunt, "it has gone", now_ns)
            return
        if scouting.process.identity != hunt.identity:
            self._withdraw(hunt, "it has gone, and its pid was given to another process", now_ns)
            return
        if scouting.process.is_dead:
            self._withdraw(hunt, "it has ended already", now_ns)
            return
        refusal = protection.refuse_process(scouting, self._ourselves())
        if refusal is not None:
            self._withdraw(hunt, refusal.reason, now_ns)
            return
        hunt.scouting = scouting
        if has_waited and not self._still_stands(hunt, now_ns):
            return
        self._handles.watch(looked.handle)
        self._announce(hunt, now_ns)

    def _look_again(self, hunt: Hunt, problem: str, now_ns: int) -> None:
        """A look was lost (its worker ended, no memory for it): once more, while the hunt's time for it lasts.

        To pass over to the next one for that would be to kill a lesser one in its place.
        """
        assert hunt.handle is not None
        self._handles.close(hunt.handle)
        hunt.handle = None
        hunt.looks += 1
        is_late = hunt.deadline_ns is None or now_ns >= hunt.deadline_ns
        if is_late or hunt.looks >= _LOOKS or not self._scouts.ask(hunt.identity, now_ns):
            self._let_go(hunt, Ending.UNSEEN, problem, now_ns)

    def _announce(self, hunt: Hunt, now_ns: int) -> None:
        """Tell, and wait for the hook where there is one and time for it."""
        hooks = self.plan.hooks
        if hooks.pre_kill and not hunt.follows and not hunt.is_urgent:
            self._hooks += 1
            hunt.hook = f"{hunt.incident}/{self._hooks}"
        hunt.announced_ns = now_ns
        name = "SIGTERM" if hunt.due.step.kind is StepKind.TERMINATE else "SIGKILL"
        self._voice.announce(hunt, signal_name=name, hook=hunt.hook, now_ns=now_ns)
        if hunt.hook is None:
            self._act(hunt, now_ns)
            return
        hunt.apply(Move.HOLD)
        hunt.deadline_ns = now_ns + hooks.pre_kill_timeout_ns

    def _still_stands(self, hunt: Hunt, now_ns: int) -> bool:
        """Whether it is gone on with, as of now. A follower is: its unit is dying already."""
        objection = None if hunt.follows else self.objector(hunt, now_ns)
        if objection is not None:
            self.drop(hunt, objection, now_ns)
        return objection is None

    def _tell_of_hook(self, hunt: Hunt, status: int | None, now_ns: int) -> None:
        if status == _OVERRUN:  # by our clock, or by that of the clerk, who ends it
            text = f"the pre-kill hook did not end in {self.plan.hooks.pre_kill_timeout_ns // _MS} ms"
        elif status is None:
            text = "the pre-kill hook was not run: too many at once"
        elif status == _NOT_STARTED:
            text = "the pre-kill hook could not be started"
        else:
            text = f"the pre-kill hook ended with status {status}"
        self._voice.warning(text, scope=hunt.scope, incident=hunt.incident, now_ns=now_ns)

    def _end_wait(self, hunt: Hunt, now_ns: int) -> None:
        """The hook has ended, or its time has."""
        if self._still_stands(hunt, now_ns):
            self._act(hunt, now_ns)

    def _act(self, hunt: Hunt, now_ns: int) -> None:
        if hunt.due.step.kind is StepKind.TERMINATE:
            self._ask(hunt, now_ns)
        else:
            self._strike(hunt, now_ns)

    def _ask(self, hunt: Hunt, now_ns: int) -> None:
        assert hunt.handle is not None
        refused = self._actor.terminate(hunt.identity, hunt.handle, now_ns)
        if refused:
            self._withdraw(hunt, f"it cannot be signalled ({errno.errorcode.get(refused, str(refused))})", now_ns)
            return
        hunt.apply(Move.ASK)
        hunt.deadline_ns = now_ns + max(self.plan.timeout_ns, _until_kill_ns(hunt.due) + _ESCALATION_GRACE_NS)
        for member in self._others(hunt):
            handle = self._handles.open_life(member.identity)
            if handle is not None:
                self._actor.terminate(member.identity, handle, now_ns)
                self._handles.close(handle)

    def _strike(self, hunt: Hunt, now_ns: int) -> None:
        assert hunt.handle is not None
        assert hunt.scouting is not None
        self._onlooker.leave_alone(hunt.identity)
        entry = self._actor.submit(hunt.scouting, hunt.handle, now_ns)
        if entry is not Entry.QUEUED:
            self._onlooker.readmit(hunt.identity)
            reason = "its memory is being freed already" if entry is Entry.ALREADY_IN else "too many victims at once"
            self._withdraw(hunt, reason, now_ns)
            return
        hunt.apply(Move.STRIKE)
        hunt.deadline_ns = None
        if hunt.ranked.unit is not KillUnit.PROCESS and not hunt.follows:
            self._actor.kill_unit(
                hunt.ranked, self._others(hunt), scope=hunt.scope, is_whole=hunt.is_whole, now_ns=now_ns
            )
            self._follow(hunt, now_ns)

    def _follow(self, hunt: Hunt, now_ns: int) -> None:
        """The largest of those who die with it are reaped too, should they be stuck."""
        others = sorted(self._others(hunt), key=lambda member: member.gain_bytes, reverse=True)
        for member in others[:_FOLLOWERS]:
            if self.is_hunted(member.identity):
                continue
            ranked = hunt.ranked._replace(process=member, unit=KillUnit.PROCESS, unit_key="")
            follower = Hunt(
                hunt.due,
                ranked,
                (member,),
                incident=hunt.incident,
                available_bytes=hunt.available_bytes,
                now_ns=now_ns,
                follows=True,
            )
            self._begin(follower, now_ns)

    def _others(self, hunt: Hunt) -> tuple[ProcessSample, ...]:
        return tuple(member for member in hunt.members if member.identity != hunt.identity)

    def _withdraw(self, hunt: Hunt, reason: str, now_ns: int) -> None:
        self._let_go(hunt, Ending.WITHDRAWN, reason, now_ns)

    def _let_go(self, hunt: Hunt, ending: Ending, reason: str, now_ns: int) -> None:
        """End it without the reaper, and say so: always of one that was announced.

        Of one that could not even be looked at whoever collects it tells: once, for it is tried again soon.
        """
        hunt.reason = reason
        if ending is Ending.LEFT:
            self._voice.settled(hunt, _outcome_of_leaver(hunt, now_ns), now_ns)
        elif hunt.announced_ns is not None or not (hunt.follows or ending is Ending.UNSEEN):
            self._voice.skipped(reason, scope=hunt.scope, incident=hunt.incident, hunt=hunt, now_ns=now_ns)
        self._end(hunt, ending)

    def _end(self, hunt: Hunt, ending: Ending) -> None:
        hunt.apply(Move.END)
        hunt.ending = ending
        hunt.deadline_ns = None
        del self._open[hunt.identity]
        self._over.append(hunt)
        if hunt.handle is None:
            return
        is_leaving = hunt.outcome is not None and hunt.outcome.still_dying and not hunt.has_exited
        if ending is Ending.SETTLED and is_leaving:
            self._bury(hunt.handle, hunt.identity)
        else:
            self._handles.close(hunt.handle)

    def _bury(self, handle: int, identity: Identity) -> None:
        """Its memory is settled and it has not gone: wait for that without holding anything up."""
        if len(self._graves) >= _GRAVES:
            oldest = next(iter(self._graves))
            del self._graves[oldest]
            self._handles.close(oldest)
        self._graves[handle] = identity


def _object_to_nothing(_hunt: Hunt, _now_ns: int) -> Objection | None:
    return None


def _until_kill_ns(due: DueStep) -> int:
    """How long after this step the ladder's kill step comes at the latest; 0 when it has none."""
    after_ns = 0
    for step in due.rule.then[due.position + 1 :]:
        after_ns += step.after_ns
        if step.kind is StepKind.KILL:
            return after_ns
    return 0


def _outcome_of_leaver(hunt: Hunt, now_ns: int) -> Outcome:
    process = hunt.ranked.process
    asked_ns = hunt.asked_ns or hunt.announced_ns or hunt.started_ns
    return Outcome(
        process.identity.pid,
        process.identity.start_time_ticks,
        process.comm,
        OutcomeKind.EXITED,
        anon_before_bytes=process.anon_bytes + process.swap_bytes,
        elapsed_ms=(now_ns - asked_ns) / _MS,
        attempts=0,
        reason="it ended after SIGTERM",
    )
