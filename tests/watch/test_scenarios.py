"""Stories: the whole team in virtual time, from a shortage to memory that came back, or to why nothing was done.

The machine has 10,000 MiB, so that a per cent is 100 MiB; a rule fires below 4 %, the critical floor is 2 %.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from oomreaper.model.identity import Identity
from oomreaper.model.outcome import OutcomeKind
from oomreaper.model.plan import Hooks, KillUnit, Victims
from oomreaper.reaper.jobs import JobKind
from tests.policy.shortage import rule
from tests.watch.fakes import GROUP_KILL, KILL, LOW, MS, SECOND, START_NS, Body, World, make_plan

if TYPE_CHECKING:
    from oomreaper.reaper.jobs import Job, Report

HOOKED = Hooks(pre_kill=("/bin/hook",), pre_kill_timeout_ns=200 * MS)


def story(world: World) -> list[tuple[str, int | None]]:
    """What was told of victims, in order."""
    return [(told.kind, told.pid) for told in world.voice.told if told.pid is not None]


def signals(world: World) -> list[tuple[str, int]]:
    """Who was signalled, in order; attempts after the first are left out."""
    return list(dict.fromkeys((name, identity.pid) for name, identity in world.signalled))


def short_world(*rules: object, **changes: object) -> World:
    """A machine on which 6,000 and 3,700 MiB are held: 3 % is left."""
    world = World(make_plan(*rules, **changes))  # type: ignore[arg-type] # rules and fields of Plan
    world.machine.born(100, 6000)
    world.machine.born(101, 3700)
    return world


def test_a_victim_that_is_asked_and_goes_is_all_there_is() -> None:
    """Low memory, SIGTERM to the largest, it exits: announce, killed, settled as exited, and nobody is killed."""
    world = short_world(LOW)

    world.run(20_000)

    assert story(world) == [("announce", 100), ("killed", 100), ("settled", 100)]
    assert signals(world) == [("SIGTERM", 100)]
    assert world.voice.told[-1].outcome is not None
    assert world.voice.told[-1].outcome.kind is OutcomeKind.EXITED


def test_who_ignores_sigterm_is_killed_by_time() -> None:
    """It lives on for ten seconds while memory stays low: then it, and nobody else, is killed (earlyoom#354)."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"

    world.run(9_500)
    before = signals(world)
    world.run(10_000)

    assert before == [("SIGTERM", 100)]
    assert signals(world) == [("SIGTERM", 100), ("SIGKILL", 100)]
    assert story(world) == [("announce", 100), ("killed", 100), ("killed", 100), ("settled", 100)]


def test_who_ignores_sigterm_is_killed_by_level_at_once() -> None:
    """Memory falls on below the level of the kill step: it is not waited for."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"
    world.run(1_000)

    world.machine.eaten_mib["machine"] = 150
    world.run(200)

    assert signals(world) == [("SIGTERM", 100), ("SIGKILL", 100)]


def test_a_ladder_that_waits_longer_than_the_time_out_keeps_to_its_victim() -> None:
    """With "kill after 60s" and a time-out of 30 s the one who was asked is killed then, and no second one is asked."""
    world = short_world(rule("mem_available < 4%", then=("terminate", "kill after 60s")))
    world.machine.bodies[100].on_term = "ignore"

    world.run(70_000)

    assert signals(world) == [("SIGTERM", 100), ("SIGKILL", 100)]


def test_who_cannot_be_reaped_is_left_and_the_next_is_taken_soon() -> None:
    """The largest keeps its memory: the next is taken within 2 s, and the first never again."""
    world = short_world(KILL)
    world.machine.bodies[100].on_kill = "stuck"

    world.run(10_000)
    first, second = world.voice.of("announce")

    assert (first.pid, second.pid) == (100, 101)
    assert second.at_ms - first.at_ms < 2_000
    assert signals(world) == [("SIGKILL", 100), ("SIGKILL", 101)]
    assert [told.outcome.kind for told in world.voice.of("settled") if told.outcome is not None] == [
        OutcomeKind.UNREAPABLE,
        OutcomeKind.REAPED,
    ]


def test_who_holds_his_lock_costs_workers_but_not_the_next_one() -> None:
    """The largest swallows every worker that touches it: it is given up, and the next is taken within 2 s."""
    world = short_world(KILL)
    world.machine.bodies[100].on_kill = "silent"

    world.run(10_000)
    first, second = world.voice.of("announce")

    assert (first.pid, second.pid) == (100, 101)
    assert second.at_ms - first.at_ms < 2_000
    assert world.workers.dismissed


def test_a_victim_that_goes_between_choice_and_look_costs_nobody() -> None:
    """It has gone when it is looked at: skipped with that reason, and as memory is back nobody else is taken."""
    world = short_world(KILL)
    world.on_scout.append(world.machine.gone)

    world.run(3_000)

    assert signals(world) == []
    assert world.voice.of("announce") == []


def test_a_pid_that_changes_hands_between_choice_and_look_is_not_touched() -> None:
    """The pid belongs to somebody else by the time it is looked at: that one is not signalled; the next hog is."""
    world = short_world(KILL)
    world.machine.eaten_mib["machine"] = 50

    def recycle(body: Body) -> None:
        if body.identity == Identity(100, 7):
            world.machine.gone(body)
            world.machine.born(100, 6000, start=8, comm=b"innocent", oom_score_adj=-1000)

    world.on_scout.append(recycle)
    world.run(3_000)

    assert signals(world) == [("SIGKILL", 101)]
    assert any("given to another" in told.text for told in world.voice.of("skipped"))


def test_who_becomes_protected_before_the_look_is_spared() -> None:
    """oom_score_adj becomes -1000 after the choice: it is not signalled, it is told why, and the next one is taken."""
    world = short_world(KILL)

    def protect(body: Body) -> None:
        if body.identity.pid == 100:
            body.oom_score_adj = -1000

    world.on_scout.append(protect)
    world.run(3_000)

    assert signals(world) == [("SIGKILL", 101)]
    assert any("-1000" in told.text and told.pid == 100 for told in world.voice.of("skipped"))


def test_who_becomes_protected_while_the_hook_runs_is_spared() -> None:
    """The same while the pre-kill hook holds it: what was announced is skipped, with the reason."""
    world = short_world(KILL, hooks=HOOKED)
    world.run(100)
    world.machine.bodies[100].oom_score_adj = -1000

    world.run(3_000)

    assert ("SIGKILL", 100) not in signals(world)
    assert story(world)[:2] == [("announce", 100), ("skipped", 100)]


def test_who_becomes_protected_after_it_was_asked_is_spared() -> None:
    """Somebody sets -1000 in the ten seconds between SIGTERM and SIGKILL: the kill is called off."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "ignore"
    world.machine.bodies[101].on_term = "ignore"
    world.run(5_000)
    world.machine.bodies[100].oom_score_adj = -1000

    world.run(20_000)

    assert ("SIGKILL", 100) not in signals(world)
    assert ("SIGTERM", 101) in signals(world)
    assert any("-1000" in told.text and told.pid == 100 for told in world.voice.of("skipped"))


def test_who_gave_its_memory_back_after_it_was_asked_is_not_killed_for_anothers() -> None:
    """It frees all it held and lives on; another takes that memory: the other one is asked, and the first is let be."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "release"
    world.run(1_000)
    world.machine.bodies[101].mib = 9_650

    world.run(25_000)

    assert ("SIGKILL", 100) not in signals(world)
    assert ("SIGTERM", 101) in signals(world)


def test_who_gives_memory_back_and_stays_is_let_off() -> None:
    """Memory recovers before the one who was asked exits: the incident ends with "spared", and nobody is killed."""
    world = short_world(LOW)
    world.machine.bodies[100].on_term = "release"

    world.run(40_000)

    assert signals(world) == [("SIGTERM", 100)]
    assert story(world) == [("announce", 100), ("killed", 100), ("skipped", 100)]
    assert len(world.hunter.open_hunts) == 0


def test_three_hogs_go_one_after_the_other_and_no_more_than_needed() -> None:
    """Each kill is followed by a look: with three hogs of which two must go, the third lives."""
    world = World(make_plan(KILL))
    for pid, mib in ((100, 3000), (101, 2900), (102, 2800)):
        world.machine.born(pid, mib)
    world.machine.eaten_mib["machine"] = 1000
    world.at(500, lambda: world.machine.eaten_mib.update(machine=4000))

    world.run(5_000)

    assert signals(world) == [("SIGKILL", 100), ("SIGKILL", 101)]
    for told, following in zip(world.voice.told, world.voice.told[1:], strict=False):
        assert not (told.kind == "announce" and following.kind == "announce")


def test_the_hook_is_waited_for_until_it_ends() -> None:
    """A pre-kill hook holds the victim; its acknowledgement lets the kill go on at once."""
    world = short_world(KILL, hooks=HOOKED)
    world.run(50)
    (announce,) = world.voice.of("announce")
    before = signals(world)
    assert announce.hook is not None

    world.hunter.on_acknowledged(announce.hook, world.now_ns)
    world.run(20)

    assert before == []
    assert signals(world) == [("SIGKILL", 100)]
    assert world.voice.of("warning") == []


def test_the_hook_is_waited_for_no_longer_than_its_time() -> None:
    """A hook that does not end is told of, and the kill goes on."""
    world = short_world(KILL, hooks=HOOKED)

    world.run(1_000)

    assert signals(world) == [("SIGKILL", 100)]
    assert [told.text for told in world.voice.of("warning")] == ["the pre-kill hook did not end in 200 ms"]


def test_no_hook_is_waited_for_below_the_critical_floor() -> None:
    """Below the floor the kill comes at once."""
    world = short_world(KILL, hooks=HOOKED)
    world.machine.eaten_mib["machine"] = 150

    world.run(50)

    assert signals(world) == [("SIGKILL", 100)]
    assert world.voice.of("announce")[0].hook is None


def test_a_hook_that_is_waited_for_is_given_up_when_memory_falls_below_the_floor() -> None:
    """The floor is reached while the hook holds the victim: it is waited for no longer."""
    world = short_world(KILL, hooks=HOOKED._replace(pre_kill_timeout_ns=5 * SECOND))
    world.run(50)
    world.machine.eaten_mib["machine"] = 150

    world.run(200)

    assert signals(world) == [("SIGKILL", 100)]


def test_a_hook_that_makes_room_saves_the_victim() -> None:
    """Memory is back when the hook ends: nobody is killed, and the record says why."""
    world = short_world(KILL, hooks=HOOKED)
    world.run(50)
    world.machine.bodies[101].mib = 100

    world.run(1_000)

    assert signals(world) == []
    assert story(world) == [("announce", 100), ("skipped", 100)]
    assert world.voice.of("skipped")[0].text == "memory is not short any more"


def test_a_victim_that_goes_while_the_hook_runs_has_its_record() -> None:
    """It was announced, and ends by itself before the signal: skipped, and its pidfd is closed."""
    world = short_world(KILL, hooks=HOOKED)
    world.run(50)
    world.exit(world.machine.bodies[100])

    world.run(10_000)

    assert story(world) == [("announce", 100), ("skipped", 100)]
    assert world.handles.open_handles == {}


def test_the_kernels_own_kill_is_awaited_for_a_second() -> None:
    """The kernel killed somebody: no victim for 1 s, told once; then, as memory is still short, one is taken."""
    world = World(make_plan(KILL))
    world.run(10)
    world.machine.born(100, 6000)
    world.machine.born(101, 3700)
    world.machine.oom_kills["machine"] = 1

    world.run(5_000)
    (kernel,) = world.voice.of("warning")

    assert 1_000 <= world.voice.of("announce")[0].at_ms - kernel.at_ms <= 1_200
    assert sum("has just killed" in told.text for told in world.voice.of("skipped")) == 1


def test_kernel_kills_without_end_do_not_keep_us_from_acting() -> None:
    """A group that hits its own limit ten times a second is seen in the machine's count: we act all the same."""
    world = World(make_plan(KILL))
    world.run(10)
    world.machine.born(100, 6000)
    world.machine.born(101, 3700)
    for number in range(60):
        world.at(100 * number, partial(world.machine.oom_kills.update, machine=number + 1))

    world.run(6_000)

    assert signals(world) == [("SIGKILL", 100)]


def test_two_groups_are_helped_at_the_same_time() -> None:
    """Each scope has its own victim, and neither waits for the other."""
    world = World(make_plan(GROUP_KILL))
    world.machine.groups = {"/a": 1000, "/b": 1000}
    world.machine.born(100, 970, group="/a").on_kill = "stuck"
    world.machine.born(200, 970, group="/b")

    world.run(500)

    assert {("SIGKILL", 100), ("SIGKILL", 200)} == set(signals(world))


def test_what_a_group_gives_back_is_awaited_by_the_machine_too() -> None:
    """The same hog fills its group and the machine: it dies once, and nobody else for the machine's sake."""
    world = World(make_plan(KILL, GROUP_KILL))
    world.machine.groups = {"/a": 6100}
    world.machine.born(101, 3700)
    world.machine.born(100, 5000, group="/a")
    world.run(10)
    world.answer_ns = 50 * MS

    world.machine.bodies[100].mib = 6000
    for scope in ("/a", "machine"):
        world.watcher.look(scope, world.now_ns)
    world.run(5_000)

    assert signals(world) == [("SIGKILL", 100)]


def test_a_second_victim_below_the_floor_only_when_memory_does_not_come() -> None:
    """Below 2 % and the first is stuck: a second is taken after 200 ms and before the first is given up."""
    world = short_world(KILL)
    world.machine.eaten_mib["machine"] = 150
    world.machine.bodies[100].on_kill = "stuck"

    world.run(5_000)
    first, second = world.voice.of("announce")
    given_up = next(told for told in world.voice.of("settled") if told.pid == 100)

    assert 200 <= second.at_ms - first.at_ms <= 400
    assert second.at_ms < given_up.at_ms


def test_no_second_victim_below_the_floor_before_the_first_is_signalled() -> None:
    """Below 2 %, and for 600 ms something kills each worker that strikes before it has signalled: nobody else dies."""
    world = short_world(KILL)
    world.machine.eaten_mib["machine"] = 150
    answer, lost = world.answer, []

    def answer_or_die(job: Job, body: Body | None) -> Report | None:
        if job.kind is not JobKind.STRIKE or world.now_ns > START_NS + 600 * MS:
            return answer(job, body)
        (worker,) = (worker for worker, (other, _) in world.workers.jobs.items() if other is job)
        lost.append(worker)
        world.at(0.5, partial(world.lose, worker))
        return None

    world.answer = answer_or_die  # type: ignore[method-assign] # the world of this story
    world.run(3_000)

    assert len(lost) > 100
    assert signals(world) == [("SIGKILL", 100)]
    assert story(world) == [("announce", 100), ("killed", 100), ("settled", 100)]


def test_no_second_victim_below_the_floor_while_memory_comes() -> None:
    """Below 2 % and the first gives back bit by bit: nobody else is taken."""
    world = short_world(KILL)
    world.machine.eaten_mib["machine"] = 150
    body = world.machine.bodies[100]
    body.on_kill = "stuck"
    for step in range(1, 60):
        world.at(20 + step * 50, partial(setattr, body, "mib", 6000 - step * 100))

    world.run(3_000)

    assert signals(world) == [("SIGKILL", 100)]


def test_a_dry_run_says_each_thing_once() -> None:
    """Nobody is signalled, each ladder speaks once in a shortage, and once more in the next."""
    world = World(make_plan(LOW), is_dry_run=True)
    hog = world.machine.born(100, 6000)
    world.machine.born(101, 3700)

    world.run(30_000)
    first = story(world)
    hog.mib = 1000
    world.run(3_000)
    hog.mib = 6000
    world.run(3_000)

    assert first == [("announce", 100), ("settled", 100)]
    assert [*first, *first] == story(world)
    assert signals(world) == []


def test_a_new_plan_during_a_hunt_leaves_the_hunt_alone() -> None:
    """Reload while the first victim is being reaped: it gets its record, and no second one meanwhile."""
    world = short_world(KILL)
    world.machine.bodies[100].on_kill = "stuck"
    world.run(100)

    world.watcher.adopt(make_plan(LOW))
    world.run(500)
    during = signals(world)
    world.run(5_000)

    assert during == [("SIGKILL", 100)]
    assert [told for told in story(world) if told[1] == 100] == [("announce", 100), ("killed", 100), ("settled", 100)]
    assert ("SIGTERM", 101) in signals(world)


def test_a_new_plan_while_the_hook_runs_does_not_lose_the_hunt() -> None:
    """Reload while the hook holds the victim: it goes on as it began."""
    slow = rule("mem_available < 4%", hold="10s")
    world = short_world(KILL, hooks=HOOKED)
    world.run(50)

    world.watcher.adopt(make_plan(slow, hooks=HOOKED))
    world.run(1_000)

    assert signals(world) == [("SIGKILL", 100)]


def test_everybody_protected_is_told_once_with_the_reason() -> None:
    """Processes come and go, all of them protected: one record says so, not one for each number of them."""
    world = short_world(KILL)
    for body in world.machine.bodies.values():
        body.oom_score_adj = -1000
    for number in range(50):
        world.at(100 * number, partial(world.machine.born, 200 + number, 1, oom_score_adj=-1000))

    world.run(10_000)

    assert ["protected" in told.text for told in world.voice.of("skipped")] == [True]
    assert signals(world) == []


def test_the_recovered_level_is_what_ends_a_shortage() -> None:
    """With recovered at 20 % victims are taken until that is reached, though the first level is passed before."""
    world = World(make_plan(rule("mem_available < 4%", then=("kill",), recovered=("mem_available > 20%",))))
    for pid in range(100, 120):
        world.machine.born(pid, 485)

    world.run(10_000)

    assert len(signals(world)) == 4


def test_warn_and_reclaim_come_before_a_victim() -> None:
    """A ladder's first steps warn and have memory moved out of the coldest; the kill comes when its time has."""
    world = short_world(rule("mem_available < 4%", then=("warn", "reclaim", "kill after 5s")))
    world.machine.bodies[100].growth_mib = 500

    world.run(4_000)
    before = signals(world)
    world.run(2_000)

    assert before == []
    assert sum("getting short" in told.text for told in world.voice.of("warning")) == 1
    assert [("machine", Identity(101, 7))] == [(scope, life) for scope, life, _ in world.machine.reclaims]
    assert signals(world) == [("SIGKILL", 100)]


def test_a_swarm_ends_together_and_the_bystander_lives() -> None:
    """Sixty young processes of one group, each too small: they die as one, and the larger old one does not."""
    world = World(make_plan(KILL))
    world.machine.born(100, 1000, age_seconds=4000.0)
    for pid in range(200, 290):
        world.machine.born(pid, 96.7, age_seconds=2.0, process_group=200, session=200)

    world.run(2_000)

    assert min(pid for _, pid in signals(world)) >= 200
    assert len({pid for _, pid in signals(world)}) == 90
    assert 100 in world.machine.bodies


def test_a_unit_dies_with_its_largest_reaped_beside() -> None:
    """Unit "group": all members are signalled, the four largest have hunts of their own, each with its record."""
    victims = Victims(unit=KillUnit.GROUP, honour_oom_group=False, honour_xattrs=False)
    world = World(make_plan(KILL, victims=victims))
    for number in range(8):
        world.machine.born(100 + number, 1200 - number, process_group=100, session=100).on_kill = "reap"
    world.machine.born(300, 100)

    world.run(5_000)

    assert set(range(100, 108)) == {pid for _, pid in signals(world)}
    assert sorted(told.pid or 0 for told in world.voice.of("announce")) == [100, 101, 102, 103, 104]
    assert sorted(told.pid or 0 for told in world.voice.of("settled")) == [100, 101, 102, 103, 104]
    assert len(world.units) == 1


def test_a_shortage_that_flaps_kills_nobody_in_the_gaps() -> None:
    """Memory comes back between choice and strike: the strike is called off, and the pidfds are given back."""
    world = World(make_plan(KILL))
    hog = world.machine.born(100, 6000)
    spike = world.machine.born(101, 100)
    world.run(10)
    world.answer_ns = 80 * MS
    for number in range(4):
        world.at(3_000 * number, lambda: setattr(spike, "mib", 3700))
        world.at(3_000 * number + 1, lambda: world.watcher.look("machine", world.now_ns))
        world.at(3_000 * number + 40, lambda: setattr(spike, "mib", 100))

    world.run(12_000)

    assert signals(world) == []
    assert hog.is_alive
    world.run(10_000)
    assert world.handles.open_handles == {}


def test_a_look_that_fails_says_nothing_about_the_victim() -> None:
    """No memory for a look at anybody for a second: it is told, and when looks work again the hog dies at once."""
    world = short_world(KILL)
    for body in world.machine.bodies.values():
        body.on_look = "refuse"
        world.at(1_000, partial(setattr, body, "on_look", "answer"))

    world.run(2_000)

    assert signals(world)[0] == ("SIGKILL", 100)
    assert sum("no memory" in told.text for told in world.voice.of("skipped")) <= 2


def test_no_descriptor_for_a_while_costs_a_while() -> None:
    """EMFILE for a second: nobody is signalled, and soon after it the hog is."""
    world = short_world(KILL)
    world.handles.limit = 0
    world.at(1_000, lambda: setattr(world.handles, "limit", 1000))

    world.run(2_000)

    assert signals(world) == [("SIGKILL", 100)]


@pytest.mark.parametrize("was_near", [False, True])
def test_memory_that_nobody_in_the_front_took_has_everybody_read(was_near: bool) -> None:  # noqa: FBT001 - a parameter
    """A hog outside of the front grew between two looks: it is found before the largest of the front is killed."""
    world = World(make_plan(KILL))
    world.machine.born(100, 500 if was_near else 2000)
    hog = world.machine.born(200, 50, is_in_front=False)
    world.machine.eaten_mib["machine"] = 8750 if was_near else 3000
    world.run(1_500)

    hog.mib = 670 if was_near else 4850
    world.run(1_500)

    assert signals(world) == [("SIGKILL", 200)]


def test_a_group_that_goes_while_its_victim_waits_takes_the_hunt_along() -> None:
    """The group is removed while the hook holds its victim: it is not killed for a shortage that is no more."""
    world = World(make_plan(GROUP_KILL, hooks=HOOKED))
    world.machine.groups = {"/a": 1000}
    world.machine.born(100, 970, group="/a")
    world.run(50)
    announced = story(world)

    del world.machine.groups["/a"]
    world.watcher.forget_scope("/a")
    world.run(1_000)

    assert announced == [("announce", 100)]
    assert story(world) == [("announce", 100), ("skipped", 100)]
    assert signals(world) == []


def test_a_group_that_no_rule_looks_at_any_more_keeps_nobody_awake() -> None:
    """A scope vanishes without a word (a reload), or a hint comes late for one: no look stays due for ever."""
    world = World(make_plan(GROUP_KILL))
    world.machine.groups = {"/a": 1000}
    world.run(1_000)

    del world.machine.groups["/a"]
    world.watcher.look("/b", world.now_ns)
    turns = world.turns
    world.run(10_000)

    assert world.turns - turns < 60
    assert [view.sample.scope for view in world.watcher.views(world.now_ns)] == ["machine"]


def test_a_start_in_a_shortage_takes_nobody_before_it_is_ready() -> None:
    """While the start warms up numbers are read and candidates kept ready; the victim is taken, and told, after."""
    world = short_world(KILL)
    world.watcher.may_act = False
    world.run(1_000)
    before = (signals(world), list(world.voice.told))

    world.watcher.may_act = True
    world.run(1_000)

    assert before == ([], [])
    assert signals(world) == [("SIGKILL", 100)]


def test_profiles_that_do_not_come_hold_nothing_up_for_long() -> None:
    """Ever new processes stand first, each with a profile still to come: the decision waits for 100 ms in all."""
    victims = Victims(honour_oom_group=False, honour_xattrs=True)
    world = World(make_plan(KILL, victims=victims))
    world.profile_of = lambda life: None  # type: ignore[method-assign] # noqa: ARG005 - its name is the seam's; nobody's profile is ever known
    crowd = [world.machine.born(100 + number, 200, profile=None) for number in range(30)]
    world.machine.eaten_mib["machine"] = 3700
    for number, body in enumerate(crowd):
        world.at(10 * number, partial(setattr, body, "mib", 210 + number))

    world.run(300)
    first = world.voice.of("announce")[0]

    assert 100 <= first.at_ms <= 130


def test_a_group_whose_census_had_to_make_room_is_read_anew() -> None:
    """The machine dropped a group's census: the next decision reads everybody, and takes the largest."""
    world = World(make_plan(GROUP_KILL))
    world.machine.groups = {"/a": 1000}
    world.machine.born(100, 400, group="/a")
    world.machine.born(101, 520, group="/a", is_in_front=False)
    world.run(500)
    world.machine.drop_census("/a")

    world.machine.eaten_mib["/a"] = 60
    world.watcher.look("/a", world.now_ns)
    world.run(100)

    assert signals(world) == [("SIGKILL", 101)]
