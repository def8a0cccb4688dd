"""Workers that die at the worst moment, and a kernel that refuses: the kill is made, the record whole, it lives on."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.watching import memory_group
from tests.real.worst_days import KILL, launched, workers_of
from tests.victims import stage
from tests.victims.processes import parent_of, states, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.worst_days import Launched

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

WHOLE = ["announce", "killed", "settled"]


def _is_of(pid: int, record: dict[str, Any]) -> bool:
    return bool(record["pid"] == pid)


def _kill_worker(watcher: Launched, worker: int) -> bool:
    """SIGKILL to a worker, if it is one still: a child of our own watcher, by its pidfd."""
    try:
        pidfd = os.pidfd_open(worker)
    except ProcessLookupError:
        return False
    try:
        if parent_of(worker) != watcher.pid:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (OSError, ValueError, IndexError):  # it has gone meanwhile
        return False
    finally:
        os.close(pidfd)
    return True


@contextlib.contextmanager
def _storm(watcher: Launched, every_s: float) -> Iterator[list[int]]:
    """Meanwhile a worker is killed now and then, whatever it does; the pids of those that were."""
    killed: list[int] = []
    is_over = threading.Event()

    def rage() -> None:
        while not is_over.wait(every_s):
            workers = workers_of(watcher.pid)
            if workers and _kill_worker(watcher, victim := workers[len(killed) % len(workers)]):
                killed.append(victim)

    thread = threading.Thread(target=rage)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


def test_idle_workers_that_die_are_replaced_and_the_next_kill_is_made() -> None:
    """All three at once, and their successors while they start: it says so, and kills as ever."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        first = workers_of(watcher.pid)
        for worker in first:
            assert _kill_worker(watcher, worker)
        assert wait_until(lambda: bool(set(workers_of(watcher.pid)) - set(first)), 10)
        for worker in set(workers_of(watcher.pid)) - set(first):
            _kill_worker(watcher, worker)  # it is starting
        hog = group.start_hog(300)
        status = hog.wait()
        watcher.await_event("settled")
        assert wait_until(lambda: len(workers_of(watcher.pid)) == 3, 10)

        assert status == -9
        assert watcher.about(hog.pid) == WHOLE
        assert len([record for record in watcher.of_kind("warning") if "a worker ended" in record["text"]]) >= 3


@pytest.mark.parametrize("every_ms", [2, 7, 20, 50])
def test_workers_that_die_all_the_time_make_no_kill_impossible(every_ms: int) -> None:
    """A worker dies every few ms, at whatever it is: three hogs one after another die, once each, and nobody else."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        bystander = group.start_idle(10)
        hogs = []
        with _storm(watcher, every_ms / 1000) as killed:
            for _ in range(3):
                hog = group.start_hog(300, pause_s=0.001)
                hog.wait(20)
                watcher.await_event("settled", where=functools.partial(_is_of, hog.pid))
                hogs.append(hog)
        assert wait_until(lambda: len(workers_of(watcher.pid)) == 3, 10)
        told = [[event for event in watcher.about(hog.pid) if event != "skipped"] for hog in hogs]

        assert len(killed) > 3
        assert [hog.process.returncode for hog in hogs] == [-9, -9, -9]
        assert told == [WHOLE] * 3
        assert bystander.is_alive
        assert watcher.process.poll() is None


@pytest.mark.needs("unshare", "loop_ext4", "cc")
def test_a_worker_that_dies_while_it_strikes_is_followed_by_another() -> None:
    """The one that stands in process_mrelease is killed by somebody: attempts go on, there is an outcome."""
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            (victim,) = stack.enter_context(stage.mmap_lock_held(size_bytes=90 * stage.MIB))
        config = KILL + '[victims]\nnever = [{ comm = "python*" }]\n'
        with launched(group, config=config) as watcher:
            group.start_hog(105, pause_s=0.002)
            watcher.await_event("announce", where=lambda record: record["pid"] == victim.pid)
            struck = 0
            until = time.monotonic() + 3
            while time.monotonic() < until and not watcher.of_kind("settled"):
                for worker in workers_of(watcher.pid):
                    if states(worker).get(worker) == "D":
                        struck += _kill_worker(watcher, worker)
                watcher.collect(0.01)
            settled = watcher.await_event("settled")

            assert struck >= 1
            assert (victim.pid, "unreapable") == (settled["pid"], settled["outcome"])
            assert watcher.about(victim.pid) == WHOLE
            assert watcher.process.poll() is None


@pytest.mark.parametrize("number", ["ENOENT", "ESRCH", "ENOMEM", "EMFILE", "EACCES", "EIO"])
def test_every_call_of_a_look_and_of_a_decision_may_fail_once(number: str) -> None:
    """In the n-th look the n-th call of os fails, and so on round, in decisions too: the hogs die, nobody else."""
    program = Path(__file__).with_name("faulty_watcher.py")
    with memory_group(150) as group, launched(group, config=KILL, runs=[str(program), number]) as watcher:
        bystander = group.start_idle(10)
        watcher.manager.listen(1.0)
        for _ in range(3):
            hog = group.start_hog(300, pause_s=0.002)
            status = hog.wait(20)
            watcher.await_event("settled", where=functools.partial(_is_of, hog.pid))

            assert status == -9
            assert [event for event in watcher.about(hog.pid) if event != "skipped"] == WHOLE
        assert bystander.is_alive
        assert watcher.end() == 0
        failed = next(line for line in watcher.log.splitlines() if line.startswith("failed calls: "))
        assert int(failed.removeprefix("failed calls: ").split()[0]) >= 20


_BROKEN = """
import sys; sys.path.append(sys.argv.pop(1))
from oomreaper.watch import start
from oomreaper.watch.mind.watcher import Watcher
import os
watch = Watcher.on_time
def break_down(self, now_ns):
    if os.path.exists(sys.argv[-1]):
        raise KeyError("a fault of ours")
    watch(self, now_ns)
Watcher.on_time = break_down
start.main(sys.argv[1:-1])
"""


def test_a_fault_of_ours_ends_it_loudly_and_leaves_nothing(tmp_path: Path) -> None:
    """A KeyError out of a decision: exit status 70 for its manager, where it came from, no worker, no socket."""
    flag = tmp_path / "broken"
    with memory_group(100) as group, launched(group, config=KILL, runs=["-c", _BROKEN], last=[str(flag)]) as watcher:
        workers = workers_of(watcher.pid)
        flag.touch()
        status = watcher.process.wait(20)
        assert watcher.process.stderr is not None
        said = watcher.process.stderr.read().decode()

        assert status == 70
        assert len(workers) == 3
        assert "a fault of ours, please report it: KeyError: 'a fault of ours'" in said
        assert "break_down" in said
        assert "Traceback" not in said
        assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 5)
        assert not os.path.lexists(watcher.events_path)
