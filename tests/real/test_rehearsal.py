"""The rehearsal on this kernel: a crew that has killed before it is needed, and nothing left of it."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import proc, syscalls
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.settings import Settings
from oomreaper.reaper.worker.pool import Answered, Pool
from oomreaper.watch import rehearsal
from tests.victims.processes import children_of, start_time_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bench:
    """A crew with real workers, driven by one poll."""

    def __init__(self, settings: Settings) -> None:
        self.root = proc.open_root()
        self.pool = Pool(self.root, frozenset())
        self.crew = Crew(self.pool, settings)
        self.exits: list[str] = []

    def wait(self, wait_ns: int | None) -> None:
        """One turn: what the workers say goes to the crew."""
        poll = select.poll()
        workers = {fileno: worker for worker, fileno in self.pool.filenos().items()}
        for fileno in workers:
            poll.register(fileno, select.POLLIN)
        for fileno, _ in poll.poll(None if wait_ns is None else wait_ns / 1e6):
            said = self.pool.read(workers[fileno])
            now_ns = time.monotonic_ns()
            if isinstance(said, Answered):
                self.crew.on_report(said.worker, said.report, now_ns)
            elif said is not None:
                self.exits.append(said.why)
                self.crew.on_worker_exit(said.worker, now_ns, why=said.why, is_sandboxed=said.is_sandboxed)

    def start(self) -> None:
        """All workers ready."""
        self.crew.start(time.monotonic_ns())
        while not self.crew.is_ready:
            self.wait(10_000_000)

    def close(self) -> None:
        """End the workers."""
        self.pool.close()
        os.close(self.root)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A crew of the usual size."""
    made = Bench(Settings())
    try:
        made.start()
        yield made
    finally:
        made.close()


def open_descriptors() -> set[str]:
    """What this process has open."""
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def test_every_worker_has_scouted_and_struck_twice_and_nothing_is_left(bench: Bench) -> None:
    """Each worker has done both kinds of job; no child, descriptor, mark, event or count of it remains."""
    children, descriptors = children_of(os.getpid()), open_descriptors()
    statistics = bench.crew.statistics()
    before_ns = time.monotonic_ns()
    cold = rehearsal.rehearse(bench.crew, bench.pool, bench.wait)
    took_ms = (time.monotonic_ns() - before_ns) / 1e6
    services = bench.crew.services()

    assert cold == ()
    assert set(services) == set(bench.pool.filenos())
    assert min(service.scouts for service in services.values()) >= rehearsal.ROUNDS
    assert min(service.strikes for service in services.values()) >= rehearsal.ROUNDS
    assert statistics == bench.crew.statistics()
    assert bench.crew.is_quiet
    assert bench.crew.take_events() == []
    assert bench.crew.take_scouted() == []
    assert len(bench.crew._handoff.marks) == 0
    assert children == children_of(os.getpid())
    assert descriptors == open_descriptors()
    assert took_ms < 2_500


def test_a_crew_that_cannot_fork_is_cold_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child to be had: a warning for each worker, no error, nothing left behind."""

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    cold = rehearsal.rehearse(bench.crew, bench.pool, bench.wait)

    assert len(cold) == 1 + 3
    assert "no child could be had" in cold[0]
    assert bench.crew.is_quiet


def test_a_rehearsal_ends_in_time_when_a_worker_does_not_answer(bench: Bench) -> None:
    """Workers that were stopped hold it up for its two seconds and a little, and every child is gone after it."""
    children = children_of(os.getpid())
    for worker in bench.pool.filenos():
        pidfd = syscalls.pidfd_open(worker)
        syscalls.pidfd_send_signal(pidfd, 19)
        os.close(pidfd)
    before_ns = time.monotonic_ns()
    cold = rehearsal.rehearse(bench.crew, bench.pool, bench.wait)
    took_ms = (time.monotonic_ns() - before_ns) / 1e6
    left = set(children_of(os.getpid())) - set(children) - set(bench.pool.filenos())

    assert cold != ()
    assert took_ms < 4_000
    assert [pid for pid in left if start_time_ticks(pid) is not None and pid not in bench.pool._dismissed] == []
