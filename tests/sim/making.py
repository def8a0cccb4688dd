"""What tests of the model make again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.choice import Seeded
from oomreaper.sim.engine import Signal
from oomreaper.sim.machine import Machine
from oomreaper.sim.parameters import GIB, PLAIN, SECOND
from oomreaper.sim.release import process_mrelease

if TYPE_CHECKING:
    from oomreaper.sim.engine import Ending, Steps
    from oomreaper.sim.tasks import Process, Thread


def machine(seed: int = 1, **changes: object) -> Machine:
    """A machine of 4 GiB, with other parameters where they are named."""
    return Machine(Seeded(seed), PLAIN._replace(**changes))  # type: ignore[arg-type] # each names fields of Parameters


def small_machine(seed: int = 1, **changes: object) -> Machine:
    """One of 1 GiB."""
    return machine(seed, memory_bytes=GIB, **changes)


def go_on(on: Machine, seconds: float = 10, max_steps: int = 200_000) -> Ending:
    """Let so much virtual time pass."""
    return on.engine.run(until_ns=on.engine.now_ns + int(seconds * SECOND), max_steps=max_steps)


class Caller:
    """Somebody who calls process_mrelease from user space, in a process of its own."""

    def __init__(self, on: Machine) -> None:
        self.answers: list[int] = []
        self._machine = on
        self._wanted: list[Process] = []
        self._news = Signal("a wish", is_interruptible=True)
        self.process = on.add_process("caller", [self._run])

    def ask(self, victim: Process) -> int:
        """Call; the answer, -1 when there is none within a second."""
        self._wanted.append(victim)
        self._news.wake_all()
        before = len(self.answers)
        self._machine.engine.run(until_ns=self._machine.engine.now_ns + SECOND, max_steps=50_000)
        return self.answers[-1] if len(self.answers) > before else -1

    def _run(self, on: Machine, thread: Thread) -> Steps:
        while True:
            while not self._wanted:
                yield self._news
                yield from on.user(thread)
            answer = yield from process_mrelease(on, thread, self._wanted.pop(0))
            self.answers.append(answer)
            on.engine.stop()
