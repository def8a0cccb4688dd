"""One run against the fake guest: what is started when, and what comes out."""

from __future__ import annotations

from typing import Any

import pytest

from lab.contestants import CONTESTANTS, OURS, Contestant
from lab.play import Run, play
from lab.records import Record
from lab.scenario import load_scenario
from lab.seam import GuestLostError
from lab.talk import RefusedError
from tests.lab.fake_guest import MS, SECOND, FakeMaker, Killer

_KERNEL = CONTESTANTS[0]


def _play(
    killer: Killer | None = None, *, scenario: str = "leak_fast", contestant: Contestant = OURS, image: str = "small"
) -> tuple[Record, FakeMaker]:
    maker = FakeMaker(killer)
    run = Run(load_scenario(scenario), contestant, "newest", image, 1)
    with maker.open(run.spec) as guest:
        return play(guest, run, now_ns=maker.clock.now_ns), maker


def _commands(maker: FakeMaker) -> list[tuple[str, Any]]:
    return [(str(each["do"]), each.get("name")) for each in maker.guests[-1].commands]


def test_a_shortage_that_is_ended_well_is_recorded_so() -> None:
    """Killed at 3 %, memory back 100 ms later, nobody else touched."""
    record, _ = _play()

    assert (record.recovered, record.is_usable, record.is_lost, record.broken) == (True, True, False, ())
    assert (record.kills, record.innocent_kills, record.kernel_kills) == (1, 0, 0)
    assert [kill.comm for kill in record.killed] == ["hog"]
    # 200 MiB a second: from 10 % of 768 MiB to 3 % in 269 ms; levels are looked at every 60 ms.
    assert record.shortage_to_kill_ms == pytest.approx(269, abs=80)
    assert record.kill_to_memory_ms == pytest.approx(100, abs=80)
    assert record.longest_stall_ms < 50
    assert (record.version, record.kernel_release, record.killer_pss_kib) == ("0.1.0", "6.99-fake", 12_000)
    assert "ready after" in record.log[0]


def test_it_ends_when_nothing_more_is_to_come() -> None:
    """Seconds after the kill, not at the end of the scenario's time."""
    record, _ = _play()

    assert 5 < record.duration_s < 12


def test_who_watches_is_there_first_and_who_makes_the_shortage_last() -> None:
    """The tracer, the killer, the probe, those who stand by, the hog; afterwards the questions."""
    _, maker = _play()
    names = [name for do, name in _commands(maker) if do == "start"]
    order = [do for do, _ in _commands(maker)]

    assert names == ["oomreaper", "probe", "desk", "idler", "hog"]
    assert order.index("trace") < order.index("start")
    assert order[-2:] == ["run", "usage"]


def test_the_kernel_alone_needs_nothing_started() -> None:
    """Its kills are counted as its own, and its version is the kernel's."""
    record, maker = _play(Killer(at_percent=0, by="kernel"), contestant=_KERNEL)

    assert [name for do, name in _commands(maker) if do == "start"] == ["probe", "desk", "idler", "hog"]
    assert (record.kills, record.kernel_kills, record.killed[0].by) == (1, 1, "kernel")
    assert (record.version, record.killer_cpu_ms) == ("6.99-fake", None)


def test_a_killed_innocent_is_told() -> None:
    """Beside the hog, and in words."""
    record, _ = _play(Killer(victims=("desk", "hog")))

    assert (record.kills, record.innocent_kills, record.recovered) == (2, 1, True)
    assert record.broken == ("killed without need: desk", "2 were killed; 1 are enough")


def test_a_machine_that_nobody_helps_has_not_recovered() -> None:
    """It lasts as long as the scenario does, and no time is made up."""
    record, _ = _play(Killer(at_percent=None))

    assert record.recovered is False
    assert (record.kills, record.shortage_to_kill_ms, record.kill_to_memory_ms) == (0, None, None)
    assert record.duration_s == pytest.approx(40, abs=0.1)
    assert record.broken == ("the machine did not recover", "0 were killed; it takes 1")


def test_memory_that_does_not_come_back_is_no_recovery() -> None:
    """The victim was killed and keeps it."""
    record, _ = _play(Killer(gives_back=False))

    assert (record.kills, record.recovered, record.kill_to_memory_ms) == (1, False, None)


def test_a_guest_that_hangs_is_a_result() -> None:
    """It stalls to the end, and is not usable."""
    record, _ = _play(Killer(hangs=True))

    assert (record.recovered, record.is_usable, record.is_lost) == (False, False, False)
    assert record.longest_stall_ms > 30_000


def test_a_machine_that_cannot_start_a_program_has_not_recovered() -> None:
    """Its memory is back and its user goes on; nobody can do anything with it all the same."""
    record, _ = _play(Killer(mutes_agent=True))

    assert record.kill_to_memory_ms is not None
    assert (record.is_usable, record.recovered) == (False, False)


def test_who_cannot_be_started_any_more_is_no_fault_of_the_lab() -> None:
    """The second leak is to begin in a machine that hangs: that is a result, and not a run that was not set up."""
    record, _ = _play(Killer(hangs=True), scenario="several_shortages")

    assert record.broken[0] == "the machine did not recover"


def test_a_guest_that_is_lost_is_a_result() -> None:
    """Said in words; what was seen until then is kept."""
    record, _ = _play(Killer(is_lost=True))

    assert (record.is_lost, record.recovered) == (True, False)
    assert record.broken[0] == "the machine was lost"
    assert record.lowest_available_percent is not None


def test_a_stall_is_seen_from_outside() -> None:
    """Two seconds in which nothing moved."""
    record, _ = _play(Killer(stall_ns=2 * SECOND, after_ns=3 * SECOND))

    assert record.longest_stall_ms == pytest.approx(2000, abs=80)


@pytest.mark.parametrize("refused", ["hello", "trace", "start", "run"])
def test_what_cannot_be_set_up_is_no_result(refused: str) -> None:
    """It is to be done again: a record would say that the contestant failed."""
    with pytest.raises(RefusedError, match=refused):
        _play(Killer(refuses=(refused,)))


def test_a_guest_that_is_lost_before_the_shortage_is_no_result() -> None:
    """The same."""
    with pytest.raises(GuestLostError):
        _play(Killer(at_percent=99, is_lost=True))


def test_a_stuck_actors_victim_may_be_killed_and_its_holder_may_not() -> None:
    """It says who its victim is, by pid; it is started with the tests' own program."""
    record, maker = _play(Killer(victims=("hog",)), scenario="stuck_mmap_lock")
    (start,) = (each for each in maker.guests[-1].commands if each.get("name") == "stuck")

    assert start["argv"][1].endswith("/stuck.py")
    assert start["env"]["OOMREAPER_TEST_PROGRAM"].endswith("/bin/victims")
    assert record.innocent_kills == 0


def test_groups_are_made_before_who_is_in_them() -> None:
    """With their files; the probe looks at the group that will be short."""
    _, maker = _play(scenario="unit_oom_group")
    commands = maker.guests[-1].commands
    written = {each["path"]: each["text"] for each in commands if each["do"] == "write"}
    (probe,) = (each for each in commands if each.get("name") == "probe")
    (part,) = (each for each in commands if each.get("name") == "part-a")

    assert written["/sys/fs/cgroup/lab/unit/memory.oom.group"] == "1"
    assert probe["argv"][-1] == "/sys/fs/cgroup/lab/unit/memory.current"
    assert part["group"] == "lab/unit"


def test_on_the_full_image_each_is_in_a_group_of_a_users() -> None:
    """As what is started from a desktop is: who kills by control groups finds one for each."""
    _, maker = _play(contestant=_KERNEL, image="full")
    commands = maker.guests[-1].commands
    (hog,) = (each for each in commands if each.get("name") == "hog")
    app_slice = "user.slice/user-1001.slice/user@1001.service/app.slice"

    assert (hog["group"], hog["user"]) == (f"{app_slice}/app-hog.scope", 1001)
    assert f"/sys/fs/cgroup/{app_slice}/app-hog.scope" in [each["path"] for each in commands if each["do"] == "mkdir"]
    assert ["systemctl", "start", "user@1001.service"] in [each["argv"] for each in commands if each["do"] == "run"]


def test_a_service_without_a_process_is_not_run() -> None:
    """A unit that was started and has none is no contestant."""
    (earlyoom,) = (each for each in CONTESTANTS if each.title == "earlyoom")
    with pytest.raises(RefusedError, match="has no process"):
        _play(contestant=earlyoom, image="full")


def test_a_shortage_that_did_not_come_is_no_result() -> None:
    """A host that is too busy to let the hog run says nothing of who would have ended it."""
    with pytest.raises(RefusedError, match="the shortage did not come"):
        _play(Killer(leak_kib_per_s=1024))


def test_times_are_the_hosts() -> None:
    """The fake's guest clock began 5 s later: nothing of that shows."""
    record, _ = _play(Killer(after_ns=700 * MS))

    assert record.kill_to_memory_ms == pytest.approx(700, abs=80)
