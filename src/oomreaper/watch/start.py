"""The watcher's process: put together, warmed up, made resident, and then left to the loop.

Runs under ``python3 -I -S`` with the standard library only. The order is what makes it small and sure: workers are
forked before anything large is read, everything that a kill will need is opened and walked once, the heap is settled
and locked, what is not needed any more is given up; only then is the service manager told READY.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from oomreaper.errors import KernelError, OomreaperError
from oomreaper.linux import privileges, proc, resident
from oomreaper.linux.notify import VARIABLES, Notifier
from oomreaper.model.plan import MACHINE
from oomreaper.policy import explain
from oomreaper.reaper.crew import Crew, Settings
from oomreaper.reaper.worker.pool import Pool
from oomreaper.watch.actors import Enforcer, Pretender
from oomreaper.watch.candidates import Candidates
from oomreaper.watch.companions import Companion
from oomreaper.watch.handles import Handles
from oomreaper.watch.hunter import Hunter
from oomreaper.watch.log import ERROR, INFO, Log
from oomreaper.watch.loop import Loop, Service
from oomreaper.watch.machine import LinuxMachine
from oomreaper.watch.outlet import Outlet
from oomreaper.watch.plan import decode_plan
from oomreaper.watch.rehearsal import rehearse
from oomreaper.watch.reload import Reloader
from oomreaper.watch.scouts import Scouts
from oomreaper.watch.signals import Signals
from oomreaper.watch.sources import Sources
from oomreaper.watch.team import Team
from oomreaper.watch.voice import Speaker
from oomreaper.watch.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.plan import Plan
    from oomreaper.policy.protection import Ourselves
    from oomreaper.watch.outlet import Request

_MS = 1_000_000
_SECOND = 1_000 * _MS
_START_LIMIT_NS = 10 * _SECOND
# After SIGTERM: how long victims that are being reaped are waited for, so that their record is whole.
_LAST_WAIT_NS = 300 * _MS
_WARM_UP_ROUNDS = 2
_STATUS_EVERY_NS = 30 * _SECOND
_CHUNK_BYTES = 65_536
_ROOT_UID = 0


class Daemon:
    """One watcher.

    Args:
        plan: What to do when.
        is_dry_run: Take every step but the signal.
    """

    def __init__(self, plan: Plan, *, is_dry_run: bool) -> None:
        self.plan = plan
        now_ns = time.monotonic_ns()
        self._log = Log(sys.stderr.fileno(), os.environ.get("JOURNAL_STREAM"))
        self._notifier = Notifier.from_environment(os.environ)
        for name in VARIABLES:
            os.environ.pop(name, None)
        self._outlet = Outlet(plan.events_path, own_uid=os.geteuid())
        self._speaker = Speaker(self._outlet, self._log)
        self._proc = proc.open_root()
        self._handles = Handles(self._proc)
        self._pool = Pool(self._proc, proc.read_ancestors(self._proc))
        self.crew = Crew(self._pool, make_settings(plan))
        self._sources = Sources(plan, self._proc, on_trouble=self._on_trouble, on_gone=self._on_group_gone)
        self._machine = LinuxMachine(self._proc, sources=self._sources, crew=self.crew, handles=self._handles)
        self._scouts = Scouts(self.crew, self._handles.open, self._handles.close)
        actor = Pretender() if is_dry_run else Enforcer(self.crew, self._sources.directory_of)
        self._is_dry_run = is_dry_run
        self._clerk = Companion(self._on_trouble)
        self.hunter = Hunter(
            plan,
            actor=actor,
            scouts=self._scouts,
            handles=self._handles,
            onlooker=self._machine,
            voice=self._speaker,
            ourselves=self._ourselves,
        )
        self._candidates = Candidates(
            plan,
            people=self._machine,
            scouts=self._scouts,
            is_hunted=self.hunter.is_hunted,
            ourselves=self._ourselves,
            may_signal_uid=None if os.geteuid() == _ROOT_UID else os.geteuid(),
        )
        self.watcher = Watcher(
            plan,
            machine=self._machine,
            candidates=self._candidates,
            hunter=self.hunter,
            voice=self._speaker,
            boot_tag=f"{time.time_ns() // _SECOND:x}",
        )
        self._team = Team(
            self.watcher,
            hunter=self.hunter,
            scouts=self._scouts,
            crew=self.crew,
            actor=actor,
            candidates=self._candidates,
            answers=self._machine,
            voice=self._speaker,
        )
        self._reloader = Reloader(self._on_plan, self._on_bad_plan)
        self._signals = Signals(self._on_end, self._on_reload)
        self._pulse = _Pulse(self._notifier, self._describe_status)
        self._loop = Loop(
            self._team,
            pool=self._pool,
            handles=self._handles,
            sources=self._sources,
            outlet=self._outlet,
            on_request=self._on_request,
            services=(self._signals, self._sources, self._reloader, self._clerk, self._pulse),
        )
        self._started_ns = now_ns

    # -- its life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Become ready.

        Raises:
            KernelError: Something without which nobody can be killed here.
        """
        self._outlet.open()
        resident.be_prompt()
        resident.settle_heap()
        self.crew.start(time.monotonic_ns())
        if not self._drive(lambda: self.crew.is_ready, _START_LIMIT_NS):
            raise KernelError(
                "no reaper worker could be started: see oomreaper doctor; free memory or raise RLIMIT_NPROC"
            )
        self._clerk.adopt(self.plan.clerk, time.monotonic_ns())
        for text in self._rehearse():
            self._log.write(f"not warmed up: {text}")
        self._warm_up()
        resident.settle_heap()
        residency = resident.become_resident()
        if os.geteuid() == _ROOT_UID:
            privileges.drop_privileges()
        if not residency.is_locked:
            self._log.write("its memory is not locked: see oomreaper doctor (RLIMIT_MEMLOCK)")
        self._notifier.ready(self._describe_status())
        took_ms = (time.monotonic_ns() - self._started_ns) // _MS
        what = "watching (dry run: nobody is signalled)" if self._is_dry_run else "watching"
        where = "" if self.plan.within is None else f" within {self.plan.within}"
        settings = self.plan.config_path or "the defaults"
        self._log.write(f"{what}{where} by {settings}; ready after {took_ms} ms", INFO)

    def run(self) -> None:
        """Watch until a signal ends it."""
        self._loop.run()
        self._wait_for_the_last()

    def close(self) -> None:
        """Let go of everything; also after a start that failed."""
        self._notifier.stopping()
        self._clerk.close()
        self._reloader.close()
        self._pool.close()
        self._scouts.close()
        self._handles.close_all()
        self._machine.close()
        self._sources.close()
        self._outlet.close()
        self._signals.close()
        self._loop.close()
        self._notifier.close()
        self._log.close()
        os.close(self._proc)

    def build_state(self, reader_uid: int | None) -> dict[str, object]:
        """The state as ``oomreaper explain`` shows it."""
        now_ns = time.monotonic_ns()
        ranking = self.watcher.rank_now(MACHINE, now_ns)
        state = explain.build_state(
            now_ns=now_ns,
            scopes=self.watcher.views(now_ns),
            readings=self.watcher.ladder.readings(),
            ranking=ranking.ranked,
            counts=explain.Counts(ranking.considered, ranking.eligible, ranking.protected),
            victims=self.watcher.victims(),
            last=self._speaker.last,
            statistics=self._statistics(),
            is_dry_run=self._is_dry_run,
            config_path=self.plan.config_path,
            kernel_kill_ns=self.watcher.kernel_kill_ns(now_ns),
            reader_uid=reader_uid,
        )
        return explain.fit_state(state)

    def peek(self, reader_uid: int | None) -> dict[str, object]:
        """The state as a watcher that just began would see it; nothing is told and nobody signalled.

        Raises:
            KernelError: Nobody could be looked at here.
        """
        assert self._is_dry_run
        self._speaker.is_silent = True
        self.crew.start(time.monotonic_ns())
        if not self._drive(lambda: self.crew.is_ready, _START_LIMIT_NS):
            raise KernelError("no reaper worker could be started: see oomreaper doctor")
        for _ in range(_WARM_UP_ROUNDS):
            self._sources.on_time(time.monotonic_ns())
            self.watcher.on_time(time.monotonic_ns())
            self._drive(lambda: self.crew.is_quiet, _SECOND)
        return self.build_state(reader_uid)

    # -- getting warm --------------------------------------------------------------------------------------

    def _drive(self, is_done: Callable[[], bool], limit_ns: int) -> bool:
        return self._team.drive(is_done, self._loop.wait, time.monotonic_ns() + limit_ns)

    def _rehearse(self) -> tuple[str, ...]:
        """Real strikes on children of our own, so that each worker has done its work before it is needed."""
        return rehearse(self.crew, self._pool, self._loop.wait_bare)

    def _warm_up(self) -> None:
        """Walk all of a decision but its end, twice: first touches, caches of patterns, code that was never run."""
        self._speaker.is_silent = True
        try:
            for _ in range(_WARM_UP_ROUNDS):
                self._sources.on_time(time.monotonic_ns())
                now_ns = time.monotonic_ns()
                self.watcher.on_time(now_ns)
                self.watcher.rehearse(now_ns)
                self._drive(lambda: self.crew.is_quiet, _SECOND)
                json.dumps(self.build_state(_ROOT_UID))
        finally:
            self._speaker.is_silent = False

    # -- what happens --------------------------------------------------------------------------------------

    def _on_request(self, request: Request, now_ns: int) -> None:
        if request.ask == "state":
            uid = _ROOT_UID if request.may_see_all else request.uid
            self._outlet.reply(request.fd, self.build_state(uid))
        elif request.ack is not None:
            self.hunter.on_acknowledged(request.ack, now_ns)

    def _on_end(self, _number: int, _now_ns: int) -> None:
        self._loop.is_over = True

    def _on_reload(self, now_ns: int) -> None:
        self._notifier.reloading(now_ns // 1000)
        self._reloader.start(self.plan.recompile, now_ns)

    def _on_plan(self, plan: Plan, now_ns: int) -> None:
        if plan.within != self.plan.within or plan.events_path != self.plan.events_path:
            self._on_trouble("within and events are taken over at the next start, not by a reload", now_ns)
            plan = plan._replace(within=self.plan.within, events_path=self.plan.events_path)
        self.plan = plan
        self.watcher.adopt(plan)
        self._sources.adopt(plan, now_ns)
        self._clerk.adopt(plan.clerk, now_ns)
        self._log.write(f"the configuration was read again: {plan.config_path}", INFO)
        self._notifier.ready(self._describe_status())

    def _on_bad_plan(self, text: str, now_ns: int) -> None:
        self._speaker.warning(text, scope=None, incident=None, now_ns=now_ns)
        self._notifier.ready(self._describe_status())

    def _on_trouble(self, text: str, now_ns: int) -> None:
        self._speaker.warning(text, scope=None, incident=None, now_ns=now_ns)

    def _on_group_gone(self, scope: str) -> None:
        self.watcher.forget_scope(scope)

    def _wait_for_the_last(self) -> None:
        """Victims that are being reaped get their record, or a line that says why they have none."""
        self._drive(lambda: not self.crew.open_victims, _LAST_WAIT_NS)
        now_ns = time.monotonic_ns()
        for hunt in self.hunter.open_hunts:
            text = f"the watcher ended while process {hunt.identity.pid} {hunt.state.value}"
            self._speaker.warning(text, scope=hunt.scope, incident=hunt.incident, now_ns=now_ns)

    # -- telling -------------------------------------------------------------------------------------------

    def _ourselves(self) -> Ourselves:
        ourselves = self._pool.ourselves()
        return ourselves if self._clerk.pid is None else ourselves._replace(pids=ourselves.pids | {self._clerk.pid})

    def _describe_status(self) -> str:
        statistics = self.crew.statistics()
        return f"{statistics.victims_taken} victims since the start, {statistics.victims_open} being reaped"

    def _statistics(self) -> dict[str, object]:
        return {
            "looks": self.watcher.looks,
            "decisions": self.watcher.decisions,
            "turns": self._loop.turns,
            "crew": self.crew.statistics()._asdict(),
            "outlet": self._outlet.statistics()._asdict(),
            "log_lines_lost": self._log.lost_lines,
        }


class _Pulse(Service):
    """The service manager's watchdog and status line."""

    def __init__(self, notifier: Notifier, describe: Callable[[], str]) -> None:
        self._notifier = notifier
        self._describe = describe
        self._beat_ns = self._status_ns = 0

    def next_deadline_ns(self) -> int | None:
        interval_ns = self._notifier.watchdog_interval_ns
        return None if interval_ns is None else self._beat_ns + interval_ns

    def on_time(self, now_ns: int) -> None:
        interval_ns = self._notifier.watchdog_interval_ns
        if interval_ns is not None and now_ns - self._beat_ns >= interval_ns:
            self._beat_ns = now_ns
            self._notifier.watchdog()
        if self._notifier.is_connected and now_ns - self._status_ns >= _STATUS_EVERY_NS:
            self._status_ns = now_ns
            self._notifier.status(self._describe())


def make_settings(plan: Plan) -> Settings:
    """The crew's numbers out of a plan."""
    return Settings(
        attempts=plan.attempts, attempt_ns=plan.attempt_ns, timeout_ns=plan.timeout_ns, spare_dump=plan.spare_dump
    )


def main(arguments: list[str]) -> NoReturn:
    """The watcher's whole life: ``arguments`` are the plan's descriptor and perhaps --dry-run."""
    status = 0
    daemon = None
    try:
        plan = decode_plan(_read_all(int(arguments[0])))
        daemon = Daemon(plan, is_dry_run="--dry-run" in arguments[1:])
        daemon.start()
        daemon.run()
    except OomreaperError as error:
        Log(sys.stderr.fileno(), os.environ.get("JOURNAL_STREAM")).write(f"oomreaper: {error}", ERROR)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    finally:
        if daemon is not None:
            daemon.close()
    raise SystemExit(status)


def _read_all(descriptor: int) -> bytes:
    content = bytearray()
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        content += chunk
    os.close(descriptor)
    return bytes(content)
