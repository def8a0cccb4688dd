"""Stands in for the watcher: a crew, its workers started, that serves whom it is told to on its stdin.

Run by ``ours`` as a process of its own, ``python -I -S``, with nothing imported but what an errand imports: so it
costs what a watcher's reaper costs, and the bench that times it is somebody else.

It reads lines and writes lines of JSON::

    (start)      {"said": "ready", "workers": [pid…], "forked_ns": …, "ready_ns": …, "hellos": [[…]…]}
    scout PID    {"said": "scouted", "pid": …}            or "refused"; the look before the decision
    kill PID     {"said": "settled", "pid": …, "outcome": {…}, "strikes": [{…}…], "submitted_ns": …, "settled_ns": …}
    (end)        it ends its workers and itself

Arguments: "fifo"; "nice" behaves as if the kernel refused real time, "ordinary" as if it refused nice -20 too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from oomreaper.linux import proc, resident, syscalls
from oomreaper.model.event import EventKind
from oomreaper.policy import protection
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.jobs import Hello, Struck
from oomreaper.reaper.settings import Settings
from oomreaper.reaper.worker.pool import Answered, Pool

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.process import Scouting
    from oomreaper.reaper.jobs import Job

_NS_IN_MS = 1_000_000
_STDIN = 0


class NotingPool(Pool):
    """A pool that remembers whom each worker was last sent to."""

    def __init__(self, proc_root: int, ancestors: frozenset[int]) -> None:
        super().__init__(proc_root, ancestors)
        self.pid_by_worker: dict[int, int] = {}

    def assign(self, worker: int, job: Job, handle: int | None) -> bool:
        """Note it, then do it."""
        self.pid_by_worker[worker] = job.pid
        return super().assign(worker, job, handle)


class Victim(NamedTuple):
    """Somebody that we were told of, by pidfd."""

    pid: int
    scouting: Scouting


class StandIn:
    """Drives a crew with one poll, as the watcher will with one epoll; with a crew of the default size if not told."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._pool = NotingPool(proc.open_root(), frozenset({os.getppid()}))
        self._crew = Crew(self._pool, settings or Settings())
        self._hellos: list[Hello] = []
        self._pids: dict[int, int] = {}  # by pidfd
        self._victims: dict[int, Victim] = {}  # by pidfd, once scouted
        self._lives: dict[Identity, int] = {}  # pidfd by life, once submitted
        self._watched: set[int] = set()
        self._strikes: dict[int, list[Struck]] = {}
        self._submitted_ns: dict[int, int] = {}

    def start(self) -> dict[str, Any]:
        """Have the workers ready; what to say of it."""
        resident.settle_heap()
        started_ns = time.monotonic_ns()
        self._crew.start(started_ns)
        forked_ns = time.monotonic_ns()
        while not self._crew.is_ready:
            self.turn()
        return {
            "said": "ready",
            "workers": list(self._pool.filenos()),
            "started_ns": started_ns,
            "forked_ns": forked_ns,
            "ready_ns": time.monotonic_ns(),
            "hellos": self._hellos,
        }

    def scout(self, pid: int) -> None:
        """Have a victim looked at; the answer comes out of ``turn``."""
        pidfd = syscalls.pidfd_open(pid)
        self._pids[pidfd] = pid
        self._crew.scout(pid, pidfd, time.monotonic_ns())

    def kill(self, pid: int) -> None:
        """Hand a victim over; the answer comes out of ``turn``."""
        pidfd = next(fd for fd, victim in self._victims.items() if victim.pid == pid)
        identity = self._victims[pidfd].scouting.process.identity
        self._lives[identity] = pidfd
        self._watched.add(pidfd)
        self._submitted_ns[pid] = time.monotonic_ns()
        self._crew.submit(self._victims[pidfd].scouting, pidfd, self._submitted_ns[pid])

    def turn(self, *also: int) -> tuple[list[dict[str, Any]], bool]:
        """Wait for whatever comes first; what to say of it, and whether one of ``also`` can be read."""
        due_ns = self._crew.next_deadline_ns()
        wait_ms = None if due_ns is None else max(0, -(-(due_ns - time.monotonic_ns()) // _NS_IN_MS))
        workers = {fileno: worker for worker, fileno in self._pool.filenos().items()}
        poll = select.poll()
        for fileno in (*workers, *self._watched, *also):
            poll.register(fileno, select.POLLIN)
        is_also = False
        for fileno, _events in poll.poll(wait_ms):
            if fileno in also:
                is_also = True
            elif fileno in self._watched:
                self._watched.discard(fileno)
                (identity,) = (life for life, pidfd in self._lives.items() if pidfd == fileno)
                self._crew.on_victim_exit(identity, time.monotonic_ns())
            else:
                self._hear(workers[fileno])
        self._crew.on_time(time.monotonic_ns())
        return self._take_news(), is_also

    def end(self) -> None:
        """End the workers."""
        self._pool.close()

    def _hear(self, worker: int) -> None:
        said = self._pool.read(worker)
        now_ns = time.monotonic_ns()
        if isinstance(said, Answered):
            if isinstance(said.report, Hello):
                self._hellos.append(said.report)
            elif isinstance(said.report, Struck):
                self._strikes.setdefault(self._pool.pid_by_worker[worker], []).append(said.report)
            self._crew.on_report(said.worker, said.report, now_ns)
        elif said is not None:
            self._crew.on_worker_exit(said.worker, now_ns, why=said.why, is_sandboxed=said.is_sandboxed)

    def _take_news(self) -> list[dict[str, Any]]:
        news: list[dict[str, Any]] = []
        for pidfd, scouted in self._crew.take_scouted():
            scouting = scouted.scouting
            refusal = None if scouting is None else protection.refuse_process(scouting, self._pool.ourselves())
            if scouting is None or refusal is not None:
                news.append({"said": "refused", "pid": self._pids[pidfd], "reason": str(refusal or scouted.problem)})
            else:
                self._victims[pidfd] = Victim(self._pids[pidfd], scouting)
                news.append({"said": "scouted", "pid": self._pids[pidfd]})
        for event in self._crew.take_events():
            if event.kind is EventKind.SETTLED and event.outcome is not None:
                pid = event.outcome.pid
                news.append(
                    {
                        "said": "settled",
                        "pid": pid,
                        "outcome": event.outcome.as_json(),
                        "strikes": [struck._asdict() for struck in self._strikes.get(pid, ())],
                        "submitted_ns": self._submitted_ns[pid],
                        "settled_ns": event.monotonic_ns,
                    }
                )
        return news


def serve(priority: str) -> None:
    """Be the stand-in until stdin ends."""
    if priority != "fifo":
        os.sched_setscheduler = _refuse
    if priority == "ordinary":
        os.setpriority = _refuse
    stand_in = StandIn()
    try:
        with resident.promptness():
            ready = stand_in.start()
            with contextlib.suppress(OSError):  # as an ordinary user's watcher: without
                syscalls.lock_memory()
            _say(ready)
            _obey(stand_in)
    finally:
        stand_in.end()


def _obey(stand_in: StandIn) -> None:
    unread = b""
    while True:
        news, is_order = stand_in.turn(_STDIN)
        for item in news:
            _say(item)
        if not is_order:
            continue
        order = os.read(_STDIN, 4096)
        if not order:
            return
        *lines, unread = (unread + order).split(b"\n")
        for line in lines:
            verb, pid = line.split()
            {b"scout": stand_in.scout, b"kill": stand_in.kill}[verb](int(pid))


def _refuse(which: int, who: int, priority: object) -> NoReturn:  # noqa: ARG001 - the names of os.setpriority
    raise PermissionError(1, "the bench refuses it, as a kernel may")


def _say(item: dict[str, Any]) -> None:
    os.write(1, json.dumps(item).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1])
