"""The reaper's workers on the model: real ``WorkerChild`` code, fed and ended as ``worker.pool`` does it.

Implements ``oomreaper.reaper.roster.Workers``. Jobs and reports go through ``wire`` as on the real socket. A worker
that stands in process_mrelease is killed and replaced as in life; a fault kills one, or lets none be started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.errors import KernelError
from oomreaper.linux import proc
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.jobs import Hello
from oomreaper.reaper.parts import Parts
from oomreaper.reaper.wire import decode_report, encode_job
from oomreaper.reaper.worker import child
from oomreaper.sim.engine import Band, Signal
from oomreaper.sim.linux.calls import Mailbox, PidFd, ProcRoot

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.jobs import Job
    from oomreaper.sim.linux.calls import Calls
    from oomreaper.sim.tasks import Process
    from oomreaper.sim.userland import Userland

_NAME = "oomreaper/reap"


class Hands:
    """Workers by number (their pid).

    Args:
        userland: Where they run.
        calls: What they call.
        master: The process that they are children of.
        band: Their scheduling class: FIFO where it is permitted.
    """

    def __init__(self, userland: Userland, calls: Calls, master: Process, *, band: Band = Band.FIFO) -> None:
        self._land = userland
        self._machine = userland.machine
        self._calls = calls
        self._master = master
        self._band = band
        self._proc: int | None = None
        self._boxes: dict[int, Mailbox] = {}
        self._parts = Parts()
        self._arrived: list[tuple[int, bytes | None]] = []  # None: it has ended
        self.news = Signal("something to happen", is_interruptible=True)
        self.messages = 0
        self.crashes: list[Exception] = []  # failed calls that ended a worker
        master.on_exit.append(self._orphan)

    # -- the seam of the crew ------------------------------------------------------------------------------

    def start(self, *, can_release: bool) -> int | None:
        """Fork one."""
        engine, faults = self._machine.engine, self._land.faults
        if engine.chance(faults.start):
            engine.note("fault: no worker could be started")
            return None
        box = Mailbox(_NAME)
        ourselves = self.ourselves()
        user = self._land.add(
            _NAME,
            lambda: self._serve(box, ourselves, can_release=can_release),
            band=self._band,
            parent=self._master,
            uid=0,
        )
        worker = user.process.pid
        user.process.session = self._master.session
        user.process.process_group = self._master.process_group
        box.sent = lambda message: self._post(worker, message)
        user.process.on_exit.append(lambda: self._post(worker, None))
        self._boxes[worker] = box
        return worker

    def assign(self, worker: int, job: Job, handle: int | None) -> bool:
        """Send a job with the victim's pidfd; False when the worker is gone."""
        box = self._boxes.get(worker)
        if box is None:
            return False
        process = self._machine.processes.get(worker)
        if process is None or process.is_group_exit:
            return False
        pidfd = None if handle is None else self._land.users[self._master.pid].descriptors[handle]
        assert pidfd is None or isinstance(pidfd, PidFd)
        box.messages.append((encode_job(job), pidfd))
        box.arrived.wake_all()
        if self._machine.engine.chance(self._land.faults.death):
            self._machine.engine.call_later(0, lambda: self._strike_dead(process))
        return True

    def dismiss(self, worker: int) -> None:
        """SIGKILL it; nothing more is heard of it."""
        del self._boxes[worker]
        self._parts.drop(worker)
        process = self._machine.processes.get(worker)
        if process is not None and not process.is_dead:
            self._machine.kill(process, self._master)

    def is_waiting(self, worker: int) -> bool:
        """Whether it sleeps in the kernel, by /proc, and has not answered."""
        if any(sender == worker for sender, _ in self._arrived):
            return False
        if self._proc is None:
            self._proc = self._land.user.keep(ProcRoot())  # opened long ago, at the start
        return proc.is_asleep(self._proc, worker)

    # -- for who drives the crew ---------------------------------------------------------------------------

    def ourselves(self) -> Ourselves:
        """Who must never be a victim."""
        master = self._master
        ancestors = frozenset({self._machine.init.pid})
        return Ourselves(frozenset({master.pid, *self._boxes}), ancestors, master.process_group, master.session)

    @property
    def has_news(self) -> bool:
        """Whether something has come that was not delivered yet."""
        return bool(self._arrived)

    def deliver(self, crew: Crew, now: Callable[[], int]) -> None:
        """Bring to the crew what has come; between two of them the crew may have dismissed the next one."""
        while self._arrived:
            worker, message = self._arrived.pop(0)
            if worker not in self._boxes:
                continue
            self.messages += 1
            if message is None:
                self._forget(worker)
                crew.on_worker_exit(worker, now(), why="by SIGKILL", is_sandboxed=False)
                continue
            report = self._parts.join(worker, decode_report(message))
            if report is not None:
                crew.on_report(worker, report, now())

    # -- inside --------------------------------------------------------------------------------------------

    def _serve(self, box: Mailbox, ourselves: Ourselves, *, can_release: bool) -> None:
        """What ``child.run`` does after the fork, and without what makes a process resident.

        A failure of the kernel that nobody caught ends the worker, as it does there; it is kept, for who looks for it.
        Anything else is a defect of ours and ends the simulation.
        """
        try:
            self._be_worker(box, ourselves, can_release=can_release)
        except (OSError, KernelError) as error:
            self.crashes.append(error)
            self._machine.engine.note(f"a worker ends of {error}")

    def _be_worker(self, box: Mailbox, ourselves: Ourselves, *, can_release: bool) -> None:
        own_pid = self._calls.os.getpid()
        ours = ourselves._replace(pids=ourselves.pids | {own_pid})
        worker = child.WorkerChild(box, proc.open_root(), ours)  # type: ignore[arg-type] # a mailbox for a socket
        problem = child._rehearse(own_pid)  # noqa: SLF001 - it is part of a worker's start
        probed = self._calls.syscalls.answer_of_mrelease_probe() if can_release else 0
        worker.answer(Hello(probed, is_locked=True, is_realtime=self._band is Band.FIFO, problem=problem))
        worker.serve()

    def _post(self, worker: int, message: bytes | None) -> None:
        self._arrived.append((worker, message))
        self.news.wake_all()

    def _forget(self, worker: int) -> None:
        del self._boxes[worker]
        self._parts.drop(worker)

    def _orphan(self) -> None:
        """The master has ended: its workers end with it (PR_SET_PDEATHSIG)."""
        for worker in list(self._boxes):
            self.dismiss(worker)

    def _strike_dead(self, process: Process) -> None:
        if not process.is_dead:
            self._machine.engine.note(f"fault: {process} is killed by somebody")
            self._machine.kill(process)
