"""A guest that never was, with a clock of its own: the runner is played against it in no time.

It answers the agent's commands, beats as the probe does, and knows the few programs that the tests start. Its memory is
what its actors have taken: the one named ``hog`` leaks, the others take nothing. A ``Killer`` says who kills whom, at
which level, and what comes of it. ``contract.py`` holds it and a real guest to the same.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.seam import GuestLostError, Heard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.seam import MachineSpec

MS = 1_000_000
SECOND = 1_000_000_000
# The guest's clock began later than the host's.
BOOTED_NS = 5 * SECOND
_BEAT_NS = 20 * MS
_NUMBERS_EVERY = 3
_KERNEL_KIB = 100 * 1024


class Clock:
    """The host's monotonic clock; it goes on when somebody waits."""

    def __init__(self) -> None:
        self.ns = 100 * SECOND

    def now_ns(self) -> int:
        """What it shows."""
        return self.ns


class Killer(NamedTuple):
    """Who ends the shortage.

    ``at_percent``: how much is available then; None: never. ``victims`` by name; each gives its memory back
    ``after_ns`` the kill, if it ``gives_back``. ``by`` sends ``signal``; it is the kernel for "kernel".
    """

    at_percent: float | None = 3.0
    victims: tuple[str, ...] = ("hog",)
    gives_back: bool = True
    after_ns: int = 100 * MS
    by: str = "oomreaper"
    signal: int = 9
    stall_ns: int = 0
    is_lost: bool = False
    hangs: bool = False
    mutes_agent: bool = False
    leak_kib_per_s: int = 200 * 1024
    refuses: tuple[str, ...] = ()


class _Started(NamedTuple):
    pid: int
    argv: tuple[str, ...]
    at_ns: int


class FakeGuest:
    """One machine; a ``lab.seam.Guest``."""

    def __init__(self, spec: MachineSpec, killer: Killer, clock: Clock) -> None:
        self.spec = spec
        self.clock = clock
        self.console = Path("/dev/null")
        self.commands: list[Mapping[str, Any]] = []
        self._killer = killer
        self._queue: list[tuple[int, int, dict[str, Any]]] = []
        self._order = itertools.count()
        self._pids = itertools.count(300)
        self._running: dict[str, _Started] = {}
        self._freed_ns: dict[str, int] = {}
        self._files: dict[str, str] = {}
        self._killed_ns: int | None = None
        self._beats = self._touched = 0
        self._beat_ns: int | None = None
        self._is_traced = False
        self._hung = False

    @property
    def facts(self) -> Mapping[str, Any]:
        """As of ``hello``."""
        return {
            "kernel": "6.99-fake",
            "cpus": self.spec.cpus,
            "memory_kib": self.spec.memory_mib * 1024,
            "swap_kib": (self.spec.swap_mib + self.spec.zram_mib) * 1024,
            "monotonic_ns": self.clock.ns - BOOTED_NS,
            "has": {"tracing": True, "cgroup2": True, "psi": True, "swap": bool(self.spec.swap_mib)},
        }

    # -- the seam ------------------------------------------------------------------------------------------

    def send(self, command: Mapping[str, Any]) -> None:
        """Take a command; what does not go into a line of JSON is no command."""
        self.commands.append(json.loads(json.dumps(command)))
        if self._hung or (self._killer.mutes_agent and self._freed_ns):
            return
        do = str(command["do"])
        answer = None if do in self._killer.refuses else self._do(do, command)
        if answer is None:
            self._say(MS, event="answer", id=command["id"], ok=False, error=f"no {do} here")
        elif "later_ns" in answer:
            self._say(answer.pop("later_ns"), event="answer", id=command["id"], **{"ok": True, **answer})
        else:
            self._say(MS, event="answer", id=command["id"], ok=True, **answer)

    def hear(self, timeout_s: float) -> Heard | None:
        """Let the clock go on to the next message, or for that long."""
        until_ns = self.clock.ns + int(timeout_s * SECOND)
        while True:
            self._beat_when_due()
            due_ns = min((self._queue[0][0] if self._queue else until_ns + 1), self._beat_ns or until_ns + 1)
            if due_ns > until_ns:
                self.clock.ns = max(self.clock.ns, until_ns)
                return None
            self.clock.ns = max(self.clock.ns, due_ns)
            self._kill_when_short()
            if self._queue and self._queue[0][0] <= self.clock.ns:
                at_ns, _, message = heapq.heappop(self._queue)
                return Heard(max(at_ns, self.clock.ns), message)

    # -- commands ------------------------------------------------------------------------------------------

    def _do(self, do: str, command: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: PLR0912 - a branch a command
        match do:
            case "hello":
                return dict(self.facts)
            case "ping":
                return {"monotonic_ns": self.clock.ns - BOOTED_NS}
            case "start":
                return self._start(str(command["name"]), tuple(command["argv"]))
            case "order":
                return self._order_program(str(command["name"]), str(command.get("text", "")))
            case "close":
                return self._end(str(command["name"]), status=0)
            case "signal":
                return self._end(str(command["name"]), signal=int(command["signal"]))
            case "run":
                return _run(tuple(command["argv"]), float(command.get("timeout_s", 30)))
            case "write":
                self._files[str(command["path"])] = str(command["text"])
                return {}
            case "read":
                text = self._files.get(str(command["path"]))
                return None if text is None else {"text": text}
            case "mkdir":
                return {}
            case "trace":
                self._is_traced = bool(command["on"])
                return {}
            case "usage":
                return {"cpu_ms": 120.0, "rss_kib": 14_000, "pss_kib": 12_000, "comm": "python3"}
            case "stats":
                return {"available_kib": self._available_kib(), "swap_free_kib": 0, "full_us": 0, "oom_kill": 0}
            case _:
                return None

    def _start(self, name: str, argv: tuple[str, ...]) -> dict[str, Any] | None:
        if name in self._running:
            return None
        started = _Started(next(self._pids), argv, self.clock.ns)
        self._running[name] = started
        programs = {word.rpartition("/")[2] for word in argv}
        if "probe" in programs:
            self._beat_ns = self.clock.ns + _BEAT_NS
        elif "workload" in programs:
            self._say(20 * MS, event="line", name=name, text="ready")
        elif "stuck.py" in programs:
            self._say(20 * MS, event="line", name=name, text=f"ready culprits={started.pid + 1000}")
        elif "oomreaper" in programs:
            self._say(50 * MS, event="line", name=name, text="watches the machine by its defaults; ready after 210 ms")
        elif "false" in programs:
            self._end(name, status=1)
        return {"pid": started.pid}

    def _order_program(self, name: str, text: str) -> dict[str, Any] | None:
        if name not in self._running:
            return None
        self._say(MS, event="line", name=name, text=text)  # as cat does
        return {}

    def _end(self, name: str, *, status: int | None = None, signal: int | None = None) -> dict[str, Any] | None:
        started = self._running.pop(name, None)
        if started is None:
            return None
        self._say(
            2 * MS,
            event="ended",
            name=name,
            pid=started.pid,
            status=status,
            signal=signal,
            at_ns=self.clock.ns - BOOTED_NS,
        )
        return {}

    # -- memory --------------------------------------------------------------------------------------------

    def _available_kib(self) -> int:
        taken = _KERNEL_KIB
        for name, started in self._running.items():
            if name.startswith("hog"):
                taken += (
                    (min(self.clock.ns, self._freed_ns.get(name, self.clock.ns)) - started.at_ns)
                    * self._killer.leak_kib_per_s
                    // SECOND
                )
        return max(0, self.spec.memory_mib * 1024 - taken)

    def _kill_when_short(self) -> None:
        level = self._killer.at_percent
        if self._killed_ns is not None and self.clock.ns >= self._killed_ns + self._killer.after_ns:
            if self._killer.gives_back:
                for name in self._killer.victims:
                    self._end(name, signal=self._killer.signal)
            self._killed_ns = None
        if self._hung or level is None or 100 * self._available_kib() > level * self.spec.memory_mib * 1024:
            return
        if self._killer.is_lost:
            raise GuestLostError("the fake has gone")
        if self._killer.hangs:
            self._hung, self._beat_ns = True, None
            return
        if self._killer.stall_ns and self._beat_ns is not None:
            self._beat_ns += self._killer.stall_ns
            self._killer = self._killer._replace(stall_ns=0)
        for name in self._killer.victims:
            if name in self._running and name not in self._freed_ns:
                self._killed_ns = self.clock.ns
                self._freed_ns[name] = self.clock.ns
                self._trace(name, self._running[name].pid)

    def _trace(self, name: str, pid: int) -> None:
        at = f"{(self.clock.ns - BOOTED_NS) / SECOND:.6f}"
        code = 128 if self._killer.by == "kernel" else 0
        by = "hog" if self._killer.by == "kernel" else self._killer.by
        text = (
            f"       {by}-77      [001] d..2.    {at}: signal_generate: sig={self._killer.signal} errno=0 code={code} "
            f"comm={name} pid={pid} grp=1 res=0"
        )
        if self._is_traced:
            self._say(3 * MS, event="trace", text=text)

    def _beat_when_due(self) -> None:
        if self._beat_ns is None or self._beat_ns > self.clock.ns:
            return
        self._touched += 2
        message: dict[str, Any] = {
            "event": "beat",
            "n": self._beats,
            "at_ns": self._beat_ns - BOOTED_NS,
            "touched": self._touched,
        }
        if self._beats % _NUMBERS_EVERY == 0:
            message |= {
                "available_kib": self._available_kib(),
                "swap_free_kib": 0,
                "full_us": self._beats,
            }
        self._beats += 1
        self._say(MS, **message)
        self._beat_ns += _BEAT_NS

    def _say(self, in_ns: int, **message: Any) -> None:
        heapq.heappush(self._queue, (self.clock.ns + in_ns, next(self._order), message))


class FakeMaker:
    """Makes them; a ``lab.seam.Maker``. ``made`` are all that were asked for."""

    def __init__(self, killer: Killer | None = None) -> None:
        self.clock = Clock()
        self.killer = killer or Killer()
        self.made: list[MachineSpec] = []
        self.guests: list[FakeGuest] = []

    @contextlib.contextmanager
    def open(self, spec: MachineSpec) -> Iterator[FakeGuest]:
        """A fresh one."""
        self.made.append(spec)
        self.clock.ns += SECOND
        self.guests.append(FakeGuest(spec, self.killer, self.clock))
        yield self.guests[-1]

    def estimate_s(self, spec: MachineSpec) -> float:
        """As long as one that is started from a snapshot."""
        return 1.0 if spec in self.made else 10.0


def _run(argv: tuple[str, ...], timeout_s: float) -> dict[str, Any] | None:
    match argv:
        case ("echo", word):
            return {"status": 0, "output": f"{word}\n", "duration_ms": 1.0}
        case ("sh", "-c", script) if script.startswith("exit "):
            return {"status": int(script.removeprefix("exit ")), "output": "", "duration_ms": 1.0}
        case ("sleep", time_s) if float(time_s) > timeout_s:
            return {"later_ns": int(timeout_s * SECOND), "ok": False, "error": "it took too long, and was killed"}
        case ("python3", "-c", _):
            return {"status": 0, "output": "0.1.0\n", "duration_ms": 1.0}
        case _:
            return {"status": 0, "output": "", "duration_ms": 1.0}
