"""Who acts: the Enforcer signals through the pidfd, the Pretender never does; with a real child of our own."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import syscalls
from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.event import EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.plan import MACHINE, KillUnit
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import JobKind, UnitOrder
from oomreaper.reaper.settings import Settings
from oomreaper.watch.actors import Enforcer, Pretender
from tests.reaper.fakes import HELLO, FakeWorkers, scouting
from tests.watch.fakes import START_NS, Body

if TYPE_CHECKING:
    from collections.abc import Generator

PROGRAM = "import signal, sys; print('ready', flush=True); signal.pause()"


class Child:
    """A process of our own that waits for signals, and its pidfd."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.handle = syscalls.pidfd_open(self.process.pid)
        self.identity = Identity(self.process.pid, 7)

    def has_ended(self, seconds: float) -> bool:
        """Whether its pidfd becomes readable within that time."""
        return bool(select.select([self.handle], [], [], seconds)[0])

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        os.close(self.handle)


@pytest.fixture
def child() -> Generator[Child]:
    """A child that is ended whatever happens."""
    child = Child()
    try:
        yield child
    finally:
        child.close()


def make_enforcer(directory: str | None = "/cgroup") -> tuple[Enforcer, FakeWorkers, Crew]:
    """One whose crew has workers that do nothing."""
    workers = FakeWorkers()
    crew = Crew(workers, Settings())
    crew.start(START_NS)
    for worker in sorted(workers.alive):
        crew.on_report(worker, HELLO, START_NS)
    return Enforcer(crew, lambda _: directory), workers, crew


def unit_orders(workers: FakeWorkers) -> list[UnitOrder]:
    """What units were to be killed."""
    orders = [job.order for job, _ in workers.jobs.values() if job.kind is JobKind.KILL_UNIT]
    return [order for order in orders if isinstance(order, UnitOrder)]


def chosen(unit: KillUnit, key: str) -> RankedProcess:
    """A victim of a unit."""
    return RankedProcess(Body(100, 50, 500).sample(), Standing.ELIGIBLE, 1.0, (), unit, key)


OTHERS = (Body(101, 40, 5).sample(), Body(102, 60, 5).sample())


def test_the_enforcer_asks_to_end_and_says_so(child: Child) -> None:
    """SIGTERM goes through the pidfd, and a KILLED event names it."""
    enforcer, _, _ = make_enforcer()

    answer = enforcer.terminate(child.identity, child.handle, START_NS)
    (event,) = enforcer.take_events()

    assert answer == 0
    assert child.has_ended(10)
    assert child.process.wait(10) == -signal.SIGTERM
    assert (event.kind, event.identity, event.text) == (EventKind.KILLED, child.identity, "SIGTERM")
    assert enforcer.take_events() == []


def test_the_enforcer_says_when_nobody_is_there_to_ask(child: Child) -> None:
    """A process that was waited for: ESRCH, and no event that claims a signal."""
    enforcer, _, _ = make_enforcer()
    child.process.kill()
    child.process.wait(10)

    assert enforcer.terminate(child.identity, child.handle, START_NS) == errno.ESRCH
    assert enforcer.take_events() == []


def test_the_pretender_never_signals(child: Child) -> None:
    """Whatever it is told to do, the child lives on; each is answered with an outcome without a kind."""
    pretender = Pretender()
    look = scouting(child.process.pid)

    asked = pretender.terminate(child.identity, child.handle, START_NS)
    struck = pretender.submit(look, child.handle, START_NS)
    pretender.kill_unit(
        chosen(KillUnit.GROUP, str(os.getpgid(child.process.pid))), OTHERS, scope=MACHINE, is_whole=True, now_ns=0
    )
    events = pretender.take_events()

    assert (asked, struck) == (0, Entry.QUEUED)
    assert not child.has_ended(0.2)
    assert child.process.poll() is None
    assert [event.kind for event in events] == [EventKind.SETTLED] * 2
    assert [event.identity for event in events] == [child.identity, look.process.identity]
    assert [event.outcome.kind for event in events if event.outcome is not None] == [None, None]
    assert pretender.take_events() == []


def test_the_pretender_knows_who_could_not_have_been_signalled(child: Child) -> None:
    """One that has gone: it says so rather than claim that it would have been killed."""
    pretender = Pretender()
    child.process.kill()
    child.process.wait(10)

    refused = pretender.terminate(child.identity, child.handle, START_NS)
    pretender.submit(scouting(child.process.pid), child.handle, START_NS)
    (event,) = pretender.take_events()

    assert refused == errno.ESRCH
    assert event.outcome is not None
    assert "could not be signalled" in event.outcome.reason


@pytest.mark.parametrize("handle", [-1, 0])
def test_what_is_no_pidfd_is_refused_and_not_guessed(handle: int) -> None:
    """A wrong descriptor is an errno, for both of them: nobody is signalled by a number."""
    enforcer, _, _ = make_enforcer()

    assert enforcer.terminate(Identity(1, 1), handle, START_NS) == errno.EBADF
    assert Pretender().terminate(Identity(1, 1), handle, START_NS) == errno.EBADF


def test_a_unit_with_protected_members_dies_by_name_only() -> None:
    """Not whole: just the lives that were chosen, no group, no session, no cgroup.kill."""
    enforcer, workers, _ = make_enforcer()

    enforcer.kill_unit(chosen(KillUnit.CGROUP, "/a"), OTHERS, scope=MACHINE, is_whole=False, now_ns=START_NS)

    assert unit_orders(workers) == [UnitOrder((Identity(101, 40), Identity(102, 60)))]


@pytest.mark.parametrize(
    ("unit", "key", "expected"),
    [
        (KillUnit.PROCESS, "", UnitOrder(())),
        (KillUnit.GROUP, "100", UnitOrder((), process_group=100, born_after_ticks=39)),
        (KillUnit.SESSION, "77", UnitOrder((), session=77, born_after_ticks=39)),
        (KillUnit.CGROUP, "/a", UnitOrder((), cgroup_directory="/cgroup")),
    ],
)
def test_a_whole_unit_dies_with_who_is_born_into_it(unit: KillUnit, key: str, expected: UnitOrder) -> None:
    """Of a group or session nobody older than its oldest chosen member is looked for."""
    enforcer, workers, _ = make_enforcer()

    enforcer.kill_unit(chosen(unit, key), OTHERS, scope=MACHINE, is_whole=True, now_ns=START_NS)

    assert unit_orders(workers) == [expected._replace(lives=(Identity(101, 40), Identity(102, 60)))]


def test_a_unit_stays_inside_the_group_that_is_short() -> None:
    """A process group that reaches out of the scope: only those inside are looked for."""
    enforcer, workers, _ = make_enforcer()

    enforcer.kill_unit(chosen(KillUnit.GROUP, "100"), OTHERS, scope="/job", is_whole=True, now_ns=START_NS)

    (order,) = unit_orders(workers)
    assert order.within_directory == "/cgroup"


def test_a_group_that_this_machine_does_not_show_dies_by_name() -> None:
    """No directory: the lives that are known."""
    enforcer, workers, _ = make_enforcer(directory=None)

    enforcer.kill_unit(chosen(KillUnit.CGROUP, "/a"), OTHERS, scope=MACHINE, is_whole=True, now_ns=START_NS)

    assert unit_orders(workers) == [UnitOrder((Identity(101, 40), Identity(102, 60)))]
