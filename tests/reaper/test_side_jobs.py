"""Profiles, units and reclaim beside the victims: never in their way, and an answer for whoever asks."""

from __future__ import annotations

from oomreaper.model.identity import Identity
from oomreaper.model.sample import Profile
from oomreaper.reaper.jobs import (
    CouldNotLook,
    JobKind,
    Profiled,
    ProfileOrder,
    ProfileRow,
    Reclaimed,
    UnitKilled,
)
from tests.reaper.fakes import memory, scouting, struck
from tests.reaper.test_crew import Stage

LIFE = Identity(700, 7)
OTHER = Identity(701, 7)
PROFILE = Profile(exe=b"/bin/it")


def test_profiles_come_back_in_batches() -> None:
    """Forty lives are two jobs, one out at a time; each is answered once, asked for twice or not."""
    stage = Stage()
    lives = [Identity(700 + number, 7) for number in range(40)]
    stage.crew.profile(lives, stage.now_ns)
    stage.crew.profile(lives, stage.now_ns)
    answered = []
    while (worker := stage.who_has(JobKind.PROFILE)) is not None:
        assert len(stage.workers.jobs) == 1
        order = stage.workers.jobs[worker][0].order
        assert isinstance(order, ProfileOrder)
        assert len(order.lives) <= 32
        stage.answer(JobKind.PROFILE, Profiled(tuple(ProfileRow(life, PROFILE) for life in order.lives)))
        answered += stage.crew.take_profiled()

    assert [(life, PROFILE) for life in lives] == answered
    assert stage.crew.is_quiet


def test_who_is_asked_about_is_not_asked_about_again() -> None:
    """Not while he waits, not while a worker has him, not while his answer lies here; after it was taken he is."""
    stage = Stage()
    asked = []
    stage.crew.profile([LIFE], stage.now_ns)
    for lives in ([LIFE], [OTHER, LIFE], [LIFE, OTHER]):  # the first is out with a worker by now
        stage.crew.profile(lives, stage.now_ns)
    for row in (ProfileRow(LIFE, PROFILE), ProfileRow(OTHER, None)):
        worker = stage.who_has(JobKind.PROFILE)
        assert worker is not None
        asked.append(stage.workers.jobs[worker][0].order)
        stage.answer(JobKind.PROFILE, Profiled((row,)))
        stage.crew.profile([LIFE], stage.now_ns)

    assert asked == [ProfileOrder((LIFE,)), ProfileOrder((OTHER,))]
    assert stage.who_has(JobKind.PROFILE) is None
    assert stage.crew.take_profiled() == [(LIFE, PROFILE), (OTHER, None)]
    stage.crew.profile([OTHER, LIFE], stage.now_ns)
    assert stage.who_has(JobKind.PROFILE) is not None


def test_a_profile_that_blocks_costs_two_workers_and_is_none() -> None:
    """A batch that did not come back is asked one by one; who blocks is asked once more without his command line."""
    stage = Stage()
    stage.crew.profile([LIFE, OTHER], stage.now_ns)
    asked = []
    for _ in range(1000):
        worker = stage.who_has(JobKind.PROFILE)
        order = stage.workers.jobs[worker][0].order if worker is not None else None
        if not isinstance(order, ProfileOrder):
            break
        asked.append((tuple(life.pid for life in order.lives), order.with_cmdline))
        if order.lives == (OTHER,):
            stage.answer(JobKind.PROFILE, Profiled((ProfileRow(OTHER, PROFILE),)))
        else:
            stage.pass_ms(100)

    assert asked == [((700, 701), True), ((700,), True), ((701,), True), ((700,), False)]
    assert sorted(stage.crew.take_profiled(), key=lambda row: row[0].pid) == [(LIFE, None), (OTHER, PROFILE)]
    assert stage.crew.statistics().workers_lost == 3


def test_a_profile_leaves_the_last_worker_to_the_victims() -> None:
    """With two victims at work of three workers no profile goes out; when one is done, it does."""
    stage = Stage()
    stage.submit(scouting(500))
    stage.submit(scouting(600))
    stage.crew.profile([LIFE], stage.now_ns)

    assert stage.who_has(JobKind.PROFILE) is None
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    assert stage.who_has(JobKind.PROFILE) is not None


def test_a_large_unit_is_one_answer() -> None:
    """2,500 lives are three messages, the last of which goes through the unit; a lost worker is made good."""
    stage = Stage()
    stage.crew.kill_unit((Identity(1000 + number, 7) for number in range(2500)), stage.now_ns, process_group=1000)
    groups = []
    while (worker := stage.who_has(JobKind.KILL_UNIT)) is not None:
        order = stage.workers.jobs[worker][0].order
        groups.append(getattr(order, "process_group", None))
        if len(groups) == 1:
            stage.pass_ms(1000)  # it sleeps past its deadline
            continue
        stage.answer(JobKind.KILL_UNIT, UnitKilled((LIFE,), ("5: never",), 2, 1))

    assert groups == [None, None, None, 1000]
    assert stage.crew.take_unit_killed() == [UnitKilled((LIFE,) * 3, ("5: never",) * 3, 2, 3)]
    assert stage.crew.take_unit_killed() == []


def test_a_reclaim_without_a_worker_to_spare_is_told_off() -> None:
    """It never takes the last worker; after a second it is answered all the same."""
    stage = Stage(workers=1, spares=0)
    stage.crew.reclaim(1 << 20, stage.now_ns, directory="/group")
    stage.pass_ms(1000)
    (answer,) = stage.crew.take_reclaimed()

    assert answer == Reclaimed(0, "/group", "no worker was to spare for it")
    assert stage.crew.is_quiet


def test_a_look_that_failed_keeps_its_worker_and_the_victim_its_attempts() -> None:
    """A strike that could not be begun counts as an attempt and as no kill; the next one serves the victim."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, CouldNotLook("EMFILE"))
    assert stage.outcomes() == []
    assert list(stage.crew.open_victims) == [Identity(500, 7)]
    stage.pass_ms(100)
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))

    assert stage.outcome().attempts == 2
    assert list(stage.crew.open_victims) == []
    assert stage.crew.statistics().workers_lost == 0


def test_unread_memory_is_not_claimed_to_be_back() -> None:
    """mrelease answered 0 and the memory could not be read: another attempt, and the outcome is verified or none."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(0, None)._replace(memory_problem="ENOMEM"))
    assert stage.outcomes() == []
    for _ in range(9):
        stage.pass_ms(100)
        stage.answer(JobKind.STRIKE, struck(0, None)._replace(memory_problem="ENOMEM"))
    stage.pass_ms(300)

    assert stage.outcome().kind.value == "unreapable"  # type: ignore[union-attr] # an outcome of a crew has a kind
    assert "could not be read (ENOMEM)" in stage.outcome().reason


def test_a_probe_that_could_not_look_does_not_save_a_stuck_worker() -> None:
    """No answer about the memory is no movement: the attempt loses its worker, as with a look that blocked."""
    stage = Stage()
    stage.submit()
    stage.pass_ms(100)
    stage.answer(JobKind.PROBE, CouldNotLook("ENOMEM"))

    assert stage.crew.statistics().workers_lost == 1
