"""The whole team in virtual time under whatever Hypothesis can think of: what must hold in every story."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oomreaper.model.outcome import OutcomeKind
from oomreaper.model.plan import Hooks, Plan
from oomreaper.watch.mind.hunt import State
from tests.policy.shortage import rule as ladder
from tests.watch.fakes import GROUP_KILL, KILL, LOW, MS, TOTAL_MIB, FakeEnforcer, World, make_plan

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.process import Scouting
    from oomreaper.reaper.handoff import Entry
    from tests.watch.fakes import Body

PIDS = st.integers(100, 107)
GROUPS = ("/a", "/b")
HOOKS = Hooks(pre_kill=("/bin/hook",), pre_kill_timeout_ns=200 * MS)
ASKING = ladder("mem_available < 10%", then=("warn", "reclaim", "terminate after 1s", "kill after 2s"), hold="1s")
PLANS: tuple[Plan, ...] = (
    make_plan(KILL, GROUP_KILL),
    make_plan(LOW, GROUP_KILL),
    make_plan(LOW, KILL, hooks=HOOKS),
    make_plan(ASKING, KILL, GROUP_KILL, hooks=HOOKS, timeout_ns=3_000 * MS),
    make_plan(ladder("mem_available < 10%", recovered=("mem_available > 30%",)), GROUP_KILL),
)
# The last hunt of all is over no later than this after the last event: its time-out, a look, the crew's budget.
PATIENCE_MS = 40_000
NOTHING_DONE = (OutcomeKind.REFUSED, OutcomeKind.GONE)


class StrictEnforcer(FakeEnforcer):
    """Acts, and complains when it should not have been told to."""

    def __init__(self, world: StrictWorld) -> None:
        super().__init__(world)
        self.strict = world

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:
        """Only who may be signalled."""
        self.strict.check_victim(identity, handle)
        return super().terminate(identity, handle, now_ns)

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """Only who may be killed."""
        self.strict.check_victim(scouting.process.identity, handle)
        return super().submit(scouting, handle, now_ns)


class StrictWorld(World):
    """Checks each act when it happens."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.actor = StrictEnforcer(self)
        self.hunter._actor = self.actor
        self.team._actor = self.actor
        self.seen = 0
        self.waiting: set[Identity] = set()  # announced, and without a record of the end
        self.served: set[Identity] = set()

    def check_victim(self, identity: Identity, handle: int) -> None:
        """Announced, not protected, not served before, and the very life that was meant."""
        self.read_records()
        body = self.handles.open_handles[handle]
        assert body.identity == identity, "the pidfd names somebody else"
        assert identity in self.waiting, "it was not announced"
        assert identity not in self.served, "it was served before"
        assert body.oom_score_adj != -1000, "it is protected"
        assert identity.pid not in {1, 2, 3, 4}, "it is one of ourselves"

    def on_signal(self, name: str, body: Body) -> None:
        """Announced before, whoever it is."""
        super().on_signal(name, body)
        self.read_records()
        assert body.identity in self.waiting, "it was signalled and not announced"

    def read_records(self) -> None:
        """Each announced victim gets one record of its end, and its signals are told in between."""
        while self.seen < len(self.voice.told):
            told = self.voice.told[self.seen]
            self.seen += 1
            if told.identity is None:
                continue
            match told.kind:
                case "announce":
                    assert told.identity not in self.waiting, "it was announced twice"
                    self.waiting.add(told.identity)
                case "killed":
                    assert told.identity in self.waiting, "it was signalled before it was announced"
                case "settled":
                    assert told.identity in self.waiting, "it settled twice"
                    self.waiting.discard(told.identity)
                    assert told.outcome is not None
                    if told.outcome.kind not in NOTHING_DONE:
                        self.served.add(told.identity)
                case _:
                    self.waiting.discard(told.identity)


class TeamMachine(RuleBasedStateMachine):
    """Memory falls and comes back; processes are born, grow, die, get protected; workers are lost; plans change."""

    def __init__(self) -> None:
        super().__init__()
        self.world = StrictWorld(PLANS[0])
        self.starts = 7
        self.world.machine.groups = {"/a": 2000}
        for pid, mib, group in (
            (100, 3000, "/"),
            (101, 2500, "/"),
            (102, 1500, "/a"),
            (103, 1500, "/"),
            (104, 800, "/"),
        ):
            self.world.machine.born(pid, mib, group=group)

    @rule(
        pid=PIDS,
        mib=st.sampled_from([20, 200, 1500, 4000, 9000]),
        group=st.sampled_from(["/", *GROUPS]),
        on_term=st.sampled_from(["exit", "exit", "ignore", "release"]),
        on_kill=st.sampled_from(["die", "die", "reap", "stuck", "silent"]),
        on_look=st.sampled_from(["answer", "answer", "answer", "refuse", "silent"]),
        is_in_front=st.booleans(),
    )
    def bear(self, pid: int, **traits: object) -> None:
        """Somebody new, perhaps under the number of somebody who ends for it."""
        old = self.world.machine.bodies.get(pid)
        if old is not None:
            self.world.exit(old)
        self.starts += 1
        self.world.machine.born(pid, start=self.starts, **traits)  # type: ignore[arg-type] # traits of Body

    @rule(pid=PIDS)
    def die(self, pid: int) -> None:
        """Somebody ends by itself."""
        if pid in self.world.machine.bodies:
            self.world.exit(self.world.machine.bodies[pid])

    @rule(pid=PIDS, factor=st.sampled_from([0.1, 0.5, 2.0, 5.0]))
    def grow(self, pid: int, factor: float) -> None:
        """Somebody takes more, or gives back."""
        if pid in self.world.machine.bodies:
            body = self.world.machine.bodies[pid]
            body.mib = min(12_000, body.mib * factor)

    @rule(pid=PIDS, oom_score_adj=st.sampled_from([-1000, 0, 500]))
    def adjust(self, pid: int, oom_score_adj: int) -> None:
        """Somebody gets protected, or no longer is."""
        if pid in self.world.machine.bodies:
            self.world.machine.bodies[pid].oom_score_adj = oom_score_adj

    @rule(mib=st.sampled_from([0, 300, 400, 2000, 4000, 6000, 8500]), scope=st.sampled_from(["machine", *GROUPS]))
    def eat(self, mib: int, scope: str) -> None:
        """Memory goes, or comes, that nobody holds."""
        self.world.machine.eaten_mib[scope] = mib if scope == "machine" else mib / 20

    @rule(scope=st.sampled_from(["machine", *GROUPS]))
    def kill_by_kernel(self, scope: str) -> None:
        """The kernel's own killer was there."""
        self.world.machine.oom_kills[scope] = self.world.machine.oom_kills.get(scope, 0) + 1

    @rule(scope=st.sampled_from(["machine", *GROUPS]))
    def hint(self, scope: str) -> None:
        """The kernel gives a hint, perhaps of a group that has just gone."""
        self.world.watcher.look(scope, self.world.now_ns)

    @rule(scope=st.sampled_from(["machine", *GROUPS]), can_read=st.booleans())
    def blind(self, scope: str, can_read: bool) -> None:  # noqa: FBT001 - drawn by name
        """Numbers cannot be read, or can again."""
        (self.world.machine.unreadable.discard if can_read else self.world.machine.unreadable.add)(scope)

    @rule(group=st.sampled_from(GROUPS), limit_mib=st.sampled_from([None, 500, 2000]), is_told=st.booleans())
    def limit(self, group: str, limit_mib: int | None, is_told: bool) -> None:  # noqa: FBT001 - drawn by name
        """A group comes, changes its limit, or goes; that it went may be told or not."""
        if limit_mib is not None:
            self.world.machine.groups[group] = limit_mib
        elif self.world.machine.groups.pop(group, None) is not None and is_told:
            self.world.watcher.forget_scope(group)

    @rule(plan=st.sampled_from(PLANS))
    def reload(self, plan: Plan) -> None:
        """A new plan."""
        self.world.watcher.adopt(plan)

    @rule()
    def acknowledge(self) -> None:
        """Whatever hook runs ends; and one that nobody knows."""
        for hunt in self.world.hunter.open_hunts:
            if hunt.hook is not None:
                self.world.hunter.on_acknowledged(hunt.hook, self.world.now_ns)
        self.world.hunter.on_acknowledged("test-1/999", self.world.now_ns)

    @precondition(lambda self: self.world.workers.alive)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        """A worker ends by itself."""
        worker = data.draw(st.sampled_from(sorted(self.world.workers.alive)))
        self.world.workers.alive.discard(worker)
        self.world.workers.jobs.pop(worker, None)
        self.world.crew.on_worker_exit(worker, self.world.now_ns, why="by SIGKILL", is_sandboxed=False)

    @rule(
        can_start=st.booleans(), limit=st.sampled_from([0, 2, 1000, 1000, 1000]), answer_ms=st.sampled_from([1, 30, 90])
    )
    def strain(self, can_start: bool, limit: int, answer_ms: int) -> None:  # noqa: FBT001 - drawn by name
        """Forks and descriptors fail, or not; workers are slow, or not."""
        self.world.workers.can_start = can_start
        self.world.handles.limit = limit
        self.world.answer_ns = answer_ms * MS

    @rule(shortage=st.sampled_from([150, 350]), milliseconds=st.sampled_from([1, 5, 50, 1_000]))
    def run_short(self, shortage: int, milliseconds: int) -> None:
        """So much is taken that just so much is left; and time passes."""
        machine = self.world.machine
        machine.eaten_mib["machine"] = 0
        machine.eaten_mib["machine"] = max(0, TOTAL_MIB - shortage - machine.used_mib("machine"))
        self.wait(milliseconds)

    @rule(milliseconds=st.sampled_from([0, 1, 5, 50, 250, 1_000, 5_000]))
    def wait(self, milliseconds: int) -> None:
        """Time passes, in a bounded number of turns."""
        before = self.world.turns
        self.world.run(milliseconds)

        assert self.world.turns - before <= 100 + 4 * milliseconds, "it turns on the spot"

    @invariant()
    def one_victim_at_a_time(self) -> None:
        """Of the open hunts of a scope all but one were begun below the critical floor."""
        for scope in ("machine", *GROUPS):
            hunts = [hunt for hunt in self.world.hunter.hunts_in(scope) if not hunt.follows]

            assert sum(not hunt.is_urgent for hunt in hunts) <= 1

    @invariant()
    def records_are_in_order(self) -> None:
        """Announce, killed, end."""
        self.world.read_records()
        announced = {hunt.identity for hunt in self.world.hunter.open_hunts if hunt.announced_ns is not None}

        assert self.world.waiting == announced

    @invariant()
    def every_hunt_waits_for_something(self) -> None:
        """An open hunt has a deadline, of its own or of the crew."""
        for hunt in self.world.hunter.open_hunts:
            if hunt.state is State.STRUCK:
                assert hunt.identity in self.world.crew.open_victims or self.world.crew._events
            else:
                assert hunt.deadline_ns is not None

    def teardown(self) -> None:
        """Left to itself with memory to spare every hunt ends with a record, and every pidfd is given back."""
        self.strain(can_start=True, limit=1000, answer_ms=1)
        self.world.machine.unreadable.clear()
        self.world.machine.groups.clear()
        self.world.machine.eaten_mib.clear()
        for body in list(self.world.machine.bodies.values()):
            body.mib = min(body.mib, 10)
        self.wait(PATIENCE_MS)
        self.records_are_in_order()

        assert self.world.hunter.open_hunts == ()
        assert self.world.waiting == set()

        for body in list(self.world.machine.bodies.values()):
            self.world.exit(body)
        for body in list(self.world.handles.open_handles.values()):
            self.world.exit(body)
        self.wait(10_000)

        assert self.world.handles.open_handles == {}
        assert self.world.handles.opened == self.world.handles.closed


TeamMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestTeamMachine = TeamMachine.TestCase
