"""A machine that never was, for the watcher's mind: scopes, processes and pidfds, and time that the test lets pass.

``FakeMachine`` implements ``watcher.Machine``, ``candidates.People``, ``hunter.Onlooker`` and ``team.Answers``;
``FakeCensus``, ``FakeHandles`` and ``FakeVoice`` their namesakes. ``World`` puts them together with the real Team,
Watcher, Candidates, Hunter, Scouts, Enforcer's double and Crew. Its workers answer what the machine holds.
What a fake was not taught it refuses: a pidfd that is closed twice or used after it was closed is an error.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.event import Event, EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.outcome import Outcome
from oomreaper.model.plan import MACHINE, Plan, Victims
from oomreaper.model.process import Process, Scouting
from oomreaper.model.sample import ProcessSample, Profile, ScopeSample
from oomreaper.policy.grammar import parse_condition
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import (
    Accounted,
    CouldNotLook,
    Helped,
    Inquired,
    JobKind,
    Probed,
    Profiled,
    ProfileOrder,
    ProfileRow,
    Reclaimed,
    Scouted,
    Struck,
    UnitKilled,
    UnitOrder,
)
from oomreaper.reaper.settings import Settings
from oomreaper.watch.mind.candidates import Candidates
from oomreaper.watch.mind.hunter import Hunter
from oomreaper.watch.mind.scouts import Scouts
from oomreaper.watch.mind.team import Team
from oomreaper.watch.mind.watcher import Watcher
from tests.policy.shortage import rule
from tests.reaper.fakes import HELLO, FakeWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oomreaper.model.decision import RankedProcess
    from oomreaper.model.plan import Rule
    from oomreaper.reaper.jobs import Job, Report
    from oomreaper.watch.mind.hunt import Hunt

MIB = 1 << 20
MS = 1_000_000
SECOND = 1_000 * MS
TOTAL_MIB = 10_000  # so that a per cent is 100 MiB
START_NS = 5_000 * SECOND
OURSELVES = Ourselves(frozenset({2, 3}), frozenset({4}), process_group=2, session=2)

LOW = rule("mem_available < 4%", then=("terminate", "kill after 10s or mem_available < 2%"))
KILL = rule("mem_available < 4%", then=("kill",))
GROUP_KILL = rule("mem_available < 4%", then=("kill",), scope="*")


class Body:
    """One life: what it holds, and how it takes signals.

    ``group`` is its control group. ``on_term``: what SIGTERM does ("exit", "ignore", or "release": it gives memory back
    and stays). ``on_kill``: what a strike does ("die", "reap": memory comes back and it stays; "stuck": nothing;
    "silent": the worker does not come back).
    """

    def __init__(self, pid: int, start: int, mib: float, *, group: str = "/", **traits: object) -> None:
        self.identity = Identity(pid, start)
        self.mib = mib
        self.group = group
        self.comm = b"hog"
        self.on_term = "exit"
        self.on_kill = "die"
        self.on_look = "answer"  # or "silent", or "refuse"
        self.oom_score_adj = 0
        self.process_group = self.session = pid
        self.profile: Profile | None = Profile(cgroup=group)
        self.growth_mib = 0.0
        self.age_seconds = 3600.0
        self.is_in_front = True  # whether a look into the census sees its size
        self.seen_mib = mib
        self.is_alive = True
        for name, value in traits.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def sample(self) -> ProcessSample:
        """As the census sees it."""
        return ProcessSample(
            self.identity,
            self.comm,
            1000,
            1,
            self.process_group,
            self.session,
            is_kernel_thread=False,
            is_dead=not self.is_alive,
            oom_score_adj=self.oom_score_adj,
            anon_bytes=int(self.seen_mib * MIB),
            swap_bytes=0,
            page_table_bytes=0,
            shmem_bytes=0,
            growth_bytes=int(self.growth_mib * MIB),
            age_seconds=self.age_seconds,
            profile=self.profile,
        )

    def memory(self) -> VictimMemory:
        """As a worker sees it."""
        return VictimMemory(int(self.mib * MIB), 0, 0, 0, 0)

    def scouting(self, charged: ChargedMemory) -> Scouting:
        """A look at it."""
        process = Process(
            self.identity,
            self.comm,
            "S",
            1,
            self.process_group,
            self.session,
            1000,
            1,
            self.oom_score_adj,
            is_kernel_thread=False,
            is_dumping_core=False,
            is_dead=not self.is_alive,
            signal_errno=0,
        )
        return Scouting(process, self.memory(), charged, (), can_compare=True)


class FakeCensus:
    """Who is in a scope. A look sees the size only of who is in the front; a sweep and a refresh of all."""

    def __init__(self, machine: FakeMachine, scope: str) -> None:
        self._machine = machine
        self._scope = scope
        self._seen: dict[Identity, ProcessSample] = {}
        self._explained_bytes = 0
        self._has_swept = False
        self.forgotten: set[Identity] = set()
        self.calls: list[str] = []

    def _members(self) -> list[Body]:
        return [body for body in self._machine.members_of(self._scope) if body.identity not in self.forgotten]

    def _read(self, bodies: Iterable[Body]) -> None:
        self._explained_bytes = 0
        for body in bodies:
            before = self._seen.get(body.identity)
            body.seen_mib = body.mib
            self._seen[body.identity] = body.sample()
            self._explained_bytes += self._seen[body.identity].gain_bytes - (before.gain_bytes if before else 0)

    def look(self, now_ns: int, *, budget: int, is_swap_used: bool = False) -> None:  # noqa: ARG002 - as the seam has it
        """The front."""
        self.calls.append(f"look {budget}")
        self._has_swept = False
        members = self._members()
        self._seen = {body.identity: self._seen[body.identity] for body in members if body.identity in self._seen}
        self._read(body for body in members if body.is_in_front)

    def sweep(self, now_ns: int, *, is_swap_used: bool = False) -> None:  # noqa: ARG002 - as the seam has it
        """Everybody."""
        self.calls.append("sweep")
        self._has_swept = True
        self._seen.clear()
        self._read(self._members())

    def refresh(self, identities: Iterable[Identity], now_ns: int, *, is_swap_used: bool = False) -> None:  # noqa: ARG002 - as the seam has it
        """These."""
        for identity in identities:
            body = self._machine.bodies.get(identity.pid)
            if body is None or body.identity != identity:
                self._seen.pop(identity, None)
            elif identity in self._seen:
                body.seen_mib = body.mib
                self._seen[identity] = body.sample()

    def processes(self, *, largest: int | None = None) -> list[ProcessSample]:
        """Who was seen."""
        return sorted(self._seen.values(), key=lambda sample: sample.gain_bytes, reverse=True)[:largest]

    def find(self, identity: Identity) -> ProcessSample | None:
        """One life."""
        return self._seen.get(identity)

    def unseen_growth_bytes(self, fall_bytes: int) -> int:
        """What nobody was seen to take since the last look."""
        return 0 if self._has_swept else max(fall_bytes - self._explained_bytes, 0)

    def without_profile(self, limit: int) -> list[Identity]:
        """Who has none."""
        return [identity for identity, sample in self._seen.items() if sample.profile is None][:limit]

    def set_profile(self, identity: Identity, profile: Profile) -> None:
        """Note it."""
        if identity in self._seen:
            self._seen[identity] = self._seen[identity]._replace(profile=profile)


class FakeMachine:
    """Scopes and processes. Memory that processes hold is missing from what is available."""

    def __init__(self) -> None:
        self.bodies: dict[int, Body] = {}
        self.groups: dict[str, int] = {}  # limit in MiB, by path
        self.eaten_mib: dict[str, float] = {}  # taken by nobody, by scope
        self.oom_kills: dict[str, int] = {}
        self.censuses: dict[str, FakeCensus] = {}
        self.unreadable: set[str] = set()
        self.profiled: list[tuple[Identity, Profile | None]] = []
        self.asked_profiles: list[Identity] = []
        self.reclaims: list[tuple[str, Identity | None, int]] = []
        self.left_alone: set[Identity] = set()
        self.crew: Crew | None = None
        self.scans = 0

    def born(self, pid: int, mib: float, *, start: int = 7, **traits: object) -> Body:
        """Somebody new, who takes over the pid."""
        body = self.bodies[pid] = Body(pid, start, mib, **traits)  # type: ignore[arg-type] # traits of Body
        return body

    def gone(self, body: Body) -> None:
        """A life is over."""
        body.is_alive = False
        body.mib = 0
        if self.bodies.get(body.identity.pid) is body:
            del self.bodies[body.identity.pid]

    def members_of(self, scope: str) -> list[Body]:
        """Who is in a scope."""
        return [body for body in self.bodies.values() if scope in (MACHINE, body.group)]

    def used_mib(self, scope: str) -> float:
        """What is taken."""
        return sum(body.mib for body in self.members_of(scope)) + self.eaten_mib.get(scope, 0)

    def scopes(self) -> list[str]:
        """The machine and its groups."""
        return [MACHINE, *self.groups]

    def read(self, scope: str, now_ns: int) -> ScopeSample | None:
        """The numbers."""
        if scope in self.unreadable or scope not in self.scopes():
            return None
        total_mib = TOTAL_MIB if scope == MACHINE else self.groups[scope]
        available_mib = max(0.0, total_mib - self.used_mib(scope))
        return ScopeSample(
            scope, now_ns, total_mib * MIB, int(available_mib * MIB), oom_kills=self.oom_kills.get(scope, 0)
        )

    def charged(self, body: Body) -> ChargedMemory:
        """What is charged to its group."""
        return ChargedMemory(int(self.used_mib(MACHINE) * MIB), 0, body.group, int(self.used_mib(MACHINE) * MIB))

    def reclaim(self, scope: str, identity: Identity | None, wanted_bytes: int, now_ns: int) -> None:  # noqa: ARG002 - as the seam has it
        """Note it."""
        self.reclaims.append((scope, identity, wanted_bytes))

    def forget(self, identity: Identity) -> None:
        """As the real one."""
        assert self.crew is not None
        self.crew.forget(identity)

    def census(self, scope: str) -> FakeCensus:
        """Made when asked for."""
        return self.censuses.setdefault(scope, FakeCensus(self, scope))

    def has_census(self, scope: str) -> bool:
        """Whether it was made."""
        return scope in self.censuses

    def drop_census(self, scope: str) -> None:
        """Forget it."""
        self.censuses.pop(scope, None)

    def profile(self, lives: tuple[Identity, ...], now_ns: int) -> None:
        """By a worker."""
        assert self.crew is not None
        self.asked_profiles += lives
        self.crew.profile(lives, now_ns)

    def pids_of(self, group: str) -> list[int]:
        """Who is in it."""
        return [body.identity.pid for body in self.bodies.values() if body.group == group]

    def has_served(self, identity: Identity) -> bool:
        """As the crew says."""
        assert self.crew is not None
        return self.crew.has_served(identity)

    def leave_alone(self, identity: Identity) -> None:
        """It is not read any more."""
        self.left_alone.add(identity)
        for census in self.censuses.values():
            census.forgotten.add(identity)
            census._seen.pop(identity, None)

    def readmit(self, identity: Identity) -> None:
        """It is read again."""
        self.left_alone.discard(identity)
        for census in self.censuses.values():
            census.forgotten.discard(identity)

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """From the crew."""
        assert self.crew is not None
        return self.crew.take_profiled()

    def take_reclaimed(self) -> list[Reclaimed]:
        """From the crew."""
        assert self.crew is not None
        return self.crew.take_reclaimed()


class FakeHandles:
    """Pidfds: numbers that name one life, and are given out again as the kernel does, the lowest first."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self.open_handles: dict[int, Body] = {}
        self.watched: set[int] = set()
        self.limit = 1000
        self.opened = self.closed = 0

    def open(self, pid: int) -> int | None:
        """A pidfd of whoever holds the pid now."""
        body = self._machine.bodies.get(pid)
        if body is None or len(self.open_handles) >= self.limit:
            return None
        handle = next(number for number in range(10, 10_000) if number not in self.open_handles)
        self.open_handles[handle] = body
        self.opened += 1
        return handle

    def open_life(self, identity: Identity) -> int | None:
        """A pidfd of this very life."""
        body = self._machine.bodies.get(identity.pid)
        return self.open(identity.pid) if body is not None and body.identity == identity else None

    def close(self, handle: int) -> None:
        """Close it, once."""
        assert handle in self.open_handles, f"pidfd {handle} is closed already"
        del self.open_handles[handle]
        self.watched.discard(handle)
        self.closed += 1

    def watch(self, handle: int) -> None:
        """Its exit is told."""
        assert handle in self.open_handles
        self.watched.add(handle)


class Told(NamedTuple):
    """One record."""

    kind: str
    at_ms: float
    pid: int | None = None
    text: str = ""
    scope: str | None = None
    incident: str | None = None
    hook: str | None = None
    outcome: Outcome | None = None
    identity: Identity | None = None
    members: tuple[Identity, ...] = ()


class FakeVoice:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def of(self, *kinds: str) -> list[Told]:
        """The records of some kinds."""
        return [told for told in self.told if told.kind in kinds]

    def _tell(self, kind: str, now_ns: int, hunt: Hunt | None, text: str = "", **more: object) -> None:
        identity = None if hunt is None else hunt.identity
        pid = None if identity is None else identity.pid
        if hunt is not None:
            more = {"scope": hunt.scope, "incident": hunt.incident} | more
        at_ms = (now_ns - START_NS) / MS
        self.told.append(Told(kind, at_ms, pid, text, identity=identity, **more))  # type: ignore[arg-type] # of Told

    def announce(self, hunt: Hunt, *, signal_name: str, hook: str | None, now_ns: int) -> None:
        """Keep it."""
        members = tuple(member.identity for member in hunt.members)
        self._tell("announce", now_ns, hunt, signal_name, hook=hook, members=members)

    def killed(self, hunt: Hunt, *, signal_name: str, now_ns: int) -> None:
        """Keep it."""
        self._tell("killed", now_ns, hunt, signal_name)

    def settled(self, hunt: Hunt, outcome: Outcome, now_ns: int) -> None:
        """Keep it."""
        self._tell("settled", now_ns, hunt, outcome.reason, outcome=outcome)

    def skipped(self, text: str, *, scope: str, incident: str | None, hunt: Hunt | None, now_ns: int) -> None:
        """Keep it."""
        self._tell("skipped", now_ns, hunt, text, scope=scope, incident=incident)

    def warning(self, text: str, *, scope: str | None, incident: str | None, now_ns: int) -> None:
        """Keep it."""
        self._tell("warning", now_ns, None, text, scope=scope, incident=incident)


class FakeEnforcer:
    """Acts on the bodies of a world; keeps the contract of ``actors.Enforcer``."""

    is_dry_run = False

    def __init__(self, world: World) -> None:
        self._world = world
        self._events: list[Event] = []

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:
        """SIGTERM."""
        body = self._world.handles.open_handles[handle]
        if not body.is_alive:
            return errno.ESRCH
        self._world.on_signal("SIGTERM", body)
        self._events.append(Event(EventKind.KILLED, identity, now_ns, "SIGTERM"))
        if body.on_term == "exit":
            self._world.exit_soon(body)
        elif body.on_term == "release":
            body.mib = 5
        return 0

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """By the crew."""
        return self._world.crew.submit(scouting, handle, now_ns)

    def kill_unit(
        self,
        ranked: RankedProcess,
        others: tuple[ProcessSample, ...],
        *,
        scope: str,  # noqa: ARG002 - as the seam has it
        is_whole: bool,
        now_ns: int,
    ) -> None:
        """By the crew."""
        self._world.units.append((ranked.unit_key, tuple(other.identity for other in others), is_whole))
        self._world.crew.kill_unit(tuple(other.identity for other in others), now_ns)

    def take_events(self) -> list[Event]:
        """What it did."""
        taken, self._events = self._events, []
        return taken


class FakePretender(FakeEnforcer):
    """Keeps the contract of ``actors.Pretender``; tests/watch/test_actors.py proves the real one."""

    is_dry_run = True

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:  # noqa: ARG002 - as the seam has it
        """Say so."""
        outcome = Outcome(identity.pid, identity.start_time_ticks, None, None, reason="would have been asked")
        self._events.append(Event(EventKind.SETTLED, identity, now_ns, outcome=outcome))
        return 0

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:  # noqa: ARG002 - as the seam has it
        """Say so."""
        identity = scouting.process.identity
        outcome = Outcome(identity.pid, identity.start_time_ticks, None, None, reason="would have been killed")
        self._events.append(Event(EventKind.SETTLED, identity, now_ns, outcome=outcome))
        return Entry.QUEUED

    def kill_unit(
        self, ranked: RankedProcess, others: tuple[ProcessSample, ...], *, scope: str, is_whole: bool, now_ns: int
    ) -> None:
        """Nobody."""


def make_plan(*rules: Rule, **changes: object) -> Plan:
    """A plan whose critical floor is 2 %, whose victims hold 1 % or more, and which looks at no profiles."""
    victims = Victims(honour_oom_group=False, honour_xattrs=False)
    plan = Plan(rules or (KILL,), victims, parse_condition("mem_available < 2%"))
    return plan._replace(**changes)  # type: ignore[arg-type] # each test names fields of Plan


class World:
    """Everything, and time. ``run`` lets it pass; workers answer 1 ms after they were asked."""

    def __init__(self, plan: Plan | None = None, *, is_dry_run: bool = False) -> None:
        self.now_ns = START_NS
        self.machine = FakeMachine()
        self.handles = FakeHandles(self.machine)
        self.voice = FakeVoice()
        self.workers = FakeWorkers()
        self.signalled: list[tuple[str, Identity]] = []
        self.on_scout: list[Callable[[Body], None]] = []
        self.units: list[tuple[str, tuple[Identity, ...], bool]] = []
        self.turns = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._answering: dict[int, Job] = {}
        self._count = 0
        self.answer_ns = 1 * MS
        plan = plan or make_plan()
        self.crew = Crew(self.workers, Settings(timeout_ns=plan.timeout_ns))
        self.machine.crew = self.crew
        self.actor = FakePretender(self) if is_dry_run else FakeEnforcer(self)
        self.scouts = Scouts(self.crew, self.handles.open, self.handles.close)
        self.hunter = Hunter(
            plan,
            actor=self.actor,
            scouts=self.scouts,
            handles=self.handles,
            onlooker=self.machine,
            voice=self.voice,
            ourselves=lambda: OURSELVES,
        )
        self.candidates = Candidates(
            plan,
            people=self.machine,
            scouts=self.scouts,
            is_hunted=self.hunter.is_hunted,
            ourselves=lambda: OURSELVES,
            may_signal_uid=None,
        )
        self.watcher = Watcher(
            plan,
            machine=self.machine,
            candidates=self.candidates,
            hunter=self.hunter,
            voice=self.voice,
            boot_tag="test",
        )
        self.team = Team(
            self.watcher,
            hunter=self.hunter,
            scouts=self.scouts,
            crew=self.crew,
            actor=self.actor,
            candidates=self.candidates,
            answers=self.machine,
            voice=self.voice,
        )
        self.crew.start(self.now_ns)
        self.greet()

    # -- time ----------------------------------------------------------------------------------------------

    def at(self, milliseconds: float, action: Callable[[], object]) -> None:
        """Have something happen so long after now."""
        self._count += 1
        self._due.append((self.now_ns + int(milliseconds * MS), self._count, lambda: (action(), None)[1]))

    def run(self, milliseconds: float) -> None:
        """Let time pass as the daemon's loop does."""
        end_ns = self.now_ns + int(milliseconds * MS)
        self.team.on_time(self.now_ns)
        while True:
            self.turns += 1
            self.greet()
            self._take_jobs()
            deadline_ns = self.team.next_deadline_ns()
            moments = [at_ns for at_ns, _, _ in self._due]
            next_ns = min([*moments, *([] if deadline_ns is None else [deadline_ns]), self.now_ns + SECOND])
            # epoll counts in whole milliseconds and never wakes before a deadline; things that happen wake it at once
            if deadline_ns is not None and next_ns == deadline_ns and next_ns not in moments:
                next_ns = -(-next_ns // MS) * MS
            if next_ns > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns = max(self.now_ns, next_ns)
            for due in sorted(due for due in self._due if due[0] <= self.now_ns):
                self._due.remove(due)
                due[2]()
            self.team.collect(self.now_ns)
            self.team.on_time(self.now_ns)

    def greet(self) -> None:
        """New workers report for duty."""
        known = self.crew.services()
        for worker in sorted(self.workers.alive - known.keys()):
            self.crew.on_report(worker, HELLO, self.now_ns)

    def exit_soon(self, body: Body, milliseconds: float = 1) -> None:
        """It is on its way out."""
        self.at(milliseconds, lambda: self.exit(body))

    def exit(self, body: Body) -> None:
        """A life is over, and whoever watches it is told."""
        self.machine.gone(body)
        for handle in [handle for handle in self.handles.watched if self.handles.open_handles[handle] is body]:
            self.handles.watched.discard(handle)
            self.team.on_exit(handle, self.now_ns)

    def on_signal(self, name: str, body: Body) -> None:
        """Somebody was signalled."""
        self.signalled.append((name, body.identity))

    # -- workers -------------------------------------------------------------------------------------------

    def lose(self, worker: int) -> None:
        """Something kills a worker; what it was at is never answered."""
        self.workers.alive.discard(worker)
        self.workers.jobs.pop(worker, None)
        self._answering.pop(worker, None)
        self.crew.on_worker_exit(worker, self.now_ns, why="by SIGKILL", is_sandboxed=False)

    def _take_jobs(self) -> None:
        for worker, (job, handle) in list(self.workers.jobs.items()):
            if self._answering.get(worker) is not job:
                self._answering[worker] = job
                self._do(worker, job, handle)

    def _do(self, worker: int, job: Job, handle: int | None) -> None:
        assert handle is None or handle in self.handles.open_handles, f"{job.kind} with pidfd {handle}, which is closed"
        body = self.machine.bodies.get(job.pid) if handle is None else self.handles.open_handles.get(handle)
        report = self.answer(job, body)
        if report is not None:
            self.at(self.answer_ns / MS, lambda: self._report(worker, job, report))

    def _report(self, worker: int, job: Job, report: Report) -> None:
        if self.workers.jobs.get(worker, (None,))[0] is job:
            self._answering.pop(worker, None)
            self.workers.finish(worker)
            self.crew.on_report(worker, report, self.now_ns)

    def answer(self, job: Job, body: Body | None) -> Report | None:
        """What a worker finds and does; None: it does not come back."""
        match job.kind:
            case JobKind.SCOUT:
                return self._scout(job)
            case JobKind.STRIKE:
                return self._strike(body)
            case JobKind.PROBE:
                return Probed(body.memory() if body is not None and body.is_alive else None)
            case JobKind.ACCOUNT:
                assert body is not None
                return Accounted(body.memory() if body.is_alive else None, self.machine.charged(body))
            case JobKind.HELP:
                return Helped((), ())
            case JobKind.INQUEST:
                return Inquired(())
            case JobKind.PROFILE:
                assert isinstance(job.order, ProfileOrder)
                return Profiled(tuple(ProfileRow(life, self.profile_of(life)) for life in job.order.lives))
            case JobKind.KILL_UNIT:
                return self._kill_unit(job)
            case _:
                return Reclaimed(0, "nothing")

    def profile_of(self, life: Identity) -> Profile | None:
        """What a worker finds."""
        body = self.machine.bodies.get(life.pid)
        return Profile(comm_path(body), cgroup=body.group) if body is not None and body.identity == life else None

    def _scout(self, job: Job) -> Report | None:
        body = self.machine.bodies.get(job.pid)
        if body is None:
            return Scouted(None)
        for hook in self.on_scout:
            hook(body)
        body = self.machine.bodies.get(job.pid)
        if body is None:
            return Scouted(None)
        if body.on_look == "silent":
            return None
        if body.on_look == "refuse":
            return CouldNotLook("no memory")
        return Scouted(body.scouting(self.machine.charged(body)))

    def _strike(self, body: Body | None) -> Report | None:
        assert body is not None
        now_ns = self.now_ns
        if not body.is_alive:
            return Struck(errno.ESRCH, None, now_ns, now_ns, now_ns, None, is_dumping_core=False)
        self.on_signal("SIGKILL", body)
        if body.on_kill == "silent":
            return None
        if body.on_kill != "stuck":
            body.mib = 0
        left = body.memory()
        if body.on_kill == "die":
            self.exit_soon(body, 2)
        return Struck(0, 0, now_ns, now_ns, now_ns, left, is_dumping_core=False)

    def _kill_unit(self, job: Job) -> Report:
        assert isinstance(job.order, UnitOrder)
        killed = []
        for life in job.order.lives:
            body = self.machine.bodies.get(life.pid)
            if body is not None and body.identity == life:
                self.on_signal("SIGKILL", body)
                killed.append(life)
                if body.on_kill == "die":
                    self.exit_soon(body, 2)
        return UnitKilled(tuple(killed), (), 1, len(killed))


def comm_path(body: Body) -> bytes:
    """The program of a process."""
    return b"/usr/bin/" + body.comm
