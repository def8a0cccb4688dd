"""One run: a ready guest, a scenario and a contestant in; a record out.

1. Set up: the tracer, the contestant (which must say that it watches), the groups, the probe, everybody who is there
   before the shortage. What fails here is no result: ``RefusedError``, and the run is to be done again.
2. The shortage: those who make it are started, each at its time. It lasts until all that is wanted has come and memory
   has been back for some seconds, or until the scenario's time is over.
3. Afterwards: can the machine still start a program? What did the killer log, what has it used?

From the second part on whatever happens is a result: a guest that is lost, or does not answer any more, has not
recovered.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab import seam
from lab.contestants import FULL, READY_LIMIT_S, Contestant, Process, Service
from lab.observer import Observer
from lab.records import Key, Record
from lab.scenario import Actor, Program, Scenario
from lab.talk import NS, RefusedError, Talk

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.observer import Figures
    from lab.seam import Guest, Heard, MachineSpec

# An emulated guest starts an interpreter in a second or two, and fills 600 MiB in five.
_ACTOR_LIMIT_S = 60.0
_PROBE_LIMIT_S = 20.0
_PROBE_BEATS = 20
# After everybody is there, before the shortage: what was started comes to rest, and the probe's user is warm.
_SETTLE_NS = 1 * NS
# That long after the last kill, with memory back, nothing more is expected.
_QUIET_NS = 4 * NS
# ``true`` in a machine that is idle takes a tenth of a second here.
_USABLE_LIMIT_S = 10.0
_AFTERWARDS_LIMIT_S = 15.0
# Who runs what the scenario does not say a user of; the full image has this one and the next.
_FIRST_USER = 1001
_LOG_LINES = 40
_LOG_CHARS = 300
# How often it is asked whether everything has come: that goes through all that was heard.
_LOOK_EVERY_NS = 200_000_000


class Run(NamedTuple):
    """One cell of the grid, once: ``repeat`` counts from 1."""

    scenario: Scenario
    contestant: Contestant
    kernel: str
    image: str
    repeat: int

    @property
    def key(self) -> Key:
        """As ``Record.key``."""
        killer = self.contestant
        return Key(self.scenario.name, killer.name, killer.settings, self.kernel, self.image, self.repeat)

    @property
    def spec(self) -> MachineSpec:
        """The machine that it needs."""
        return self.scenario.on(self.kernel, self.image)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.scenario.name}, {self.contestant.title}, {self.kernel} {self.image}, repeat {self.repeat}"


class _Left(NamedTuple):
    """What the machine says when it is over."""

    is_usable: bool
    cpu_ms: float | None
    pss_kib: int | None
    log: tuple[str, ...]


class _Stage:
    """Everything of one run."""

    def __init__(self, guest: Guest, run: Run, now_ns: Callable[[], int]) -> None:
        scenario, contestant, self._image = run.scenario, run.contestant, run.image
        self._scenario = scenario
        self._contestant = contestant
        self._way = contestant.ways[run.image]
        self.talk = Talk(guest, self._on_heard, now_ns)
        self.facts = self.talk.ask("hello")
        self.observer = Observer(
            scenario,
            memory_kib=int(self.facts["memory_kib"]),
            swap_kib=int(self.facts["swap_kib"]),
            workers=contestant.workers,
        )
        self._lines: dict[str, list[str]] = {}
        self._pids: dict[str, int] = {}
        self._ended: set[str] = set()
        self._started: list[int] = []

    def _on_heard(self, heard: Heard) -> None:
        message = heard.message
        if message.get("event") == "line":
            self._lines.setdefault(str(message["name"]), []).append(str(message["text"])[:_LOG_CHARS])
        elif message.get("event") == "ended":
            self._ended.add(str(message["name"]))
        if hasattr(self, "observer"):
            self.observer.hear(heard)

    # -- setting up ----------------------------------------------------------------------------------------

    def set_up(self) -> str:
        """Everything before the shortage; the contestant's version."""
        if self._scenario.machine.swap_mib + self._scenario.machine.zram_mib and not self.facts["swap_kib"]:
            raise RefusedError("the scenario wants swap, and the machine has none")
        self.talk.ask("trace", on=True)
        version = self._read_version()
        self._start_contestant()
        for group in self._scenario.groups:
            self.talk.ask("mkdir", path=f"/sys/fs/cgroup/{group.name}")
            for name, text in group.files.items():
                self.talk.ask("write", path=f"/sys/fs/cgroup/{group.name}/{name}", text=text)
        self._start_probe()
        if self._image == FULL:
            self._make_sessions()
        for actor in self._scenario.actors:
            if actor.start_ns is None:
                self._start_actor(actor)
        self.talk.listen(self.talk.now_ns() + _SETTLE_NS)
        return version

    def _make_sessions(self) -> None:
        """A user's service manager for each user, and in it a group for each actor, as of a desktop's programs."""
        for user in sorted({_user_of(actor) for actor in self._scenario.actors}):
            self._must_run("systemctl", "start", f"user@{user}.service")
        for actor in self._scenario.actors:
            if actor.group is None:
                self.talk.ask("mkdir", path=f"/sys/fs/cgroup/{_app_group(actor)}")

    def _read_version(self) -> str:
        if not self._contestant.version:
            return str(self.facts["kernel"])
        env = self._way.env if isinstance(self._way, Process) else {}
        answer = self.talk.ask("run", argv=list(self._contestant.version), env=dict(env), timeout_s=30)
        if answer["status"] != 0:
            raise RefusedError(f"no version of {self._contestant.name}: {answer['output']}")
        return str(answer["output"]).strip()

    def _start_contestant(self) -> None:
        name = self._contestant.name
        match self._way:
            case None:
                return
            case Process(argv, ready, env, oom_score_adj, nice):
                start: dict[str, Any] = {"name": name, "argv": list(argv), "env": dict(env)}
                answer = self.talk.ask("start", **start, oom_score_adj=oom_score_adj, nice=nice)
                self._pids[name] = int(answer["pid"])
                self._await_line(name, ready, READY_LIMIT_S)
            case Service(unit, files, also):
                for path, text in files.items():
                    self.talk.ask("mkdir", path=path.rpartition("/")[0])
                    self.talk.ask("write", path=path, text=text)
                commands = [("systemctl", "daemon-reload"), *also, ("systemctl", "start", unit)]
                for command in commands:
                    self._must_run(*command)
                shown = self._must_run("systemctl", "show", "-p", "MainPID", "--value", unit)
                self._pids[name] = int(shown.strip() or 0)
                if not self._pids[name]:
                    raise RefusedError(f"{unit} was started and has no process")

    def _must_run(self, *argv: str) -> str:
        answer = self.talk.ask("run", argv=list(argv), timeout_s=READY_LIMIT_S, within_s=READY_LIMIT_S + 5)
        if answer["status"] != 0:
            raise RefusedError(f"{' '.join(argv)}: {answer['output']}")
        return str(answer["output"])

    def _start_probe(self) -> None:
        argv = [f"{seam.HOME}/bin/probe", seam.PROBE_PORT]
        if self._scenario.shortage.group is not None:
            argv.append(f"/sys/fs/cgroup/{self._scenario.shortage.group}/memory.current")
        self._pids["probe"] = int(self.talk.ask("start", name="probe", argv=argv)["pid"])
        limit_ns = self.talk.now_ns() + int(_PROBE_LIMIT_S * NS)
        if not self.talk.listen(limit_ns, lambda: len(self.observer.beats) >= _PROBE_BEATS):
            raise RefusedError(f"the probe does not beat: {self._lines.get('probe')}")

    def _start_actor(self, actor: Actor) -> None:
        pid = int(self.talk.ask("start", **_start_arguments(actor, self._image))["pid"])
        line = self._await_line(actor.name, "ready", _ACTOR_LIMIT_S)
        if actor.program is Program.STUCK:
            match = re.search(r"culprits=([\d,]+)", line)
            if match is None:
                raise RefusedError(f"{actor.name} does not say who its culprits are: {line}")
            self.observer.take_culprits(actor.name, [int(text) for text in match[1].split(",")])
        self._pids[actor.name] = pid

    def _await_line(self, name: str, text: str, within_s: float) -> str:
        def find() -> str | None:
            return next((line for line in self._lines.get(name, ()) if text in line), None)

        limit_ns = self.talk.now_ns() + int(within_s * NS)
        self.talk.listen(limit_ns, lambda: find() is not None or name in self._ended)
        found = find()
        if found is None:
            how = "has ended" if name in self._ended else "does not say it"
            raise RefusedError(f"{name}: waited for {text!r}, and it {how}: {self._lines.get(name, [])[-5:]}")
        return found

    # -- the shortage --------------------------------------------------------------------------------------

    def run_short(self) -> None:
        """Start who makes the shortage, and listen until it is over.

        Raises:
            RefusedError: One of them could not be started.
            GuestLostError: The guest has ended.
        """
        begin_ns = self.talk.now_ns()
        self.talk.forget_pauses()
        self.observer.begin(begin_ns)
        end_ns = begin_ns + self._scenario.duration_ns
        later = sorted(
            ((actor.start_ns, actor) for actor in self._scenario.actors if actor.start_ns is not None),
            key=lambda pair: pair[0],
        )
        for start_ns, actor in later:
            self.talk.listen(begin_ns + start_ns)
            self._started.append(self.talk.send("start", **_start_arguments(actor, self._image)))
        looked_ns = 0

        def is_over() -> bool:
            nonlocal looked_ns
            now_ns = self.talk.now_ns()
            if now_ns - looked_ns < _LOOK_EVERY_NS:
                return False
            looked_ns = now_ns
            return self.observer.is_over(now_ns, _QUIET_NS)

        self.talk.listen(end_ns, is_over)
        for number in self._started:
            # No answer at all is a machine that hangs, and so a result.
            if self.talk.has_answered(number):
                self.talk.take_answer(number, "start")

    # -- afterwards ----------------------------------------------------------------------------------------

    def look_back(self) -> _Left:
        """What the machine says now. Who does not answer any more is not usable."""
        try:
            done = self.talk.ask("run", argv=["true"], timeout_s=_USABLE_LIMIT_S, within_s=_USABLE_LIMIT_S)
        except RefusedError:
            return _Left(False, None, None, self._own_log())
        is_usable = done["status"] == 0
        usage = self._try("usage", pid=self._pids.get(self._contestant.name, 0)) if self._way is not None else {}
        log = self._own_log()
        if isinstance(self._way, Service):
            argv = ["journalctl", "-u", self._way.unit, "-o", "cat", "--no-pager", "-n", str(_LOG_LINES)]
            log = _cut(str(self._try("run", argv=argv, timeout_s=_AFTERWARDS_LIMIT_S).get("output", "")).splitlines())
        return _Left(is_usable, usage.get("cpu_ms"), usage.get("pss_kib"), log)

    def _own_log(self) -> tuple[str, ...]:
        return _cut(self._lines.get(self._contestant.name, []))

    def _try(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return dict(self.talk.ask(do, within_s=_AFTERWARDS_LIMIT_S, **arguments))
        except RefusedError:
            return {}


def play(guest: Guest, run: Run, *, now_ns: Callable[[], int] = time.monotonic_ns) -> Record:
    """Do one run.

    Args:
        guest: Ready, and used for nothing else before or after.
        run: What happens in it, and who is to end it.
        now_ns: The host's monotonic clock.

    Raises:
        RefusedError: It could not be set up, or memory never became short, so there is no result.
        GuestLostError: The guest ended while it was set up.
    """
    stage, scenario, contestant = _Stage(guest, run, now_ns), run.scenario, run.contestant
    version = stage.set_up()
    begin_ns, waited_us = now_ns(), _read_waited_us()
    is_lost, left = False, _Left(False, None, None, ())
    try:
        stage.run_short()
        end_ns = now_ns()
        pause_ns = stage.talk.longest_pause_ns
        left = stage.look_back()
    except seam.GuestLostError:
        is_lost, end_ns, pause_ns = True, now_ns(), stage.talk.longest_pause_ns
    waited_percent = _share_percent(waited_us, _read_waited_us(), now_ns() - begin_ns)
    figures = stage.observer.figures(end_ns)
    if scenario.expectation.is_kill_wanted and left.is_usable and not figures.was_short and not figures.killed:
        lowest = f"{figures.lowest_available_percent} % available at least"
        raise RefusedError(f"the shortage did not come in the scenario's time ({lowest}): is this host busy?")
    is_back = figures.is_back or not scenario.expectation.is_kill_wanted
    is_recovered = is_back and left.is_usable and not is_lost
    innocent_kills = sum(kill.is_innocent for kill in figures.killed)
    return Record(
        scenario=scenario.name,
        contestant=contestant.name,
        settings=contestant.settings,
        version=version,
        kernel=run.kernel,
        image=run.image,
        kernel_release=str(stage.facts["kernel"]),
        repeat=run.repeat,
        date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M"),
        recovered=is_recovered,
        kills=len(figures.killed),
        innocent_kills=innocent_kills,
        kernel_kills=sum(kill.is_by_kernel for kill in figures.killed),
        shortage_to_kill_ms=figures.shortage_to_kill_ms,
        kill_to_memory_ms=figures.kill_to_memory_ms,
        longest_stall_ms=figures.longest_stall_ms,
        guest_stall_ms=figures.guest_stall_ms,
        host_stall_ms=round(pause_ns / 1e6, 1),
        host_wait_percent=waited_percent,
        killed_before_shortage=figures.killed_before_shortage,
        psi_full_ms=figures.psi_full_ms,
        lowest_available_percent=figures.lowest_available_percent,
        is_usable=left.is_usable,
        is_lost=is_lost,
        duration_s=round((end_ns - begin_ns) / NS, 1),
        killer_cpu_ms=left.cpu_ms,
        killer_pss_kib=left.pss_kib,
        broken=tuple(_find_broken(scenario, figures, is_recovered=is_recovered, is_lost=is_lost)),
        killed=figures.killed,
        log=left.log,
    )


def _find_broken(scenario: Scenario, figures: Figures, *, is_recovered: bool, is_lost: bool) -> list[str]:
    """What the scenario wants and did not come, in words."""
    wanted, broken = scenario.expectation, []
    kills = len(figures.killed)
    innocents = sorted({kill.comm for kill in figures.killed if kill.is_innocent})
    if is_lost:
        broken.append("the machine was lost")
    elif not is_recovered:
        broken.append("the machine did not recover")
    if innocents:
        broken.append(f"killed without need: {', '.join(innocents)}")
    if not wanted.is_kill_wanted:
        if kills > len(innocents):
            broken.append("somebody was killed, and memory did not run out")
    elif kills < wanted.least_kills:
        broken.append(f"{kills} were killed; it takes {wanted.least_kills}")
    if wanted.most_kills is not None and kills > wanted.most_kills:
        broken.append(f"{kills} were killed; {wanted.most_kills} are enough")
    return broken


def _start_arguments(actor: Actor, image: str) -> dict[str, Any]:
    """What the agent is told of an actor.

    With a service manager each is in a group of its own below its user's, as what is started from a desktop is: who
    kills by control groups finds one for each. Those that are put into a group of the scenario are there instead.
    """
    argv, env, user = list(actor.arguments), {"LAB_NAME": actor.name}, actor.user
    match actor.program:
        case Program.WORKLOAD:
            argv = [f"{seam.HOME}/bin/workload", *argv]
            user = _user_of(actor) if image == FULL else user
        case Program.STUCK:
            argv = ["python3", f"{seam.HOME}/stuck.py", *argv]
            env |= {"OOMREAPER_TEST_PROGRAM": f"{seam.HOME}/bin/victims", "PYTHONPATH": seam.HOME}
        case Program.COMMAND:
            pass
    arguments: dict[str, Any] = {
        "name": actor.name,
        "argv": argv,
        "env": env,
        "oom_score_adj": actor.oom_score_adj,
        "nice": actor.nice,
    }
    group = actor.group or (_app_group(actor) if image == FULL else None)
    if group is not None:
        arguments["group"] = group
    if user is not None:
        arguments["user"] = user
    return arguments


def _user_of(actor: Actor) -> int:
    return _FIRST_USER if actor.user is None else actor.user


def _service_group(user: int) -> str:
    return f"user.slice/user-{user}.slice/user@{user}.service"


def _app_group(actor: Actor) -> str:
    return f"{_service_group(_user_of(actor))}/app.slice/app-{actor.name}.scope"


def _read_waited_us() -> int | None:
    """For how long something on this host has waited for a CPU, since it was booted; None: it does not tell."""
    try:
        text = Path("/proc/pressure/cpu").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.partition("total=")[2].split()[0])


def _share_percent(before_us: int | None, after_us: int | None, time_ns: int) -> float | None:
    if before_us is None or after_us is None or time_ns <= 0:
        return None
    return round((after_us - before_us) * 1000 / time_ns * 100, 1)


def _cut(lines: list[str]) -> tuple[str, ...]:
    return tuple(line[:_LOG_CHARS] for line in lines[-_LOG_LINES:])
