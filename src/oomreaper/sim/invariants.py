"""What must hold whoever kills and reaps: checked at the transitions where it could break, O(1) each.

``Invariants(machine, rules)`` hangs itself on the machine's hooks; a breach raises ``Violation`` by one of these names:

================== ===================================================================================================
slot               the founding commit's slot goes only from NULL to an address space and from that to NULL
slot-busy          who is being reaped is in the slot until the work is done (updates are refused meanwhile)
slot-held          nobody stays in the slot for longer than its attempts take while no page of it moves
gave-up-early      the slot is cleared before its attempts are spent, though nothing was reaped
mm-use-after-free  no access to an address space after its last mm_count (in ``memory``)
mm-freed-early     the last mm_count does not go before the pages (in ``memory``)
mm-users-revived   nobody takes mm_users of an address space that has none any more (in ``memory``)
pages-freed-twice  no page is freed twice (in ``allocator``)
reap-races-exit    where the tear-down takes no lock (2016), nobody else frees pages of an address space without users
reap-outside       nothing is reaped but anonymous, swapped and private memory; in 2016, nothing mlocked
reaped-twice       an address space that was reaped to the end, and seen to be, is not reaped again
reaped-alive       an address space that a living process uses is not reaped
protected          nobody with oom_score_adj -1000 is killed, nor init, nor a kernel thread (in ``machine``)
wrong-victim       nobody is killed who was not meant: a recycled pid names another life
dump-spared        who dumps core is not killed where that was promised
mark-before-kill   reserves only for who is dying
second-kill        no second victim while the first one's memory is awaited
lock-wait          the watcher and the kernel's reaper never wait for a victim's mmap_lock
progress           memory of a victim that can be reaped comes back within a bound
unaccounted        every kill is in somebody's record
false-claim        a victim that is recorded as reaped or exited has given its memory back (as far as can be judged)
mm-leak            at the end no reference, no user and no lock is left over
================== ===================================================================================================

It refuses to know how a killer works: what each is held to, and what excuses it, is in its ``Rules``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.outcome import OutcomeKind
from oomreaper.reaper.verify import SMALLEST_JUDGED_BYTES
from oomreaper.sim.checks import Violation
from oomreaper.sim.engine import Actor, Wait
from oomreaper.sim.killers.founding import FoundingReaper
from oomreaper.sim.killers.later import LaterReaper
from oomreaper.sim.killers.oom_killer import OOM_SCORE_ADJ_MIN, OomKiller
from oomreaper.sim.locks import LockWait
from oomreaper.sim.memory import Kind
from oomreaper.sim.parameters import MIB, SECOND
from oomreaper.sim.release import sharers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from oomreaper.model.outcome import Outcome
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Area, Mm
    from oomreaper.sim.tasks import Process

# What ``reaper.verify`` forgives (its floor and its part), so that the truth is measured with the same measure.
_LEFTOVER_BYTES = 8 * MIB
_LEFTOVER_PART = 20
# A slice of 16 MiB is freed in about a millisecond: who has freed nothing for ten of them is not at it.
_MOVING_NS = 10_000_000


class Rules(NamedTuple):
    """What a killer is held to.

    ``bound_ns``: how long memory that can be reaped may take to come back after the kill; None: nobody promises it.
    ``has_slot``: one address space at a time. ``spares_locked``: mlocked memory is left alone (before 5.18).
    ``kills_unkillable``: sharers with oom_score_adj -1000 die with the victim (since 2016).
    ``is_one_at_a_time``: no second victim while the first is awaited.
    """

    bound_ns: int | None = None
    has_slot: bool = False
    spares_locked: bool = False
    kills_unkillable: bool = False
    is_one_at_a_time: bool = True
    spares_dumps: bool = False


# The bounds: ten attempts of 100 ms, the delay of 2 s where there is one, and as much again for the freeing itself.
RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "none": Rules(is_one_at_a_time=False),
        "oom_killer": Rules(),
        "founding": Rules(2 * SECOND, has_slot=True, spares_locked=True),
        "later": Rules(6 * SECOND, kills_unkillable=True),
        "ours": Rules(4 * SECOND, is_one_at_a_time=False),
        "watch": Rules(4 * SECOND),
    }
)


class _GuardedActor(Actor):
    """Must never wait for a victim's mmap_lock."""

    __slots__ = ()

    @property
    def waits_for(self) -> Wait | None:
        """As ever."""
        return _WAITS_FOR.__get__(self, Actor)  # type: ignore[no-any-return] # a slot's descriptor is untyped

    @waits_for.setter
    def waits_for(self, wait: Wait | None) -> None:
        _WAITS_FOR.__set__(self, wait)
        if isinstance(wait, LockWait) and wait.lock.name.startswith("mmap_lock"):
            raise Violation("lock-wait", f"{self.name} waits for {wait.describe()}")


_WAITS_FOR = Actor.__dict__["waits_for"]


def guard(actor: Actor) -> None:
    """From here on this actor is not to wait for any mmap_lock."""
    actor.__class__ = _GuardedActor


def is_loss_of_worker(process: Process, sender: Process | None) -> bool:
    """Whether this SIGKILL ends a worker of ours, by its master or by a fault: it is nobody's victim."""
    return process.comm == b"oomreaper/reap" and sender in (None, process.parent)


class Invariants:
    """Watches one machine.

    Args:
        machine: Which.
        rules: What its killer is held to.
        meant: Whom our own code may kill (and who shares memory with them); None: it does not kill here.
        count_failures: How many calls of our own code have failed so far: it has not seen what those were to show.
    """

    def __init__(
        self,
        machine: Machine,
        rules: Rules,
        *,
        meant: Iterable[Process] | None = None,
        count_failures: Callable[[], int] = lambda: 0,
    ) -> None:
        self._machine = machine
        self._rules = rules
        self._killer = machine.killer
        self._meant = None if meant is None else {process.identity for process in meant}
        self._meant_mms = set() if meant is None else {process.mm for process in meant}
        self._held: dict[Mm, int] = {}  # what each victim could give back when it was killed
        self._kill_times: dict[Mm, int] = {}
        self._last_free_ns: dict[Mm, int] = {}
        self._reapers: dict[Mm, set[Actor]] = {}
        self._tearer: dict[Mm, Actor] = {}  # who was the last to let go of it, be it a reader
        self._count_failures = count_failures
        self._lost_workers = 0
        self._unseen_at: dict[Mm, int] = {}  # calls that had failed, and workers that were lost, at its last reap
        self._victims: dict[Process, Mm] = {}
        self._slot_serial = 0
        self._slot_ns = 0
        self._is_begun = False  # whoever is in the slot has been reaped, in part at least
        self._killed: list[Process] = []
        hooks = machine.hooks
        hooks.kill.append(self._on_kill)
        hooks.victim.append(self._on_victim)
        hooks.reap.append(self._on_reap)
        hooks.tear.append(self._tearer.__setitem__)
        hooks.free.append(self._on_free)
        if rules.has_slot:
            hooks.slot.append(self._on_slot)
        for process in machine.processes.values():
            if process.comm == b"oom_reaper":
                guard(process.threads[0].actor)

    # -- transitions ---------------------------------------------------------------------------------------

    def _on_kill(self, process: Process, sender: Process | None) -> None:
        rules, mm = self._rules, process.mm
        is_ours = sender is not None
        if is_loss_of_worker(process, sender):
            self._lost_workers += 1
            return
        self._killed.append(process)
        if process.oom_score_adj == OOM_SCORE_ADJ_MIN and not rules.kills_unkillable:
            raise Violation("protected", f"{process} is killed, whose oom_score_adj is {OOM_SCORE_ADJ_MIN}")
        if is_ours and self._meant is not None and process.identity not in self._meant and not self._is_sharer(process):
            raise Violation("wrong-victim", f"{process} is killed, whom nobody meant")
        if rules.spares_dumps and process.is_dumping:
            raise Violation("dump-spared", f"{process} is killed while it dumps core")
        if rules.is_one_at_a_time and not is_ours:
            for other in self._killer.awaited():
                if other is not process and self._victims.get(other) is not mm and other.group is process.group:
                    raise Violation("second-kill", f"{process} is killed while {other} is awaited")
        if rules.is_one_at_a_time and is_ours:
            self._check_nothing_is_coming(process, mm)
        if mm is not None and mm not in self._held:
            self._held[mm] = self._reapable_pages(mm)
            self._kill_times[mm] = self._machine.engine.now_ns
            if rules.bound_ns is not None:
                self._machine.engine.call_later(rules.bound_ns, lambda: self._check_progress(process, mm))

    def _is_sharer(self, process: Process) -> bool:
        """Whether it shares the memory of somebody who was meant, or did until its own exit took it away just now."""
        if process.mm is not None:
            return process.mm in self._meant_mms
        return any(mm is not None and process in mm.processes for mm in self._meant_mms)

    def _check_nothing_is_coming(self, process: Process, mm: Mm | None) -> None:
        """No other victim's pages are being freed at this moment."""
        now_ns = self._machine.engine.now_ns
        for other in self._held:
            is_moving = now_ns - self._last_free_ns.get(other, -_MOVING_NS) < _MOVING_NS
            if other is not mm and is_moving and self._reapable_pages(other):
                raise Violation("second-kill", f"{process} is killed while the memory of {other} is coming back")

    def _on_victim(self, process: Process) -> None:
        mm = process.mm
        if mm is not None:
            self._victims[process] = mm
        is_dying = process.is_group_exit or any(
            thread.is_exiting or thread.actor.is_doomed for thread in process.threads
        )
        if not is_dying:
            raise Violation("mark-before-kill", f"{process} may use the reserves and is not dying")

    def _on_slot(self, before: Mm | None, after: Mm | None) -> None:
        if (before is None) == (after is None):
            raise Violation("slot", f"mm_to_reap goes from {before} to {after}")
        engine = self._machine.engine
        self._slot_serial += 1
        if after is not None:
            self._slot_ns, self._is_begun = engine.now_ns, False
            serial = self._slot_serial
            engine.call_later(self._slot_limit_ns, lambda: self._check_slot(after, serial))
        elif before is not None and not self._is_begun and before.users > 0 and self._reapable_pages(before):
            attempts = self._machine.parameters.reap_attempts
            if engine.now_ns - self._slot_ns < (attempts - 1) * self._machine.parameters.reap_sleep_ns:
                raise Violation("gave-up-early", f"{before} leaves the slot unreaped, with attempts left")

    def _on_reap(self, mm: Mm, by: Actor) -> None:
        rules, killer = self._rules, self._killer
        if rules.has_slot and isinstance(killer, FoundingReaper):
            if killer.ground.content is not mm:
                raise Violation("slot-busy", f"{mm} is reaped while {killer.ground.content} is in the slot")
            self._is_begun = True
        # A worker whose read failed, or that was lost before it could tell, leaves nobody who knows it.
        unseen = self._count_failures() + self._lost_workers
        if self._unseen_at.get(mm) == unseen and not mm.reapable_pages and not mm.file_pages:
            raise Violation("reaped-twice", f"{mm} has been reaped to the end, and is reaped again by {by}")
        self._unseen_at[mm] = unseen
        self._reapers.setdefault(mm, set()).add(by)
        for process in sharers(mm):
            if not process.is_group_exit and not process.is_kernel_thread and not process.threads[0].is_exiting:
                raise Violation("reaped-alive", f"{mm} is reaped by {by}, and {process} lives on it")
            if process.is_kernel_thread and not rules.kills_unkillable:
                raise Violation("reaped-alive", f"{mm} is reaped by {by}, and {process} uses it")

    def _on_free(self, mm: Mm, area: Area, pages: int, by: Actor) -> None:
        self._last_free_ns[mm] = self._machine.engine.now_ns
        if mm.is_torn_down:
            raise Violation("pages-freed-twice", f"{by} frees {pages} pages of {mm}, which has been torn down")
        is_locked = self._machine.parameters.is_exit_locked
        if mm.users == 0 and not is_locked and self._tearer.setdefault(mm, by) is not by:
            raise Violation("reap-races-exit", f"{by} and {self._tearer[mm]} free pages of {mm}, which has no user")
        is_reap = by in self._reapers.get(mm, ()) and self._tearer.get(mm) is not by and (mm.users > 0 or is_locked)
        if is_reap and area.kind not in (Kind.ANONYMOUS, Kind.PRIVATE_FILE):
            raise Violation("reap-outside", f"{by} reaps {area} of {mm}")
        if is_reap and area.is_locked and self._rules.spares_locked:
            raise Violation("reap-outside", f"{by} reaps {area} of {mm}, which is mlocked")

    # -- what must have come about by a time ---------------------------------------------------------------

    @property
    def _slot_limit_ns(self) -> int:
        parameters = self._machine.parameters
        return 2 * parameters.reap_attempts * parameters.reap_sleep_ns

    def _check_slot(self, mm: Mm, serial: int) -> None:
        if serial != self._slot_serial:
            return
        if self._is_begun and self._machine.engine.now_ns - self._last_free_ns.get(mm, 0) < self._slot_limit_ns:
            self._machine.engine.call_later(self._slot_limit_ns, lambda: self._check_slot(mm, serial))
            return
        raise Violation("slot-held", f"{mm} stays in the slot, and no page of it has moved")

    def _check_progress(self, process: Process, mm: Mm) -> None:
        left = self._reapable_pages(mm)
        if mm.is_torn_down or left < self._held[mm] or self._is_excused(mm):
            return
        if left * self._machine.parameters.page_bytes <= _LEFTOVER_BYTES:
            return  # so little counts as back: ``reaper.verify`` says why
        raise Violation("progress", f"{process} was killed, nothing stands in the way, and {left} pages are still held")

    def _is_excused(self, mm: Mm) -> bool:
        """The limits that are documented: they are no fault of who reaps."""
        killer = self._killer
        if any(area.notifier_blocks for area in mm.areas) or mm.lock.writer is not None or mm.lock.queue:
            return True
        if isinstance(killer, FoundingReaper):
            reaper = killer.reaper
            if mm in reaper.refused or mm in killer.unreapable:
                return True
            return mm in reaper.given_up  # "gave-up-early" says whether that was right
        if isinstance(killer, LaterReaper):
            return mm in killer.given_up or mm.is_skipped
        owners = sharers(mm)  # none: it is detached, and pinned by somebody (ESRCH for ever)
        return (
            mm.is_skipped
            or not owners
            or any(
                owner.is_dumping or owner.is_kernel_thread or owner.oom_score_adj == OOM_SCORE_ADJ_MIN
                for owner in owners
            )
        )

    # -- the end -------------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether each victim so far has given back what it could."""
        return all(mm.is_torn_down or not self._reapable_pages(mm) for mm in self._held)

    def check_outcomes(self, outcomes: Mapping[Process, Outcome]) -> None:
        """Ours, after the run: who was killed is in a record, and what the record says of the memory is so."""
        by_pid = {sharer for outcome in outcomes.values() for sharer in outcome.sharers}
        for process in self._killed:
            if process not in outcomes and process.pid not in by_pid:
                raise Violation("unaccounted", f"{process} was killed, and no record says so")
        for process, outcome in outcomes.items():
            mm = next((mm for mm in self._held if process in mm.processes), None)
            if mm is None or outcome.kind not in (OutcomeKind.REAPED, OutcomeKind.EXITED):
                continue
            if not sharers(mm) and (outcome.anon_before_bytes or 0) < SMALLEST_JUDGED_BYTES:
                continue  # pinned: only what is charged could tell, and there it drowns in what others do
            if process.mm is not mm and outcome.anon_before_bytes == 0:
                continue  # it had let go of what others own before it was looked at: nothing is claimed
            page_bytes = self._machine.parameters.page_bytes
            forgiven = max(_LEFTOVER_BYTES // page_bytes, self._held[mm] // _LEFTOVER_PART)
            if not mm.is_torn_down and mm.reapable_pages > forgiven:
                raise Violation(
                    "false-claim", f"{process} is recorded as {outcome.kind}, and holds {mm.reapable_pages} pages"
                )

    def check_end(self) -> None:
        """When everybody has come to rest."""
        killer = self._killer
        if isinstance(killer, OomKiller):
            recorded = {kill.process for kill in killer.kills}
            for process in self._killed:
                if process not in recorded:
                    raise Violation("unaccounted", f"{process} was killed, and the killer does not know of it")
        pinned = set(killer.oom_mms.values()) if isinstance(killer, LaterReaper) else set()
        for mm in self._held:
            owners = [process for process in mm.processes if not process.is_dead]  # type: ignore[attr-defined] # list[object]
            if owners or mm in pinned:
                continue
            if mm.users > 0 or not mm.is_torn_down:
                raise Violation("mm-leak", f"{mm} has {mm.users} users and no process")
            if mm.count > 0:
                raise Violation("mm-leak", f"{mm} is torn down and has {mm.count} references")
            if mm.lock.is_held():
                raise Violation("mm-leak", f"mmap_lock of {mm} is still held")

    # -- inside --------------------------------------------------------------------------------------------

    def _reapable_pages(self, mm: Mm) -> int:
        """Anonymous and swapped, and mlocked only where that may be reaped."""
        return sum(
            area.resident + area.swapped
            for area in mm.areas
            if area.kind is Kind.ANONYMOUS and not (area.is_locked and self._rules.spares_locked)
        )
