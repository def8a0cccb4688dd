"""What a crew does beside its victims: profiles, units, reclaim. Pure.

What it knows: what was asked for, what is out, what came back. What it refuses to know: workers and victims; the crew
says how many workers are idle and whether a victim is open, and gets a task or none.

Rules:

1. Of each kind one task is out at a time: a process that blocks its reader costs one worker, not all.
2. KILL_UNIT goes first of the three, and takes any idle worker. PROFILE leaves the last idle worker alone while a
   victim is open; RECLAIM always does, and is told off when no worker was to spare in its time.
3. Whoever asks gets an answer. A batch of profiles that did not come back is asked for again one by one, and one
   that did not, once more without the command line (which waits for mmap_lock); then it is None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.reaper.jobs import (
    CouldNotLook,
    Job,
    JobKind,
    Order,
    Profiled,
    ProfileOrder,
    Reclaimed,
    ReclaimOrder,
    UnitKilled,
    UnitOrder,
)
from oomreaper.reaper.wire import LIVES_A_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import Profile
    from oomreaper.reaper.jobs import Report

# A batch of profiles: a few reads each, so small that a strike never waits long for the worker that has it.
PROFILES_A_BATCH = 32
# How long a reclaim may wait for a worker to spare; a shortage has moved on by then.
_RECLAIM_WAIT_NS = 1_000_000_000
# How often a unit whose worker was lost is gone through again: whoever was killed is skipped, so it moves on.
_UNIT_TRIES = 3
_KINDS = (JobKind.KILL_UNIT, JobKind.PROFILE, JobKind.RECLAIM)


class SideTask(NamedTuple):
    """One side job as it is handed to a worker. ``request`` is the unit it belongs to; ``try_number`` counts from 1."""

    job: Job
    handle: int | None = None
    request: UnitRequest | None = None
    try_number: int = 1
    limit_ns: int = 0


class UnitRequest:
    """One call for a unit: its lives may take several messages, its answer is one."""

    def __init__(self, tasks: int) -> None:
        self.tasks_left = tasks
        self.killed: list[Identity] = []
        self.refused: list[str] = []
        self.passes = self.killed_count = 0

    def add(self, answer: UnitKilled) -> None:
        """Put one task's answer to the others."""
        self.killed += answer.killed
        self.refused += answer.refused
        self.passes = max(self.passes, answer.passes)
        self.killed_count += answer.killed_count
        self.tasks_left -= 1

    def answer(self) -> UnitKilled:
        """All of it."""
        return UnitKilled(tuple(self.killed), tuple(self.refused), self.passes, self.killed_count)


class SideJobs:
    """The queues of the three kinds, and their answers."""

    def __init__(self) -> None:
        self._out: dict[JobKind, SideTask] = {}
        self._units: deque[SideTask] = deque()
        self._reclaims: deque[SideTask] = deque()
        self._asked: set[Identity] = set()  # whose profile was asked for, and its answer not taken yet
        self._lives: deque[Identity] = deque()  # to be profiled, in order of asking
        self._single: deque[ProfileOrder] = deque()  # to be asked again, alone
        self._profiled: list[tuple[Identity, Profile | None]] = []
        self._killed: list[UnitKilled] = []
        self._reclaimed: list[Reclaimed] = []

    # -- asking --------------------------------------------------------------------------------------------

    def ask_profiles(self, lives: Iterable[Identity]) -> None:
        """Have these profiled; whoever is being asked about already is left out."""
        for life in lives:
            if life not in self._asked:
                self._asked.add(life)
                self._lives.append(life)

    def ask_unit(self, order: UnitOrder) -> None:
        """Have a unit killed, in as many messages as its lives take; the last one goes through the unit."""
        chunks = [order.lives[at : at + LIVES_A_MESSAGE] for at in range(0, len(order.lives), LIVES_A_MESSAGE)] or [()]
        request = UnitRequest(len(chunks))
        orders = [UnitOrder(chunk) for chunk in chunks[:-1]] + [order._replace(lives=chunks[-1])]
        self._units += [SideTask(_job(JobKind.KILL_UNIT, each), request=request) for each in orders]

    def ask_reclaim(self, order: ReclaimOrder, handle: int | None, now_ns: int) -> None:
        """Have memory moved out."""
        self._reclaims.append(SideTask(_job(JobKind.RECLAIM, order), handle, limit_ns=now_ns + _RECLAIM_WAIT_NS))

    # -- giving out ----------------------------------------------------------------------------------------

    def take_next(self, *, idle: int, has_victims: bool) -> SideTask | None:
        """The task for the next idle worker, counted as out from now on; None when none may be given out."""
        for kind in _KINDS:
            spared = {JobKind.KILL_UNIT: 0, JobKind.PROFILE: int(has_victims)}.get(kind, 1)
            if kind not in self._out and idle > spared and (task := self._pop(kind)) is not None:
                self._out[kind] = task
                return task
        return None

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing waits and nothing is out."""
        return not (self._out or self._units or self._reclaims or self._lives or self._single)

    def next_deadline_ns(self) -> int | None:
        """When a reclaim that waits for a worker is to be told off."""
        return self._reclaims[0].limit_ns if self._reclaims else None

    def on_time(self, now_ns: int) -> None:
        """Tell off the reclaims that have waited too long."""
        while self._reclaims and self._reclaims[0].limit_ns <= now_ns:
            self._refuse_reclaim(self._reclaims.popleft(), "no worker was to spare for it")

    # -- answers -------------------------------------------------------------------------------------------

    def on_report(self, task: SideTask, report: Report) -> None:
        """A worker has answered."""
        self._out.pop(task.job.kind, None)
        match report:
            case Profiled():
                self._profiled += [(row.identity, row.profile) for row in report.rows]
            case UnitKilled() if task.request is not None:
                self._close_unit_task(task.request, report)
            case Reclaimed():
                self._reclaimed.append(report)
            case CouldNotLook():
                self._on_failure(task, report.problem)
            case _:
                raise AssertionError(f"{task.job.kind} was answered with {type(report).__name__}")

    def on_no_answer(self, task: SideTask, reason: str) -> None:
        """The worker was lost with it."""
        self._out.pop(task.job.kind, None)
        self._on_failure(task, reason)

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """The profiles since the last call."""
        taken, self._profiled = self._profiled, []
        self._asked.difference_update(identity for identity, _ in taken)
        return taken

    def take_unit_killed(self) -> list[UnitKilled]:
        """The units that are done since the last call."""
        taken, self._killed = self._killed, []
        return taken

    def take_reclaimed(self) -> list[Reclaimed]:
        """The reclaims that are done since the last call."""
        taken, self._reclaimed = self._reclaimed, []
        return taken

    def _on_failure(self, task: SideTask, reason: str) -> None:
        order = task.job.order
        if isinstance(order, ProfileOrder):
            self._on_profile_failure(order)
        elif isinstance(order, UnitOrder) and task.request is not None:
            if task.try_number < _UNIT_TRIES:
                self._units.appendleft(task._replace(try_number=task.try_number + 1))
            else:
                problem = f"{len(order.lives)} members may not have been signalled: {reason}"
                self._close_unit_task(task.request, UnitKilled((), (problem,), 0, 0))
        else:
            self._refuse_reclaim(task, reason)

    def _on_profile_failure(self, order: ProfileOrder) -> None:
        if len(order.lives) > 1:
            self._single += [ProfileOrder((life,)) for life in order.lives]
        elif order.with_cmdline:
            self._single.append(order._replace(with_cmdline=False))
        else:
            self._profiled += [(life, None) for life in order.lives]

    def _close_unit_task(self, request: UnitRequest, answer: UnitKilled) -> None:
        request.add(answer)
        if not request.tasks_left:
            self._killed.append(request.answer())

    def _refuse_reclaim(self, task: SideTask, problem: str) -> None:
        order = task.job.order
        assert isinstance(order, ReclaimOrder)
        self._reclaimed.append(Reclaimed(0, order.describe_source(), problem, life=order.life))

    def _pop(self, kind: JobKind) -> SideTask | None:
        if kind is JobKind.KILL_UNIT:
            return self._units.popleft() if self._units else None
        if kind is JobKind.RECLAIM:
            return self._reclaims.popleft() if self._reclaims else None
        if self._single:
            return SideTask(_job(kind, self._single.popleft()))
        lives = tuple(self._lives.popleft() for _ in range(min(PROFILES_A_BATCH, len(self._lives))))
        return SideTask(_job(kind, ProfileOrder(lives))) if lives else None


class SideDoor(ABC):
    """What a crew offers beside its victims; ``Crew`` is one, and this is kept here so that its file stays its own."""

    def __init__(self, side: SideJobs) -> None:
        self._side = side

    @abstractmethod
    def _put_to_work(self, now_ns: int) -> None:
        """Give what waits to the workers that are idle."""

    def profile(self, lives: Iterable[Identity], now_ns: int) -> None:
        """Look at who these are; one answer for each comes out of ``take_profiled``, None for a life that is over."""
        self._side.ask_profiles(lives)
        self._put_to_work(now_ns)

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """The profiles since the last call."""
        return self._side.take_profiled()

    def kill_unit(
        self,
        lives: Iterable[Identity],
        now_ns: int,
        *,
        cgroup_directory: str | None = None,
        process_group: int | None = None,
        session: int | None = None,
        born_after_ticks: int | None = None,
        within_directory: str | None = None,
    ) -> None:
        """Signal all of ``lives``, and whoever else is in that unit (see ``UnitOrder``); nobody of them is reaped.

        The answer comes out of ``take_unit_killed``. Those worth reaping are to be submitted before.
        """
        order = UnitOrder(tuple(lives), cgroup_directory, process_group, session, born_after_ticks, within_directory)
        self._side.ask_unit(order)
        self._put_to_work(now_ns)

    def take_unit_killed(self) -> list[UnitKilled]:
        """The units that are done since the last call."""
        return self._side.take_unit_killed()

    def reclaim(
        self,
        bytes_wanted: int,
        now_ns: int,
        *,
        directory: str | None = None,
        life: Identity | None = None,
        handle: int | None = None,
    ) -> None:
        """Have the kernel move memory out: of the group ``directory`` (v2), or of ``life``, whose pidfd is ``handle``.

        One answer comes out of ``take_reclaimed``, also when no worker was to spare; ``handle`` stays open until then.
        """
        self._side.ask_reclaim(ReclaimOrder(bytes_wanted, directory, life), handle, now_ns)
        self._put_to_work(now_ns)

    def take_reclaimed(self) -> list[Reclaimed]:
        """The reclaims that are done since the last call."""
        return self._side.take_reclaimed()


def _job(kind: JobKind, order: Order) -> Job:
    return Job(kind, 0, None, order=order)
