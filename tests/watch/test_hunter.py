"""How a victim is taken: what is told, in which order, and that each pidfd is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from oomreaper.model.event import Event, EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.plan import Hooks, KillUnit, Victims
from oomreaper.reaper.handoff import Entry
from oomreaper.watch.mind.hunt import State
from tests.reaper.fakes import sharer
from tests.watch.fakes import KILL, LOW, Body, FakeEnforcer, World, make_plan

if TYPE_CHECKING:
    from oomreaper.model.memory import ChargedMemory
    from oomreaper.model.process import Scouting

GROUPS = Victims(unit=KillUnit.GROUP, honour_oom_group=False, honour_xattrs=False)


def short_world(*rules: object, **changes: object) -> World:
    """A machine on which 6,000 and 3,700 MiB are held: 3 % is left."""
    world = World(make_plan(*rules, **changes))  # type: ignore[arg-type] # rules and fields of Plan
    world.machine.born(100, 6000)
    world.machine.born(101, 3700)
    return world


def kinds(world: World) -> list[str]:
    """What was told."""
    return [told.kind for told in world.voice.told]


def test_a_victim_is_announced_and_its_files_left_alone_before_its_signal() -> None:
    """Companions come first; and whoever reads a dying process may have to tear its memory down."""
    world = short_world(KILL)
    alone: list[bool] = []
    submit = world.actor.submit

    def see(scouting: Scouting, handle: int, now_ns: int) -> Entry:
        alone.append(scouting.process.identity in world.machine.left_alone and bool(world.voice.of("announce")))
        return submit(scouting, handle, now_ns)

    world.actor.submit = see  # type: ignore[method-assign] # to look on
    world.run(100)

    assert alone == [True]


def test_who_was_refused_is_read_again() -> None:
    """The reaper refused it, nobody was signalled: the census may read it, and it may be chosen later."""
    world = short_world(KILL)
    world.run(1)
    identity = Identity(100, 7)
    outcome = Outcome(100, 7, b"hog", OutcomeKind.REFUSED)
    world.hunter.on_event(Event(EventKind.SETTLED, identity, world.now_ns, outcome=outcome), world.now_ns)

    assert identity not in world.machine.left_alone
    assert not world.hunter.is_hunted(identity)


def test_a_victim_that_exits_before_its_outcome_is_read_leaves_no_pidfd() -> None:
    """The pidfd fires while the outcome ("still dying") waits to be brought: there will be no second firing."""
    world = short_world(KILL)
    hog = world.machine.bodies[100]
    hog.on_kill = "reap"
    world.run(1)
    (hunt,) = world.hunter.open_hunts
    (worker,) = world.workers.jobs
    job = world.workers.jobs[worker][0]
    report = world.answer(job, hog)
    assert report is not None
    world.workers.finish(worker)
    world.crew.on_report(worker, report, world.now_ns)

    assert hunt.handle is not None
    world.hunter.on_exit(hunt.handle, world.now_ns)
    world.handles.watched.discard(hunt.handle)
    world.machine.gone(hog)
    world.team.collect(world.now_ns)

    assert hunt.outcome is not None
    assert hunt.outcome.still_dying
    assert hunt.handle not in world.handles.open_handles


def test_that_it_was_signalled_is_told_before_that_it_left() -> None:
    """SIGTERM is sent when a hook ends, and the victim is gone before that is brought: killed, then settled."""
    world = short_world(LOW, hooks=Hooks(pre_kill=("/bin/hook",)))
    world.run(50)
    (hunt,) = world.hunter.open_hunts
    assert hunt.hook is not None
    assert hunt.handle is not None

    world.hunter.on_acknowledged(hunt.hook, world.now_ns)
    world.team.on_exit(hunt.handle, world.now_ns)

    assert kinds(world) == ["announce", "killed", "settled"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, []),
        (3, ["the pre-kill hook ended with status 3"]),
        (127, ["the pre-kill hook could not be started"]),
        (-9, ["the pre-kill hook did not end in 200 ms"]),
        (None, ["the pre-kill hook was not run: too many at once"]),
    ],
)
def test_how_the_hook_ended_is_told_and_the_kill_goes_on(status: int | None, said: list[str]) -> None:
    """Whatever became of it; whether the clerk ended it at its deadline or our own clock makes no difference."""
    world = short_world(KILL, hooks=Hooks(pre_kill=("/bin/hook",)))
    world.run(50)
    (hunt,) = world.hunter.open_hunts
    assert hunt.hook is not None

    world.hunter.on_acknowledged(hunt.hook, world.now_ns, status=status)

    assert [told.text for told in world.voice.of("warning")] == said
    assert hunt.state is State.STRUCK


def test_the_time_of_a_leaver_runs_from_the_signal() -> None:
    """The hook held it for 50 ms, SIGTERM ended it in 1 ms: 1 ms is told."""
    world = short_world(LOW, hooks=Hooks(pre_kill=("/bin/hook",)))
    world.run(50)
    (hunt,) = world.hunter.open_hunts
    assert hunt.hook is not None
    world.hunter.on_acknowledged(hunt.hook, world.now_ns)
    world.run(10)
    (settled,) = world.voice.of("settled")

    assert settled.outcome is not None
    assert settled.outcome.elapsed_ms == 1.0


def test_a_follower_that_was_announced_has_a_record_of_its_end() -> None:
    """It shares the memory of the victim beside which it is reaped: the crew has that already, and it is told."""
    world = World(make_plan(KILL, victims=GROUPS))
    for pid in (100, 101):
        world.machine.born(pid, 4950 - pid, process_group=100, session=100)
    scout = Body.scouting

    def with_sharer(body: Body, charged: ChargedMemory) -> Scouting:
        other = 201 - body.identity.pid
        return scout(body, charged)._replace(sharers=(sharer(other),))

    for body in world.machine.bodies.values():
        body.scouting = with_sharer.__get__(body)  # type: ignore[method-assign] # a look that finds its sharer
        body.on_kill = "reap"
    world.run(100)
    announced = [told.pid for told in world.voice.of("announce") if told.pid is not None]
    ended = [told.pid for told in world.voice.of("settled", "skipped") if told.pid is not None]

    assert sorted(announced) == [100, 101]
    assert sorted(ended) == [100, 101]


def test_all_of_a_unit_are_asked_with_the_victim() -> None:
    """SIGTERM goes to each member, through a pidfd of that very life that is closed again."""
    world = World(make_plan(LOW, victims=GROUPS))
    for pid in range(100, 105):
        world.machine.born(pid, 1940, process_group=100, session=100, on_term="ignore")
    world.run(100)

    assert {identity.pid for _, identity in world.signalled} == set(range(100, 105))
    assert len(world.handles.open_handles) <= 4


def test_who_cannot_be_signalled_is_skipped_with_the_errno() -> None:
    """EPERM to SIGTERM: told, set aside, and the next one is asked."""
    world = short_world(LOW)
    terminate = world.actor.terminate

    def refuse(identity: Identity, handle: int, now_ns: int) -> int:
        return 1 if identity.pid == 100 else terminate(identity, handle, now_ns)

    world.actor.terminate = refuse  # type: ignore[method-assign] # EPERM for one
    world.run(3_000)
    skipped = [told.text for told in world.voice.of("skipped") if told.pid == 100]

    assert skipped == ["it cannot be signalled (EPERM)"]
    assert [identity.pid for _, identity in world.signalled] == [101]


def test_an_acknowledgement_of_another_hook_changes_nothing() -> None:
    """Only its own hook lets a victim go on; a hook that is acknowledged twice does nothing the second time."""
    world = short_world(KILL, hooks=Hooks(pre_kill=("/bin/hook",)))
    world.run(50)
    (hunt,) = world.hunter.open_hunts
    world.hunter.on_acknowledged("test-9/9", world.now_ns)
    held = hunt.state
    assert hunt.hook is not None
    world.hunter.on_acknowledged(hunt.hook, world.now_ns)
    world.hunter.on_acknowledged(hunt.hook, world.now_ns)

    assert held is State.HELD
    assert hunt.state is State.STRUCK


def test_victims_that_settled_and_do_not_go_keep_a_bounded_number_of_pidfds() -> None:
    """Their pidfds are kept so that their mark can be cleared; of many the oldest is let go of."""
    world = World(make_plan(KILL))
    world.machine.eaten_mib["machine"] = 9_700 - 150
    for number in range(80):
        pid = 100 + number
        world.at(500 * number, lambda pid=pid: world.machine.born(pid, 150, on_kill="reap"))  # type: ignore[misc]
        world.at(500 * number + 1, lambda: world.watcher.look("machine", world.now_ns))
    world.run(41_000)
    settled = len(world.voice.of("settled"))

    assert settled == 80
    assert len(world.hunter._graves) == 64
    assert len(world.handles.open_handles) <= 64 + 12


def test_the_mark_of_a_late_leaver_is_cleared_when_it_goes() -> None:
    """Reaped and still dying: it is marked as served until it exits, and then forgotten, and its pidfd closed."""
    world = short_world(KILL)
    hog = world.machine.bodies[100]
    hog.on_kill = "reap"
    world.run(1_000)
    marked = world.crew.has_served(hog.identity)
    world.exit(hog)
    world.run(10_000)

    assert marked
    assert not world.crew.has_served(hog.identity)
    assert world.handles.open_handles == {}


def test_too_many_victims_at_once_are_told_so() -> None:
    """The reaper's queue is full: skipped, set aside, and its pidfd closed."""
    world = short_world(KILL)
    world.actor.submit = lambda *_: Entry.FULL  # type: ignore[method-assign] # a full queue
    world.run(100)
    texts = [told.text for told in world.voice.of("skipped") if told.pid == 100]

    assert texts == ["too many victims at once"]
    assert Identity(100, 7) not in world.machine.left_alone


def test_an_event_about_nobody_is_no_error() -> None:
    """Of a life that is not hunted, or of none: nothing happens but a warning told."""
    world = World()
    world.hunter.on_event(Event(EventKind.KILLED, Identity(5, 5), 0), 0)
    world.hunter.on_event(Event(EventKind.SETTLED, Identity(5, 5), 0, outcome=Outcome(5, 5, b"", None)), 0)
    world.hunter.on_event(Event(EventKind.WARNING, None, 0, "a worker ended"), 0)

    assert [(told.kind, told.text) for told in world.voice.told] == [("warning", "a worker ended")]
    assert world.hunter.on_exit(99, 0) is None


def test_a_fake_enforcer_is_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double answers as the real one: ESRCH for who has gone."""
    world = World()
    body = world.machine.born(100, 10)
    handle = world.handles.open(100)
    assert handle is not None
    world.machine.gone(body)
    monkeypatch.setattr(world, "signalled", [])

    assert FakeEnforcer(world).terminate(body.identity, handle, 0) == 3
    assert world.signalled == []


def test_a_look_that_was_lost_is_taken_up_again_and_nobody_else_pays() -> None:
    """Its worker ended twice before it could tell: the largest dies all the same, and not the next one in its place."""
    world = short_world(KILL)
    largest = world.machine.bodies[100]
    looks = []

    def lose_two(body: Body) -> None:
        if body is largest:
            looks.append(world.now_ns)
            body.on_look = "refuse" if len(looks) <= 2 else "answer"

    world.on_scout.append(lose_two)
    world.run(300)

    assert len(looks) >= 3
    assert [told.pid for told in world.voice.of("announce")] == [100]
