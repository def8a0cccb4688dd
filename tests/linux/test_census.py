"""The census on recorded trees and on real children: who is there, how big, what it grew by, at what cost."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import population, proc
from oomreaper.linux.census import Census, files
from oomreaper.linux.population import MachinePopulation
from oomreaper.model.identity import Identity
from oomreaper.model.sample import Profile
from tests.linux.recorded_processes import KIB, PAGE_BYTES, TICKS_PER_SECOND, CountingOs, RecordedMachine
from tests.victims.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from oomreaper.model.sample import ProcessSample

SECOND = 1_000_000_000
MIB = 1024 * KIB
# Long after the recorded processes started, at 5 s.
NOW = 1000 * SECOND


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[RecordedMachine]:
    """A recorded /proc with nobody in it."""
    recorded = RecordedMachine(tmp_path / "proc")
    yield recorded
    recorded.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> CountingOs:
    """Every call of the census and its population, counted."""
    counting = CountingOs()
    monkeypatch.setattr(files, "os", counting)
    monkeypatch.setattr(population, "os", counting)
    return counting


def take(machine: RecordedMachine, *, front: int = 96, shared_front: int = 32, kept_files: int = 640) -> Census:
    """A census of a recorded machine that was never suspended."""
    return Census(
        machine.root,
        MachinePopulation(machine.root),
        page_bytes=PAGE_BYTES,
        ticks_per_second=TICKS_PER_SECOND,
        front=front,
        shared_front=shared_front,
        kept_files=kept_files,
        suspended_ns=lambda: 0,
    )


def by_pid(census: Census) -> dict[int, ProcessSample]:
    """What the ranking gets, by pid."""
    return {sample.identity.pid: sample for sample in census.processes()}


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_a_process_is_told_field_by_field(machine: RecordedMachine) -> None:
    """Sizes in bytes, the age against the clock of start times, who it is from stat and status."""
    machine.put(
        7, anon_kib=4000, file_kib=80, shmem_kib=40, swap_kib=24, page_table_kib=16, comm=b"x) Z (\n", oom_score_adj=-17
    )
    census = take(machine)
    census.sweep(NOW, is_swap_used=True)
    sample = by_pid(census)[7]

    assert sample.identity == Identity(7, 500)
    assert (sample.comm, sample.uid, sample.oom_score_adj) == (b"x) Z (\n", 1000, -17)
    assert (sample.parent_pid, sample.process_group, sample.session) == (1, 7, 7)
    assert (sample.is_dead, sample.is_kernel_thread, sample.profile) == (False, False, None)
    sizes = (sample.anon_bytes, sample.swap_bytes, sample.page_table_bytes, sample.shmem_bytes, sample.growth_bytes)
    assert sizes == (4000 * KIB, 24 * KIB, 16 * KIB, 40 * KIB, 0)
    assert sample.age_seconds == 995.0
    census.close()


def test_kernel_threads_and_threads_are_no_processes(machine: RecordedMachine) -> None:
    """The one has no memory, the other is part of a process; neither is told."""
    machine.put(7, anon_kib=400)
    machine.put(8, is_kernel_thread=True)
    census = take(machine)
    census.sweep(NOW)
    machine.put(9, is_thread=True, anon_kib=400)
    machine.set_last_pid(9)
    census.look(NOW, budget=0)

    assert list(by_pid(census)) == [7]
    census.close()


def test_a_steady_look_reads_each_of_the_front_once_and_opens_nothing(
    machine: RecordedMachine, calls: CountingOs
) -> None:
    """One read for each and one for the last pid, whatever the number of processes behind the front."""
    machine.put_many(400, anon_kib=400, file_kib=40)
    census = take(machine)
    census.sweep(NOW)
    calls.fail(None)
    census.look(NOW + SECOND // 10, budget=0)

    front = census.statistics().front
    assert (front, census.statistics().kept_files) == (96, 384)
    assert calls.calls == ["pread"] * (front + 1)
    census.close()


def test_a_process_of_ten_thousand_takes_a_kilobyte(machine: RecordedMachine) -> None:
    """What is remembered of one, with its sample; measured on the allocator, margin for other interpreters."""
    machine.put_many(600, anon_kib=400, file_kib=40)
    census = take(machine, front=8, shared_front=2)
    tracemalloc.start()
    census.sweep(NOW)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held_bytes / 600 < 1300
    census.close()


def test_growth_is_told_over_about_ten_seconds(machine: RecordedMachine) -> None:
    """What it grew by shows at once, and is history 15 s after it stopped; shrinking is no growth."""
    machine.put(7, anon_kib=1000)
    census = take(machine)
    census.sweep(NOW)
    told = []
    for second, anon_kib in ((1, 3000), (8, 3000), (16, 3000), (17, 500)):
        machine.put(7, anon_kib=anon_kib)
        census.look(NOW + second * SECOND, budget=0)
        told.append(by_pid(census)[7].growth_bytes // KIB)

    assert told == [2000, 2000, 0, 0]
    census.close()


def test_a_young_process_grew_by_all_it_has(machine: RecordedMachine) -> None:
    """It had nothing before it was born."""
    machine.put(7, anon_kib=1000, start_ticks=990 * TICKS_PER_SECOND)
    machine.put(8, anon_kib=1000, start_ticks=900 * TICKS_PER_SECOND)
    census = take(machine)
    census.sweep(NOW)

    assert {pid: sample.growth_bytes for pid, sample in by_pid(census).items()} == {7: 1000 * KIB, 8: 0}
    census.close()


def test_swap_that_was_there_before_is_no_growth(machine: RecordedMachine) -> None:
    """Swap shows in status only; it is gone from the numbers once the machine has nothing in swap."""
    machine.put(7, anon_kib=1000, swap_kib=5000)
    census = take(machine)
    census.sweep(NOW, is_swap_used=True)
    first = by_pid(census)[7]
    machine.put(7, swap_kib=0)
    census.look(NOW + 1, budget=0, is_swap_used=False)
    second = by_pid(census)[7]

    assert (first.swap_bytes, first.growth_bytes) == (5000 * KIB, 0)
    assert (second.swap_bytes, second.growth_bytes) == (0, 0)
    census.close()


def test_memory_that_nobody_in_the_front_took_is_unseen_until_a_sweep(machine: RecordedMachine) -> None:
    """The front explains its own part; whoever grew behind it is found by the sweep, and is in the front then."""
    machine.put_many(10, first_pid=100, anon_kib=400)
    machine.put(7, anon_kib=8000)
    machine.put(8, anon_kib=100)
    census = take(machine, front=2, shared_front=1)
    census.sweep(NOW)
    machine.put(7, anon_kib=8000 + 512)
    machine.put(8, anon_kib=100 + 51200)
    census.look(NOW + SECOND, budget=0)
    unseen_bytes = census.unseen_growth_bytes((512 + 51200) * KIB)
    census.sweep(NOW + 2 * SECOND)
    after_sweep_bytes = census.unseen_growth_bytes((512 + 51200) * KIB)
    machine.put(8, anon_kib=100)
    census.look(NOW + 3 * SECOND, budget=0)

    assert 0 <= 51200 * KIB - unseen_bytes <= 4 * KIB  # page tables
    assert after_sweep_bytes == 0
    assert by_pid(census)[8].anon_bytes == 100 * KIB
    census.close()


def test_the_others_are_visited_in_turn(machine: RecordedMachine) -> None:
    """With a budget of 10, everybody behind a front of 4 was read after 10 looks at 100 processes."""
    machine.put_many(100, anon_kib=400)
    census = take(machine, front=4, shared_front=1)
    census.sweep(NOW)
    for pid in range(1000, 1100):
        machine.put(pid, anon_kib=200)
    for turn in range(1, 11):
        census.look(NOW + turn, budget=10)

    assert {sample.anon_bytes for sample in census.processes()} == {200 * KIB}
    census.close()


def test_a_shared_memory_hog_is_in_the_front(machine: RecordedMachine) -> None:
    """It has nothing of its own, and yet what it grows by is seen at each look."""
    machine.put_many(20, anon_kib=400)
    machine.put(7, shmem_kib=40000)
    census = take(machine, front=4, shared_front=2)
    census.sweep(NOW)
    machine.put(7, shmem_kib=50000)
    census.look(NOW + SECOND // 2, budget=0)
    unseen_bytes = census.unseen_growth_bytes(10000 * KIB)
    census.look(NOW + 2 * SECOND, budget=0)

    assert unseen_bytes == 0
    assert by_pid(census)[7].shmem_bytes == 50000 * KIB
    census.close()


def test_those_just_born_are_met(machine: RecordedMachine) -> None:
    """By the last pid; one that cannot be seen yet is tried once more."""
    machine.put(7, anon_kib=400)
    machine.set_last_pid(7)
    census = take(machine)
    census.sweep(NOW)
    machine.put(9, anon_kib=500)
    machine.set_last_pid(10)
    census.look(NOW + 1, budget=0)
    first = set(by_pid(census))
    machine.put(10, anon_kib=600)  # its pid was given out before
    census.look(NOW + 2, budget=0)

    assert (first, set(by_pid(census))) == ({7, 9}, {7, 9, 10})
    census.close()


def test_a_flood_of_newborn_is_met_bit_by_bit(machine: RecordedMachine, calls: CountingOs) -> None:
    """No look reads more than 96 of them; in the end all are known, and the front keeps its size."""
    census = take(machine, front=8, shared_front=2)
    census.sweep(NOW)
    machine.put_many(300, anon_kib=40)
    machine.set_last_pid(30000)
    known = []
    for turn in range(4):
        calls.fail(None)
        census.look(NOW + turn, budget=0)
        known.append(len(census.processes()))

    assert known == [96, 192, 288, 300]
    assert census.statistics().front <= 10 + 16
    census.close()


def test_another_pid_order_is_found_by_the_listing(machine: RecordedMachine) -> None:
    """A restored process has an old number: after half a minute somebody looks."""
    machine.put(7)
    census = take(machine)
    census.sweep(NOW)
    machine.put(5, anon_kib=400)
    machine.remove(7)
    census.look(NOW + SECOND, budget=1)
    before = {5} <= set(by_pid(census))
    census.look(NOW + 31 * SECOND, budget=1)

    assert (before, set(by_pid(census))) == (False, {5})
    census.close()


def test_a_recycled_pid_is_somebody_else(machine: RecordedMachine) -> None:
    """The new life has its own growth, profile and place; the old identity finds nobody."""
    machine.put_many(6, anon_kib=4000, file_kib=40)
    machine.put(7, anon_kib=400)
    census = take(machine, front=2, shared_front=1)
    census.sweep(NOW)
    old = machine.identity(7)
    census.set_profile(old, Profile(exe=b"/old"))
    machine.put(7, start_ticks=99000, anon_kib=80)
    census.look(NOW + 1, budget=10)
    new = by_pid(census)[7]
    census.refresh([old], NOW + 2)

    assert (new.identity.start_time_ticks, new.profile, new.anon_bytes) == (99000, None, 80 * KIB)
    assert census.find(old) is None
    census.close()


def test_a_leader_that_has_ended_shows_its_memory_in_a_thread(machine: RecordedMachine) -> None:
    """State Z, no memory of its own, threads left: the memory is there; without threads left it is dead."""
    machine.put(7, anon_kib=4000)
    machine.put(8, anon_kib=4000)
    census = take(machine)
    census.sweep(NOW)
    machine.put(7, state="Z", threads=2, thread=77)
    machine.put(8, state="Z")
    census.look(NOW + 1, budget=0)
    machine.put(7, anon_kib=6000)
    census.look(NOW + 2, budget=0)
    found = by_pid(census)

    assert (found[7].anon_bytes, found[7].is_dead) == (6000 * KIB, False)
    assert (found[8].anon_bytes, found[8].is_dead) == (0, True)
    census.close()


def test_a_new_name_voids_the_profile(machine: RecordedMachine) -> None:
    """Another program under the same pid is not who it was; its name and wish are seen within looks of a second."""
    machine.put(7, anon_kib=4000)
    machine.put(8, anon_kib=5000)
    census = take(machine)
    census.sweep(NOW)
    before = census.without_profile(5)
    census.set_profile(machine.identity(7), Profile(exe=b"/a"))
    census.set_profile(machine.identity(8), Profile(exe=b"/b"))
    known = census.without_profile(5)
    machine.put(7, comm=b"other", oom_score_adj=500)
    census.look(NOW + 2 * SECOND, budget=0)
    sample = by_pid(census)[7]

    assert before == [machine.identity(8), machine.identity(7)]
    assert known == []
    assert census.without_profile(5) == [machine.identity(7)]
    assert (sample.comm, sample.oom_score_adj, sample.profile) == (b"other", 500, None)
    census.close()


def test_a_refresh_is_exact(machine: RecordedMachine) -> None:
    """Everything of the few that lead is read in that moment, also of one behind the front."""
    machine.put_many(8, anon_kib=4000)
    machine.put(7, anon_kib=40)
    census = take(machine, front=4, shared_front=1)
    census.sweep(NOW)
    shows = {"anon_kib": 8000, "swap_kib": 12, "page_table_kib": 20, "oom_score_adj": -1000, "comm": b"new"}
    for pid in (1000, 7):
        machine.put(pid, **shows)
    census.refresh([machine.identity(1000), machine.identity(7)], NOW + 1, is_swap_used=True)
    found = by_pid(census)

    for pid in (1000, 7):
        sample = found[pid]
        assert (sample.anon_bytes, sample.swap_bytes, sample.page_table_bytes) == (8000 * KIB, 12 * KIB, 20 * KIB)
        assert (sample.oom_score_adj, sample.comm) == (-1000, b"new")
    census.close()


def test_the_largest_are_enough_for_a_ranking(machine: RecordedMachine) -> None:
    """So many of the largest, the front, and those just born, however small."""
    machine.put_many(50, anon_kib=400)
    machine.put(7, anon_kib=9000)
    machine.put(8, anon_kib=40, start_ticks=998 * TICKS_PER_SECOND)
    census = take(machine, front=2, shared_front=1)
    census.sweep(NOW)
    pids = {sample.identity.pid for sample in census.processes(largest=10)}

    assert {7, 8} <= pids
    assert 10 <= len(pids) <= 14
    census.close()


def test_who_is_forgotten_is_not_read_again(machine: RecordedMachine, calls: CountingOs) -> None:
    """Not by a look, a refresh or a sweep, until readmitted or gone from a listing."""
    machine.put(7, anon_kib=4000)
    machine.set_last_pid(7)
    census = take(machine)
    census.sweep(NOW)
    identity = machine.identity(7)
    census.forget(identity)
    calls.fail(None)
    machine.set_last_pid(9)
    census.look(NOW + 1, budget=10)
    census.sweep(NOW + 2)
    census.refresh([identity], NOW + 3)
    opened = [call for call in calls.calls if call == "open"]
    known = by_pid(census)
    census.readmit(identity)
    census.look(NOW + 4, budget=0)

    assert known == {}
    assert len(opened) <= 4  # pids 8 and 9, tried twice
    assert set(by_pid(census)) == {7}
    census.close()


def test_few_descriptors_are_enough(machine: RecordedMachine) -> None:
    """What is not kept is read by opening; never more is kept than was said, and nothing after the end."""
    machine.put_many(20, anon_kib=400)
    before = descriptors()
    machine_population = MachinePopulation(machine.root)
    census = Census(
        machine.root, machine_population, page_bytes=PAGE_BYTES, ticks_per_second=TICKS_PER_SECOND, kept_files=17
    )
    census.sweep(NOW)
    machine.put_many(20, anon_kib=800)
    census.look(NOW + 1, budget=0)
    kept = descriptors() - before
    sizes = {sample.anon_bytes for sample in census.processes()}
    census.close()
    machine_population.close()

    assert kept == 4 * 4 + 1
    assert sizes == {800 * KIB}
    assert descriptors() == before


ERRNOS = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


def _run_everything(machine: RecordedMachine) -> Census:
    census = take(machine, front=2, shared_front=1)
    census.sweep(NOW, is_swap_used=True)
    machine.set_last_pid(12)
    census.look(NOW + 2 * SECOND, budget=2)
    census.refresh([machine.identity(7), machine.identity(9)], NOW + 3 * SECOND)
    census.look(NOW + 33 * SECOND, budget=2)
    machine.set_last_pid(11)
    return census


@pytest.mark.parametrize("number", ERRNOS, ids=[errno.errorcode[number] for number in ERRNOS])
def test_every_call_may_fail(machine: RecordedMachine, calls: CountingOs, number: int) -> None:
    """Each call once with this errno: nothing escapes, nothing stays open, and the next sweep has everybody."""
    machine.put(7, anon_kib=4000)
    machine.put(8, anon_kib=3000, state="Z", threads=2, thread=88)
    machine.put(9, anon_kib=200)
    machine.put(10, shmem_kib=900)
    machine.put(11, is_kernel_thread=True)
    machine.set_last_pid(11)
    _run_everything(machine).close()
    before = descriptors()
    count = 0
    for call in itertools.count():
        calls.fail(call, number)
        census = _run_everything(machine)
        was_reached = len(calls.calls) > call
        calls.fail(None)
        census.sweep(NOW + 40 * SECOND)
        told = {pid: sample.anon_bytes // KIB for pid, sample in by_pid(census).items()}
        census.close()

        assert told == {7: 4000, 8: 3000, 9: 200, 10: 0}, f"call {call}"
        if not was_reached:
            count = call
            break

    assert count > 60
    # The populations keep /proc/loadavg, one each; one of them could not open it.
    assert descriptors() - before in {count + 1, count}


@pytest.fixture(autouse=True)
def _close_loadavgs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever population a test makes is closed after it."""
    made: list[MachinePopulation] = []
    initialise = MachinePopulation.__init__

    def remember(self: MachinePopulation, proc_root: int) -> None:
        made.append(self)
        initialise(self, proc_root)

    monkeypatch.setattr(MachinePopulation, "__init__", remember)
    yield
    for each in made:
        each.close()


def test_what_is_not_ours_to_see_is_left_out_and_counted(machine: RecordedMachine, calls: CountingOs) -> None:
    """hidepid=1 lists everybody and shows nobody's files but one's own."""
    machine.put(7, anon_kib=400)
    census = take(machine)
    calls.fail(2, errno.EPERM)  # after loadavg and the list
    census.sweep(NOW)

    assert (census.processes(), census.statistics().refused) == ([], 1)
    census.close()


def test_running_out_of_descriptors_costs_half_of_them_once(machine: RecordedMachine, calls: CountingOs) -> None:
    """The largest keep theirs, however often it happens; a sweep takes up again what was let go."""
    machine.put_many(40, anon_kib=400)
    machine.put(7, anon_kib=9000)
    machine.set_last_pid(1040)
    census = take(machine)
    census.sweep(NOW)
    kept = [census.statistics().kept_files // 4]
    machine.set_last_pid(1044)
    # The kept files of the front are read first, then the last pid; then four numbers are tried: none can be opened.
    calls.fail(census.statistics().front + 1, errno.EMFILE, times=4)
    census.look(NOW + 1, budget=0)
    kept.append(census.statistics().kept_files // 4)
    calls.fail(0, errno.EMFILE, times=500)  # whatever is tried
    for turn in range(2, 5):
        census.look(NOW + turn, budget=0)
    kept.append(census.statistics().kept_files // 4)
    calls.fail(None)
    census.sweep(NOW + SECOND)

    assert kept == [41, 21, 16]
    assert census.statistics().kept_files // 4 == 41
    census.close()


# Real children


@pytest.fixture
def real() -> Iterator[Census]:
    """A census of this machine, swept once."""
    root = proc.open_root()
    machine_population = MachinePopulation(root)
    census = Census(
        root,
        machine_population,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        ticks_per_second=os.sysconf("SC_CLK_TCK"),
    )
    census.sweep(time.monotonic_ns())
    yield census
    census.close()
    machine_population.close()
    os.close(root)


def look(census: Census) -> dict[int, ProcessSample]:
    """Look now."""
    census.look(time.monotonic_ns(), budget=0)
    return by_pid(census)


def python(script: str) -> subprocess.Popen[bytes]:
    """A child that runs ``script``."""
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_child_that_grows_is_found_and_its_growth_told(real: Census) -> None:
    """64 MiB: met when it was born, in the front since, and larger by that much at the next look."""
    grow = "b = b'x' * (64 << 20); print('grown', flush=True); sys.stdin.read(1)"
    script = f"import sys; print('up', flush=True); sys.stdin.read(1); {grow}"
    with python(script) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = look(real)[child.pid]
        child.stdin.write(b"g")
        child.stdin.flush()
        child.stdout.readline()
        after = look(real)[child.pid]
        child.stdin.close()

    assert 64 * MIB <= after.anon_bytes - before.anon_bytes <= 72 * MIB
    assert after.growth_bytes == after.anon_bytes
    assert after.uid == os.getuid()
    assert after.parent_pid == os.getpid()
    assert 0 <= after.age_seconds < 60


def test_a_child_that_has_gone_is_gone_at_the_next_look(real: Census) -> None:
    """Its kept files answer ESRCH; nothing of it stays open."""
    before = descriptors()
    with python("input()") as child:
        assert child.stdin is not None
        was_there = child.pid in look(real)
        child.kill()
        child.wait()

    assert was_there
    assert child.pid not in look(real)
    assert descriptors() <= before


@pytest.mark.parametrize("name", [b"foo) Z 1 1 1", b"a\nb\x1b[31m", b"\xff\xfe\x80"])
def test_a_hostile_name_is_only_a_name(real: Census, name: bytes) -> None:
    """As the kernel has it, cut off at 15 bytes; the numbers beside it are right."""
    # Only a thread of the process itself may write its name.
    script = f"open('/proc/self/comm', 'wb').write({name!r}); print('up', flush=True); import sys; sys.stdin.read()"
    with python(script) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        sample = look(real)[child.pid]
        child.stdin.close()

    assert sample.comm == name
    assert (sample.parent_pid, sample.is_dead) == (os.getpid(), False)
    assert sample.anon_bytes > 0


@pytest.mark.needs("cc")
def test_a_real_leader_that_has_ended_is_as_large_as_its_process(real: Census) -> None:
    """/proc/PID/statm shows zeros, a thread holds 32 MiB."""
    from tests.victims import stage

    with stage.zombie_leader(size_bytes=32 * MIB) as victim:
        sample = look(real)[victim.pid]

        assert 32 * MIB <= sample.anon_bytes <= 48 * MIB
        assert not sample.is_dead


@pytest.mark.needs("cc")
def test_two_hundred_threads_are_one_process(real: Census) -> None:
    """Their numbers are tried as newcomers, and are found to lead no process."""
    from tests.victims import stage

    with stage.many_threads(200, size_bytes=8 * MIB) as victim:
        for _ in range(4):
            found = look(real)
        threads = {int(name) for name in os.listdir(f"/proc/{victim.pid}/task")}

        assert len(threads) > 200
        assert threads & set(found) == {victim.pid}


def test_processes_that_come_and_go_harm_nobody(real: Census) -> None:
    """Three hundred short lives in a row while everybody is read again and again."""
    script = "i=0; while [ $i -lt 300 ]; do /bin/true & i=$((i+1)); done; wait"
    with subprocess.Popen(["sh", "-c", script]) as shell:
        while shell.poll() is None:
            now_ns = time.monotonic_ns()
            real.look(now_ns, budget=50)
            real.refresh([sample.identity for sample in real.processes(largest=16)], now_ns)
    real.sweep(time.monotonic_ns())

    assert shell.returncode == 0
    assert os.getpid() in by_pid(real)
    assert wait_until(lambda: shell.pid not in look(real), 5.0)
