"""The table of mutants: one defect each, in the founding commit's steps and in our own code.

A mutant of the kernel's is a subclass with one method changed (``kernel_defects``). A mutant of ours replaces a
function of the real modules for the time of a run (``our_defects``). Each says on which stages it is looked for, and by
which invariant it should be caught; which one does catch it is in the report. ``mutants`` runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.linux import look
from oomreaper.policy import protection
from oomreaper.policy.ladder import Ladder
from oomreaper.reaper import verify
from oomreaper.reaper.case import Case
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Marks
from oomreaper.reaper.roster import Roster
from oomreaper.sim import kernel_defects as kernel
from oomreaper.sim import our_defects as wrong
from oomreaper.sim import stages
from oomreaper.sim.crowd import SimCensus

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.killers.founding import FoundingReaper, OomReaper
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.stages import OurStage


class Patch(NamedTuple):
    """Replace ``owner.name`` by what ``make`` makes of the original."""

    owner: Any
    name: str
    make: Callable[[Any], Any]


class Mutant(NamedTuple):
    """One defect. A kernel's mutant has a ``killer``, ours has ``patches``. ``expected``: any of these invariants."""

    name: str
    about: str
    expected: tuple[str, ...]
    killer: Callable[[], FoundingReaper] | None = None
    kernel_stages: tuple[Callable[[Machine], None], ...] = ()
    patches: tuple[Patch, ...] = ()
    our_stages: tuple[OurStage, ...] = ()
    watch_stages: tuple[Callable[[Machine], None], ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is a mutant of this project's own code."""
        return self.killer is None


def _our_mutants() -> tuple[Mutant, ...]:
    """They need greenlets, so nothing of them is imported with this module."""
    from oomreaper.reaper.worker import child
    from oomreaper.sim.reaping import Reaping
    from oomreaper.watch.mind.candidates import Candidates
    from oomreaper.watch.mind.watcher import Watcher

    on = {stage.name: stage for stage in stages.OUR_STAGES}
    worker = child.WorkerChild

    def ours(name: str, about: str, expected: str, where: str, *patches: Patch) -> Mutant:
        return Mutant(name, about, (expected,), patches=patches, our_stages=(on[where],))

    def watch(name: str, about: str, expected: str, where: Any, *patches: Patch) -> Mutant:
        return Mutant(name, about, (expected,), patches=patches, watch_stages=(where,))

    return (
        ours("verification by return code", "an answer of 0 counts as memory back", "false-claim", "skipped",
             Patch(verify, "is_back", wrong.always(True))),
        ours("ESRCH is success", "a detached address space counts as memory back", "false-claim", "pinned",
             Patch(verify, "read_strike", wrong.esrch_is_success)),
        ours("no mark", "an address space is served once for each of its names", "reaped-twice", "sharing",
             Patch(Marks, "test_and_set", wrong.always(True))),
        ours("signal by pid", "whoever holds the pid by then is killed", "wrong-victim", "locked",
             Patch(child, "_kill", wrong.kill_by_pid), Patch(worker, "_open_life", wrong.any_life),
             Patch(worker, "_is_named", wrong.always(True))),
        ours("no attempt limit", "a victim that cannot be reaped is tried for ever", "progress", "skipped",
             Patch(Crew, "_again", wrong.again_for_ever)),
        ours("no deadline", "a worker that stands on mmap_lock is waited for", "progress", "locked",
             Patch(Crew, "_on_overdue", wrong.never_overdue)),
        ours("lost workers are not replaced", "each held lock costs a worker for good", "progress", "locked",
             Patch(Roster, "dismiss", wrong.lost_for_good)),
        ours("reap after the log line", "the line needs memory while there is none", "progress", "lock-up",
             Patch(child, "_kill", wrong.kill_then_log)),
        ours("sharers live", "nobody looks for who shares the memory", "progress", "one shares",
             Patch(look, "find_sharers", wrong.nobody)),
        ours("dumps are not spared", "--coredump wait kills who dumps", "dump-spared", "dumping",
             Patch(child, "_is_dumping_core", wrong.always(False))),
        ours("protection ignored", "nobody asks whether the target may be killed", "protected", "protected",
             Patch(protection, "refuse_process", wrong.always(None))),
        ours("sharers not recorded", "the record names the victim only", "unaccounted", "one shares",
             Patch(Case, "outcome", wrong.forget_sharers)),
        ours("the watcher reads cmdline", "and waits for the victim's mmap_lock", "lock-wait", "locked",
             Patch(Reaping, "_on_scouted", wrong.read_cmdline_first)),
        # Each of these two is held by more than one rule: all of them must go before anything happens.
        watch("second victim at once", "nobody waits for the first one's memory", "second-kill",
              stages.watched_unreapable,
              Patch(Watcher, "_find_obstacle", wrong.always(None)), Patch(Ladder, "note_taken", wrong.always(None))),
        watch("no skip list", "who was given up is chosen again and again", "progress", stages.watched_unreapable,
              Patch(Candidates, "_is_set_aside", wrong.always(False)),
              Patch(Marks, "test_and_set", wrong.always(True)), Patch(SimCensus, "forget", wrong.always(None))),
    )  # fmt: skip


def _kernel_mutants() -> tuple[Mutant, ...]:
    def of_reaper(name: str, reaper: type[OomReaper], expected: tuple[str, ...], *where: Any) -> Mutant:
        return Mutant(name, (reaper.__doc__ or "").strip(), expected, kernel.with_reaper(reaper), where)

    def of_killer(name: str, killer: type[FoundingReaper], expected: tuple[str, ...], *where: Any) -> Mutant:
        return Mutant(name, (killer.__doc__ or "").strip(), expected, killer, where)

    after_free = ("mm-use-after-free", "mm-freed-early")
    return (
        of_reaper("plain store for cmpxchg", kernel.PlainStore, ("slot",), stages.two_groups),
        of_reaper("updating while busy", kernel.UpdateWhileBusy, ("slot",), stages.two_groups),
        of_reaper("clearing the slot too early", kernel.ClearEarly, ("slot-busy", "gave-up-early"), stages.stuck),
        of_reaper("no pin", kernel.NoPin, after_free, stages.healthy),
        of_reaper("loser keeps its pin", kernel.LoserKeepsPin, ("mm-leak",), stages.two_groups),
        of_reaper("drop twice", kernel.DropTwice, after_free, stages.healthy),
        of_reaper(
            "no inc-not-zero",
            kernel.NoUser,
            ("reap-races-exit", "pages-freed-twice", *after_free),
            stages.healthy,
        ),
        of_reaper("plain increment", kernel.PlainIncrement, ("mm-users-revived",), stages.healthy),
        of_reaper("no mmput", kernel.UserLeak, ("mm-leak",), stages.stuck),
        of_reaper("blocking lock for trylock", kernel.BlockingLock, ("lock-wait",), stages.locked_long),
        of_reaper("no retry limit", kernel.NoRetryLimit, ("slot-held",), stages.locked_long),
        of_reaper("no retry", kernel.OneAttempt, ("gave-up-early",), stages.two_groups),
        of_reaper("no wake-up", kernel.NoWakeUp, ("slot-held", "progress"), stages.stuck),
        of_reaper("reaping shared areas", kernel.ReapsShared, ("reap-outside",), stages.stuck),
        of_reaper("reaping hugetlb areas", kernel.ReapsHugetlb, ("reap-outside",), stages.stuck),
        of_reaper("reaping mlocked areas", kernel.ReapsMlocked, ("reap-outside",), stages.stuck),
        of_reaper("no unlock", kernel.NoUnlock, ("mm-leak",), stages.stuck),
        of_killer("excepting core dumps", kernel.NoExceptionForDumps, ("progress",), stages.dumping),
        of_killer("reaping what others use", kernel.ReapsThoughShared, ("reaped-alive",), stages.unkillable_sharer),
        of_killer("sharers are not killed", kernel.SharersLive, ("reaped-alive",), stages.sharing),
        of_killer("reserves before SIGKILL", kernel.MarkFirst, ("mark-before-kill",), stages.stuck),
        of_killer("second kill not held off", kernel.DoesNotWait, ("second-kill",), stages.stuck, stages.healthy),
        of_killer("oom_score_adj ignored", kernel.KillsProtected, ("protected",), stages.protected),
        of_killer("kill not recorded", kernel.NoRecord, ("unaccounted",), stages.stuck),
    )


def all_mutants() -> tuple[Mutant, ...]:
    """The table: the kernel's first."""
    return (*_kernel_mutants(), *_our_mutants())
