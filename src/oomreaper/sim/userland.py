"""Our own code on the model: ordinary Python, run in greenlets, so that every system call in it is a step.

What it knows: which of our processes runs now, its descriptors, what each system call costs. What it refuses to know:
what that code does. A greenlet lets a function be left in the middle of a call and be gone on with later, which a
generator cannot where the code in between is ordinary. Development and ``oomreaper simulate`` only: never resident.

A process of ours that gets SIGKILL sees ``Killed`` in whatever call it stands in; it passes through the code's
``finally`` blocks, and each call that is made there raises it again, as a process that is being killed makes no calls.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import greenlet  # type: ignore[import-untyped] # it comes without types

from oomreaper.sim.checks import Violation
from oomreaper.sim.engine import Band
from oomreaper.sim.locks import Killed

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.tasks import Process, Thread


class Faults(NamedTuple):
    """Faults that are injected, each once in so many times by the chooser's word; 0: never.

    ``descriptor``: EMFILE where one is opened. ``memory``: ENOMEM of an open or a read. ``reap``: EAGAIN of
    process_mrelease. ``start``: a worker cannot be started. ``death``: a worker is killed when it gets a job.
    ``passing``: the pidfd does not arrive with its job (EMFILE at the receiver). ``slow``: a call takes 10 ms.
    """

    descriptor: int = 0
    memory: int = 0
    reap: int = 0
    start: int = 0
    death: int = 0
    passing: int = 0
    slow: int = 0


NO_FAULTS = Faults()
ALL_FAULTS = Faults(descriptor=200, memory=200, reap=20, start=10, death=40, passing=40, slow=200)
_SLOW_NS = 10_000_000
# No number that a descriptor of the real process could have: one that ever reached the real kernel would be EBADF.
_FIRST_DESCRIPTOR = 1_000_000


class OsFault(NamedTuple):
    """For who wants to see which faults were injected."""

    what: str
    number: int


class User:
    """One process of ours: its thread on the model, and its descriptors."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.thread: Thread = process.threads[0]
        self.descriptors: dict[int, Any] = {}
        self.body: Any = None  # its greenlet
        self.leave: Any = None  # goes back to whoever runs the simulation, until the next step
        self._next = _FIRST_DESCRIPTOR

    def keep(self, what: object) -> int:
        """A new descriptor of it."""
        number = self._next
        self._next += 1
        self.descriptors[number] = what
        return number


class Userland:
    """All our processes on one machine."""

    def __init__(self, machine: Machine, faults: Faults = NO_FAULTS) -> None:
        self.machine = machine
        self.faults = faults
        self.users: dict[int, User] = {}
        self.injected: list[OsFault] = []
        self.saboteur: Callable[[str, object], int | None] | None = (
            None  # for a test that wants one certain call to fail
        )
        self._user: User | None = None
        self._is_over = False

    @property
    def user(self) -> User:
        """Whose code runs now."""
        if self._user is None:
            raise Violation("userland", "a system call outside any process of ours")
        return self._user

    def add(self, name: str, function: Callable[[], object], *, band: Band = Band.NORMAL, **more: Any) -> User:
        """A process of ours, which runs ``function`` and then ends."""
        process = self.machine.add_process(name, (self._make_program(function),), band=band, **more)
        user = self.users[process.pid] = User(process)
        return user

    def run(self, steps: Steps) -> Any:
        """Run a kernel path in the context of the process that runs now; its value.

        Raises:
            Killed: The process is to end.
        """
        switch = self.user.leave
        if self._is_over:
            raise Killed
        try:
            while True:
                switch(next(steps))
        except StopIteration as stop:
            return stop.value

    def call(self, cost_ns: int | None = None) -> None:
        """The entry of a system call: a step, in which others may come in between."""
        user, machine = self.user, self.machine
        if self._is_over:
            raise Killed
        if self.faults.slow and machine.engine.chance(self.faults.slow):
            cost_ns = _SLOW_NS
        # What ``machine.user`` does, without a generator where nothing holds the process: most steps of ours are this.
        user.leave(cost_ns)
        thread = user.thread
        if machine.is_held(thread):
            self.run(machine.go_back(thread, cost_ns))

    def fail(self, what: str, about: object, *faults: tuple[int, int]) -> None:
        """Have a call fail now and then: each fault is (once in so many times, with this errno).

        ``what`` is the call, ``about`` what it was asked for: a name, a pid. A ``saboteur`` is asked first.

        Raises:
            OSError: This time.
        """
        if self._is_over:
            return
        if self.saboteur is not None:
            number = self.saboteur(what, about)
            if number is not None:
                self._raise(number, what)
        for one_in, number in faults:
            if one_in and self.machine.engine.chance(one_in):
                self._raise(number, what)

    def _raise(self, number: int, what: str) -> None:
        self.injected.append(OsFault(what, number))
        self.machine.engine.note(f"fault: {what} fails with {os.strerror(number)}")
        raise OSError(number, os.strerror(number), what)

    def close(self) -> None:
        """The simulation is over: what code of ours is in the middle of something leaves it, and calls nothing.

        Left to the garbage collector, it would leave later, and close descriptors that are none of the model's.
        """
        self._is_over = True
        for user in list(self.users.values()):
            if user.body is not None and not user.body.dead:
                self._user = user
                with contextlib.suppress(Killed, Exception):  # what its last calls meet is nobody's concern any more
                    user.body.throw(Killed)
        self._user = None

    def _make_program(self, function: Callable[[], object]) -> Callable[[Machine, Thread], Steps]:
        def program(_machine: Machine, thread: Thread) -> Steps:
            user = self.users[thread.process.pid]
            user.body = body = greenlet.greenlet(function)
            user.leave = body.parent.switch
            switch = body.switch
            try:
                while True:
                    self._user = user
                    what = switch()
                    if body.dead:
                        return
                    yield what
            finally:
                self._user = None
                if body.dead:
                    user.descriptors.clear()
                    del self.users[thread.process.pid]

        return program
