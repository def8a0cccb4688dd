"""The watcher's process: put together, warmed up, made resident, and then left to the loop.

Runs under ``python3 -I -S`` with the standard library only. The order is what makes it small and sure: workers are
forked before anything large is read, everything that a kill will need is opened and walked once, the heap is settled
and locked, what is not needed any more is given up; only then is the service manager told READY.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import time
from typing import TYPE_CHECKING, NoReturn

from oomreaper.errors import BrokenPromiseError, KernelError, OomreaperError
from oomreaper.linux import privileges, proc, resident
from oomreaper.linux.interpreter import fill_standard_descriptors
from oomreaper.linux.notify import VARIABLES, Notifier
from oomreaper.model.plan import MACHINE
from oomreaper.policy import explain
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.settings import Settings
from oomreaper.reaper.worker.pool import Pool
from oomreaper.watch.actors import Enforcer, Pretender
from oomreaper.watch.companions import Companion
from oomreaper.watch.guard import describe, trace
from oomreaper.watch.handles import Handles
from oomreaper.watch.log import ERROR, INFO, WARNING, Log
from oomreaper.watch.loop import Loop
from oomreaper.watch.machine import LinuxMachine
from oomreaper.watch.mind.candidates import Candidates
from oomreaper.watch.mind.hunter import Hunter
from oomreaper.watch.mind.scouts import Scouts
from oomreaper.watch.mind.team import Team
from oomreaper.watch.mind.watcher import Watcher
from oomreaper.watch.outlet import Outlet
from oomreaper.watch.plan import LARGEST_PLAN_BYTES, decode_plan
from oomreaper.watch.rehearsal import rehearse
from oomreaper.watch.reload import Reloader
from oomreaper.watch.service import Service
from oomreaper.watch.signals import Signals
from oomreaper.watch.sources import Sources
from oomreaper.watch.voice import Speaker

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
_ROOT_UID = 0
_STDERR = 2
# How long hooks' clerk may take to listen before READY: it is a Python of its own. Without it the kills go on.
_CLERK_LIMIT_NS = 2 * _SECOND
_CLERK_LOOK_NS = 10 * _MS
# Descriptors wanted: the kept files of nine censuses, 256 groups with ten each, and some. Not more: a hook inherits it.
_DESCRIPTORS = 16_384
# With 48 a bystander that had come first was seen, and the hog was not; 64 sufficed for two processes (2026-11).
_FEWEST_DESCRIPTORS = 128


class Daemon:
    """One watcher.

    Args:
        plan: What to do when.
        is_dry_run: Take every step but the signal.
    """

    def __init__(self, plan: Plan, *, is_dry_run: bool) -> None:
        self.plan = plan
        now_ns = time.monotonic_ns()
        self._log = Log(_STDERR, os.environ.get("JOURNAL_STREAM"))
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
        actor: Enforcer | Pretender = (
            Pretender()
            if is_dry_run
            else Enforcer(self.crew, self._sources.directory_of, within_directory=self._sources.within_directory)
        )
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
            on_trouble=self._on_trouble,
            services=(
                self._signals,
                self._sources,
                self._reloader,
                self._clerk,
                self._pulse,
                _Flusher(self._speaker, self._log),
            ),
        )
        self._started_ns = now_ns

    # -- its life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Become ready.

        Raises:
            KernelError: Something without which nobody can be killed here.
        """
        self.watcher.may_act = False  # a victim of the warm-up would be taken in silence, and by cold hands
        self._outlet.open()
        _raise_descriptor_limit()
        resident.be_prompt()
        self._give_up_rights()  # before anybody is started: whoever is forked has no more than we keep
        self._clerk.adopt(self.plan.clerk, time.monotonic_ns())
        resident.settle_heap()
        self.crew.start(time.monotonic_ns())
        if not self._drive(lambda: self.crew.is_ready or self._loop.is_over, _START_LIMIT_NS):
            raise KernelError(
                "no reaper worker could be started: see oomreaper doctor; free memory or raise RLIMIT_NPROC"
            )
        if self._loop.is_over:
            return
        for text in self._rehearse():
            self._log.write(f"not warmed up: {text}")
        self._warm_up()
        resident.settle_heap()
        residency = resident.become_resident()
        if not residency.is_locked:
            self._log.write("its memory is not locked: see oomreaper doctor (RLIMIT_MEMLOCK)")
        self._await_clerk()
        if self._loop.is_over:
            return
        self.watcher.may_act = True
        self._notifier.ready(self._describe_status())
        took_ms = (time.monotonic_ns() - self._started_ns) // _MS
        what = "watching (dry run: nobody is signalled)" if self._is_dry_run else "watching"
        where = "" if self.plan.within is None else f" within {self.plan.within}"
        settings = self.plan.config_path or "the defaults"
        self._log.write(f"{what}{where} by {settings}; ready after {took_ms} ms", INFO)

    def run(self) -> None:
        """Watch until a signal ends it.

        Raises:
            Exception: A fault of ours; what stood open is recorded all the same.
        """
        try:
            self._loop.run()
            self._notifier.stopping()
            self._wait_for_the_last()
        finally:
            self._tell_what_is_open()

    def close(self) -> None:
        """Let go of everything; also after a start that failed."""
        self._reloader.close()
        self._pool.close()
        self._clerk.close()
        self._scouts.close()
        self._handles.close_all()
        self._machine.close()
        self._sources.close()
        self._outlet.close()
        self._signals.close()
        self._loop.close()
        self._notifier.close()
        self._speaker.flush()
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
        self.watcher.may_act = False
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
            self.hunter.on_acknowledged(request.ack, now_ns, status=request.status)

    def _on_end(self, _number: int, _now_ns: int) -> None:
        self._loop.is_over = True

    def _on_reload(self, now_ns: int) -> None:
        self._notifier.reloading(now_ns // 1000)
        self._reloader.start(self.plan.recompile, now_ns)

    def _on_plan(self, plan: Plan, now_ns: int) -> None:
        before = self.plan
        if plan.within != before.within or plan.events_path != before.events_path:
            self._on_trouble("within and events are taken over at the next start, not by a reload", now_ns)
            plan = plan._replace(within=before.within, events_path=before.events_path)
        if make_settings(plan) != make_settings(before):
            self._on_trouble("attempts, their time and core dumps are as before until the next start", now_ns)
        try:
            self._adopt(plan, now_ns)
        except Exception as error:  # noqa: BLE001 - whatever a plan may do wrong: the old one has worked
            self._adopt(before, now_ns)
            self._on_bad_plan(f"the new plan cannot be used ({describe(error)}); the old one stays", now_ns)
            return
        self._log.write(f"the configuration was read again: {plan.config_path}", INFO)
        self._notifier.ready(self._describe_status())

    def _adopt(self, plan: Plan, now_ns: int) -> None:
        self.plan = plan
        self.watcher.adopt(plan)
        self._sources.adopt(plan, now_ns)
        self._clerk.adopt(plan.clerk, now_ns)

    def _on_bad_plan(self, text: str, now_ns: int) -> None:
        self._speaker.warning(text, scope=None, incident=None, now_ns=now_ns)
        self._notifier.ready(self._describe_status())

    def _on_trouble(self, text: str, now_ns: int) -> None:
        self._speaker.warning(text, scope=None, incident=None, now_ns=now_ns)

    def _on_group_gone(self, scope: str) -> None:
        self.watcher.forget_scope(scope)

    def _wait_for_the_last(self) -> None:
        """Victims that are being reaped get their record; nobody else is taken any more: a plan without rules."""
        self.watcher.adopt(self.plan._replace(rules=()))
        self._drive(lambda: not self.crew.open_victims, _LAST_WAIT_NS)

    def _tell_what_is_open(self) -> None:
        """For those that have no record: a line that says why."""
        now_ns = time.monotonic_ns()
        for hunt in self.hunter.open_hunts:
            text = f"the watcher ended while process {hunt.identity.pid} {hunt.state.value}"
            self._speaker.warning(text, scope=hunt.scope, incident=hunt.incident, now_ns=now_ns)

    # -- being ready ---------------------------------------------------------------------------------------

    def _give_up_rights(self) -> None:
        """An ordinary user's hooks keep his umask; root's files are nobody else's."""
        is_root = os.geteuid() == _ROOT_UID
        umask = os.umask(0o077)
        kept = privileges.drop_privileges()
        if not is_root:
            os.umask(umask)
        for problem in kept.problems:
            self._log.write(f"a right that is not needed could not be given up: {problem}", WARNING)
        if is_root and kept.missing:
            what = "; ".join(f"{name} ({privileges.NEEDED[name]})" for name in sorted(kept.missing))
            self._log.write(f"not granted, so missing: {what}", WARNING)

    def _await_clerk(self) -> None:
        """Until it listens: it ignores what was told before it began."""
        limit_ns = time.monotonic_ns() + _CLERK_LIMIT_NS
        while self._clerk.pid is not None and not self._loop.is_over:
            if self._clerk.pid in self._outlet.client_pids:
                return
            now_ns = self._loop.wait(_CLERK_LOOK_NS)
            self._clerk.on_time(now_ns)
            if now_ns >= limit_ns:
                break
        if self._clerk.is_wanted and not self._loop.is_over:
            self._log.write(
                "the clerk, which runs the hooks, does not listen yet; hooks run as soon as it does", WARNING
            )

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


class _Flusher(Service):
    """At the end of each turn: what waited for the signal to be sent, and what the log could not write at once."""

    name = "log"

    def __init__(self, speaker: Speaker, log: Log) -> None:
        self._speaker = speaker
        self._log = log

    def on_time(self, _now_ns: int) -> None:
        self._speaker.flush()
        self._log.flush()


class _Pulse(Service):
    """The service manager's watchdog and status line."""

    name = "service manager"

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
    """The watcher's whole life: ``arguments`` are the plan's descriptor and perhaps --dry-run.

    Ends with 0 when it was asked to end, and with what its errors say otherwise: 3 for the kernel's refusals, 70 for
    a fault of ours. Every error is told in lines of the log, and whatever it was, no worker stays behind.
    """
    fill_standard_descriptors()
    status = 0
    daemon = None
    try:
        daemon = Daemon(_read_plan(arguments), is_dry_run="--dry-run" in arguments[1:])
        daemon.start()
        daemon.run()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # noqa: BLE001 - the last frame of this process: whatever it was, it is said
        status = _tell_end(error)
    finally:
        if daemon is not None:
            try:
                daemon.close()
            except Exception as error:  # noqa: BLE001 - as above
                status = status or _tell_end(error)
    raise SystemExit(status)


def _tell_end(error: Exception) -> int:
    """Say why it ends; its exit status."""
    log = Log(_STDERR, os.environ.get("JOURNAL_STREAM"))
    if isinstance(error, OomreaperError) and not isinstance(error, BrokenPromiseError):
        log.write(f"oomreaper: {error}", ERROR)
        status = error.exit_status
    elif isinstance(error, OSError | MemoryError):
        log.write(f"oomreaper: the kernel refused what is needed here: {describe(error)}", ERROR)
        status = KernelError.exit_status
    else:
        log.write(f"oomreaper: a fault of ours, please report it: {describe(error)}", ERROR)
        for line in trace(error):
            log.write(f"oomreaper:   at {line}", ERROR)
        status = BrokenPromiseError.exit_status
    log.close()
    return status


def _read_plan(arguments: list[str]) -> Plan:
    """The plan out of the sealed memory file that the command has left open.

    Raises:
        BrokenPromiseError: There is none: what anybody could still change, or that never ends, is not read.
    """
    try:
        descriptor = int(arguments[0])
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_WRITE:
            raise ValueError("it is not sealed")
        content = os.pread(descriptor, LARGEST_PLAN_BYTES + 1, 0)
        plan = decode_plan(content)
        os.close(descriptor)
    except (ValueError, IndexError, OSError, OverflowError) as error:
        raise BrokenPromiseError(
            f"the watcher was started without a sound plan ({error}); start it by: oomreaper run"
        ) from error
    return plan


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEWEST_DESCRIPTORS:
        raise KernelError(
            f"it may have only {hard} descriptors open, and would not see every process: a smaller one could die for "
            f"a larger. Allow it {_FEWEST_DESCRIPTORS} at least (RLIMIT_NOFILE, LimitNOFILE=)"
        )
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
