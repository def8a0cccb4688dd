"""When it looks, what it decides, and what it says of what it does not do."""

from __future__ import annotations

import pytest

from oomreaper.model.plan import MACHINE
from tests.policy.shortage import rule
from tests.watch.fakes import GROUP_KILL, KILL, LOW, MIB, MS, SECOND, START_NS, World, make_plan


def short_world(*rules: object, **changes: object) -> World:
    """A machine on which 6,000 and 3,700 MiB are held: 3 % is left."""
    world = World(make_plan(*rules, **changes))  # type: ignore[arg-type] # rules and fields of Plan
    world.machine.born(100, 6000)
    world.machine.born(101, 3700)
    return world


def test_a_calm_machine_is_looked_at_once_a_second() -> None:
    """No blind second, and no more than that while nothing is near."""
    world = World()
    world.machine.born(100, 500)
    world.run(10_000)

    assert 10 <= world.watcher.looks <= 12


def test_calm_scopes_share_their_wake_ups() -> None:
    """A machine and ten groups with plenty: two wake-ups a second at most, whenever each of them came."""
    world = World(make_plan(GROUP_KILL))
    world.machine.born(100, 500)
    for number in range(10):
        world.machine.groups[f"/job-{number}"] = 1000
        world.run(37)
    world.run(1_000)
    times = []
    for _ in range(60):
        deadline_ns = world.watcher.next_deadline_ns()
        assert deadline_ns is not None
        times.append(deadline_ns)
        world.run((deadline_ns - world.now_ns) / MS)

    assert (times[-1] - times[0]) / SECOND >= len(set(times)) / 2 - 1


def test_the_nearer_the_sooner() -> None:
    """Within twice the threshold: ten looks a second."""
    world = World()
    world.machine.born(100, 9_400)
    world.run(1_000)

    assert 10 <= world.watcher.looks <= 120


def test_a_machine_whose_numbers_cannot_be_read_is_asked_again_soon() -> None:
    """Blind for a moment: ten tries a second, no more, and the shortage is seen when it can be."""
    world = short_world(KILL)
    world.machine.unreadable.add(MACHINE)
    world.run(1_000)
    tries = world.watcher.looks
    world.machine.unreadable.clear()
    world.run(110)

    assert 9 <= tries <= 12
    assert len(world.voice.of("announce")) == 1


def test_a_hint_leads_to_a_look_and_only_numbers_to_a_decision() -> None:
    """Hints without a shortage: looks, and nothing else."""
    world = World()
    world.machine.born(100, 500)
    for _ in range(20):
        world.now_ns += MS
        world.watcher.look(MACHINE, world.now_ns)

    assert world.watcher.looks == 20
    assert world.watcher.decisions == 0
    assert world.voice.told == []


def test_what_has_ended_is_seen_to_before_a_hints_look_decides() -> None:
    """The one who was asked exits and a hint comes, in one turn: the next one is asked, not killed for the first."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"
    world.machine.bodies[101].on_term = "ignore"
    world.run(9_999)
    (hunt,) = world.hunter.open_hunts
    world.now_ns += 2 * MS
    world.machine.eaten_mib[MACHINE] = 6000
    world.machine.gone(world.machine.bodies[100])
    assert hunt.handle is not None
    world.team.on_exit(hunt.handle, world.now_ns)

    world.watcher.look(MACHINE, world.now_ns)
    world.run(100)

    assert [(name, identity.pid) for name, identity in world.signalled] == [("SIGTERM", 100), ("SIGTERM", 101)]


def test_incidents_have_ids_of_their_own_and_end_with_the_shortage() -> None:
    """Two shortages, two ids; all records of one carry its id."""
    world = short_world(LOW)
    world.run(5_000)
    world.machine.born(102, 6000)
    world.run(5_000)
    incidents = [(told.kind, told.incident) for told in world.voice.told]

    assert incidents == [(kind, f"test-{n}") for n in (1, 2) for kind in ("announce", "killed", "settled")]


def test_an_incident_stays_open_while_a_hunt_does() -> None:
    """Memory is back, and the one who was asked is still there: a second shortage meanwhile is the same incident."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"
    world.run(1_000)
    world.machine.bodies[101].mib = 100
    world.run(3_000)
    world.machine.bodies[101].mib = 3700
    world.run(12_000)

    assert {told.incident for told in world.voice.told if told.pid is not None} == {"test-1"}
    assert [name for name, _ in world.signalled] == ["SIGTERM", "SIGKILL"]


def test_what_is_not_done_is_told_once_a_shortage() -> None:
    """Nobody to choose from: once in each shortage."""
    world = World()
    world.machine.eaten_mib[MACHINE] = 9_700
    world.run(3_000)
    world.machine.eaten_mib[MACHINE] = 0
    world.run(3_000)
    world.machine.eaten_mib[MACHINE] = 9_700
    world.run(3_000)

    assert [told.text for told in world.voice.of("skipped")] == ["there is nobody to choose from"] * 2


def test_what_is_remembered_as_told_is_bounded() -> None:
    """A shortage of days brings ever new reasons: they are not kept without end."""
    world = World()
    world.run(10)
    state = world.watcher._scopes[MACHINE]
    for number in range(1_000):
        world.watcher._tell_once(state, MACHINE, f"reason {number}", "text", world.now_ns)

    assert len(state.told) <= 256
    assert len(world.voice.of("skipped")) == 1_000


def test_explain_sees_scopes_victims_and_the_kernels_kills() -> None:
    """What stands where, who is being taken, and that the kernel has just killed."""
    world = short_world(KILL, GROUP_KILL)
    world.machine.groups = {"/a": 1000}
    world.machine.bodies[100].on_kill = "stuck"
    world.run(50)
    world.machine.oom_kills["/a"] = 1
    world.watcher.look("/a", world.now_ns)
    views = world.watcher.views(world.now_ns)
    ranking = world.watcher.rank_now(MACHINE, world.now_ns)

    assert [view.sample.scope for view in views] == [MACHINE, "/a"]
    assert [(victim.identity.pid, victim.state) for victim in world.watcher.victims()] == [(100, "is being reaped")]
    assert world.watcher.kernel_kill_ns(world.now_ns) == world.now_ns
    assert world.watcher.kernel_kill_ns(world.now_ns + 2 * SECOND) is None
    assert ranking.best is not None
    assert ranking.best.process.identity.pid == 101
    assert world.watcher.rank_now("/nowhere", world.now_ns).ranked == ()


def test_a_rehearsal_decides_and_takes_nobody() -> None:
    """A walk through all of a decision in a shortage: nothing is told, nobody signalled, no hunt begun."""
    world = short_world(KILL)
    world.watcher.rehearse(world.now_ns)
    world.watcher.may_act = False
    world.run(10)
    world.watcher.rehearse(world.now_ns)

    assert world.voice.told == []
    assert world.hunter.open_hunts == ()
    assert world.signalled == []


def test_a_group_that_is_calm_is_not_followed() -> None:
    """Near its limit its members are known; when it is calm again they are let go of; the machine's are kept."""
    world = World(make_plan(KILL, GROUP_KILL))
    world.machine.groups = {"/a": 1000}
    body = world.machine.born(100, 930, group="/a")
    world.run(1_500)
    near = set(world.machine.censuses)
    body.mib = 100
    world.run(2_500)

    assert near == {MACHINE, "/a"}
    assert set(world.machine.censuses) == {MACHINE}


def test_a_second_shortage_of_one_who_was_asked_does_not_ask_another() -> None:
    """It was asked, memory came back and went again before it left: that it was asked still holds."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"
    world.run(1_000)
    world.machine.bodies[101].mib = 100
    world.run(2_000)
    world.machine.bodies[101].mib = 3700
    world.run(2_000)

    assert [(name, identity.pid) for name, identity in world.signalled] == [("SIGTERM", 100)]


@pytest.mark.parametrize(("limit", "expected_mib"), [(MACHINE, 500), ("/a", 50)])
def test_reclaim_asks_for_a_twentieth_of_the_scope(limit: str, expected_mib: int) -> None:
    """5 % of the machine, or of the group's limit."""
    world = World(make_plan(rule("mem_available < 4%", then=("reclaim",), scope="*" if limit == "/a" else MACHINE)))
    world.machine.groups = {"/a": 1000}
    world.machine.born(100, 970 if limit == "/a" else 9_700, group="/a")
    world.run(500)

    assert [(scope, wanted) for scope, _, wanted in world.machine.reclaims] == [(limit, expected_mib * MIB)]


def test_a_plan_without_rules_does_nothing() -> None:
    """The last plan of a watcher that ends: no more victims."""
    world = short_world(KILL)
    world.watcher.adopt(make_plan(KILL)._replace(rules=()))
    world.run(3_000)

    assert world.voice.told == []
    assert world.now_ns > START_NS
